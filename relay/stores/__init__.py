"""Where what was used of limits is counted: in one process, in a file that one machine's processes share, or in Redis for many machines.

One machine: `ledger` counts over a `table` of accounts, which is in `memory` or in a file of the `host`; `gates` are the slots of
upstreams there, `standin` counts while the file cannot be had. Many machines: `redis` is the limiter, `scripts` what the server runs,
`line` the connection, `entries` what goes over it, `news` what is told later, `totals` what was heard of the others.
"""

from pathlib import Path

from relay.stores.host import HostTable, StateFileUnusable
from relay.stores.ledger import SLOTS_IDENTITY, TOKENS_IDENTITY, Ledger
from relay.stores.line import RedisUnusable
from relay.stores.memory import MemoryTable
from relay.stores.redis import RedisLimiter

__all__ = ["SLOTS_IDENTITY", "TOKENS_IDENTITY", "Ledger", "RedisLimiter", "RedisUnusable", "StateFileUnusable", "open_ledger"]


def open_ledger(directory: str | None) -> Ledger:
    """Return a limiter whose counts lie in `directory`, or in memory without one. Raises StateFileUnusable."""
    return Ledger(MemoryTable() if directory is None else HostTable(Path(directory)))
