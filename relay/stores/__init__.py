"""Where what was used of limits is counted: in this process alone, or in a file that the processes of one machine share."""

from pathlib import Path

from relay.stores.host import HostTable, StateFileUnusable
from relay.stores.ledger import SLOTS_IDENTITY, TOKENS_IDENTITY, Ledger
from relay.stores.memory import MemoryTable

__all__ = ["SLOTS_IDENTITY", "TOKENS_IDENTITY", "Ledger", "StateFileUnusable", "open_ledger"]


def open_ledger(directory: str | None) -> Ledger:
    """Return a limiter whose counts lie in `directory`, or in memory without one. Raises StateFileUnusable."""
    return Ledger(MemoryTable() if directory is None else HostTable(Path(directory)))
