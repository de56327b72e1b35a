"""What a person orders of a relay with several workers: all of them are told, and those that are started later as well."""

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final

import msgspec

from relay.app.desk import Order, check_known, log_fields, merged
from relay.config.tree import Config
from relay.errors import Overloaded
from relay.workers.child import Child
from relay.workers.messages import Report

REPORT_SECONDS: Final = 2.0
"""A worker that answers later is left out: it hangs, or has a second's work before it."""


class Orders:
    """Hands orders to all workers, and remembers those that still hold."""

    __slots__ = ("_children", "_config", "_log", "_until")

    def __init__(self, children: Iterable[Child], config: Callable[[], Config], log: Any) -> None:
        """Check orders against what `config` returns, the configuration in force."""
        self._children = children
        self._config = config
        self._log = log
        self._until: dict[str, float] = {}

    @property
    def rests(self) -> dict[str, float]:
        """Return the targets that were put to rest, and for how many seconds more."""
        now = monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        return {name: until - now for name, until in self._until.items()}

    async def carry_out(self, order: Order) -> dict[str, Any]:
        """Have all workers do it and return their reports as one. Raises ClientError: unknown_target; Overloaded when none answers."""
        if order.target is not None:
            check_known(self._config(), order.target)
            self._until.pop(order.target, None)
            if order.seconds is not None:
                self._until[order.target] = monotonic() + order.seconds
            self._log.warning("admin", **log_fields(order))
            for child in self._children:
                if not child.is_ready:  # it was told what held when it was started
                    child.tell(order)
        channels = [child.channel for child in self._children if child.is_ready and child.channel is not None]
        answers = await asyncio.gather(*(channel.ask(order, REPORT_SECONDS) for channel in channels), return_exceptions=True)
        reports = [msgspec.json.decode(answer.body) for answer in answers if isinstance(answer, Report) and answer.error is None]
        if not reports:
            raise Overloaded
        return merged(reports)
