"""Waits for a turn at an upstream that takes no more calls for now: the slots of `policy.slots`, with a clock and a place to sleep.

A request waits once and for a bounded time in all, however many targets it queues for; whoever leaves gives its place up at once.
"""

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Final

from relay.config.tree import Target
from relay.errors import Draining
from relay.exchange import Exchange
from relay.policy.slots import AllSlots, Claim, Holds

LOOK_SECONDS: Final = 0.01
"""How late a slot is taken that another process has given back: little beside any answer, and a thousandth of a core's time."""


class Turns:
    """Gets exchanges their slots."""

    __slots__ = ("_looking", "_queued", "_waiting", "slots")

    def __init__(self, slots: AllSlots) -> None:
        self.slots = slots
        self._waiting: set[asyncio.Future[None]] = set()
        self._queued: dict[str, int] = {}
        self._looking: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> Mapping[str, int]:
        """Return how many exchanges of each route wait; those of routes where some ever did."""
        return self._queued

    def claim(self, target: Target) -> Claim | None:
        """Take a slot, or a place in the queue for one; None when there is neither. It has to be given back."""
        return self.slots.of(target.upstream.name).claim()

    async def wait(self, claim: Claim, exchange: Exchange, target: Target, deadline_at: float) -> Claim | None:
        """Wait until `claim` is a slot, until `deadline_at` at most; None, and it holds nothing any more, when it is none in time."""
        route = exchange.route
        assert route is not None
        began_at = monotonic()
        waits_until = min(
            deadline_at,
            began_at + target.upstream.limits.queue_wait - exchange.queued_seconds,
            exchange.request.received_at + route.timeouts.total,
        )
        self._queued[route.name] = self._queued.get(route.name, 0) + 1
        try:
            return claim if await self._wait(claim, waits_until - began_at) else None
        finally:
            self._queued[route.name] -= 1
            exchange.queued_seconds += monotonic() - began_at

    def take_free(self, target: Target) -> Claim | None:
        """Take a slot that is free now."""
        slots = self.slots.of(target.upstream.name)
        claim = None if slots.is_full else slots.claim()
        if claim is not None and claim.holds is not Holds.SLOT:
            # Another process was quicker.
            claim.give()
            return None
        return claim

    async def _wait(self, claim: Claim, seconds: float) -> bool:
        """Sleep until `claim` is a slot; False, and nothing is held any more, when that takes too long."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        claim.on_slot = lambda: None if turn.done() else turn.set_result(None)
        self._waiting.add(turn)
        if self.slots.are_shared and self._looking is None:
            self._look()
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await turn
        except TimeoutError:
            if claim.holds is Holds.SLOT:
                # The slot and the end of the time came in the same moment.
                return True
            claim.give()
            return False
        except BaseException:
            claim.give()
            raise
        finally:
            self._waiting.discard(turn)
        return True

    def _look(self) -> None:
        """Look now and then, while anybody waits, whether other processes have given slots back."""
        self._looking = None
        if self._waiting:
            self.slots.serve()
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def dismiss(self) -> None:
        """Let nobody wait any longer: the relay stops."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(Draining())
