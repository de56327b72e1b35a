"""How late the event loop runs: what every stream waits for that the relay itself is to blame for.

A timer that should run every 100 ms notes how late it was. What a stream then asks is how much of a stretch of time the
loop was late; a lateness that is going on right now counts as well, since a chunk may be seen before the timer is.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from time import monotonic
from typing import Final

PERIOD_SECONDS: Final = 0.1
TOLERANCE_SECONDS: Final = 0.01
"""Less than this is what timers are late by anyway, and no stream notices."""
MAX_KEPT: Final = 10_000
"""Latenesses that are remembered: a quarter of an hour at the least, for a loop that is late every single time."""


class Lateness:
    """The stretches of time in which the event loop was late."""

    __slots__ = ("_ends", "_starts", "due_at")

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []
        self.due_at = float("inf")
        """When the timer should run next."""

    def note(self, due_at: float, now: float) -> None:
        """Take note that what was due at `due_at` ran only `now`."""
        if now - due_at <= TOLERANCE_SECONDS:
            return
        if len(self._ends) >= MAX_KEPT:
            del self._starts[: MAX_KEPT // 2], self._ends[: MAX_KEPT // 2]
        self._starts.append(due_at)
        self._ends.append(now)

    def between(self, start: float, end: float) -> float:
        """Return for how many seconds between two instants the loop was late."""
        running = end - max(self.due_at, start)
        late = running if running > TOLERANCE_SECONDS else 0.0
        if not self._ends or self._ends[-1] <= start:
            return late
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return late + sum(min(self._ends[at], end) - max(self._starts[at], start) for at in range(first, last))


class LagTimer:
    """Watches the running loop."""

    __slots__ = ("_handle", "_loop", "_observe", "lateness")

    def __init__(self, lateness: Lateness, observe: Callable[[float], None]) -> None:
        """Fill `lateness`, and tell `observe` each time how late the timer was (seconds)."""
        self.lateness = lateness
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._arm()

    def _arm(self) -> None:
        self.lateness.due_at = monotonic() + PERIOD_SECONDS
        self._handle = self._loop.call_later(PERIOD_SECONDS, self._fire)

    def _fire(self) -> None:
        now = monotonic()
        due_at = self.lateness.due_at
        self.lateness.note(due_at, now)
        self._observe(max(now - due_at, 0.0))
        self._arm()

    def stop(self) -> None:
        """Watch no more."""
        if self._handle is not None:
            self._handle.cancel()
