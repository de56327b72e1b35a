"""What was used, told to the ledger: an exchange costs one append, a thread adds up and writes once a second.

A crash loses what was not yet written, a second's worth; a stop loses nothing. A ledger that cannot be written keeps its
sums waiting, up to a bound; what finds no room is counted.
"""

import threading
from collections import deque
from collections.abc import Callable
from time import time
from typing import Any, Final

from relay.exchange import BAD, GOOD, Exchange, Outcome, Summary, Usage, UsageSource
from relay.usage import HOUR, Amounts, Slot, UsageBroken, UsageLedger

BATCH_SECONDS: Final = 1.0
QUEUE_ENTRIES: Final = 50_000
"""Exchanges that may wait while the disk stands still: some 10 MB."""
WAITING_SLOTS: Final = 10_000
"""Sums that may wait while the ledger cannot be written: one for each key, route, upstream and hour."""
_RESULTS: Final = {outcome: "good" if outcome in GOOD else "bad" if outcome in BAD else "not_counted" for outcome in Outcome}
_NOTHING: Final = Usage(input=0, output=0)


class UsageLog:
    """Writes a ledger: a `gateway.Observer`."""

    def __init__(self, open_ledger: Callable[[], UsageLedger], keep_hours: int, log: Any, *, unix_time: Callable[[], float] = time) -> None:
        """Write the ledger that `open_ledger` opens, once that succeeds; forget hours when `keep_hours` have passed."""
        self._open = open_ledger
        self._ledger: UsageLedger | None = None
        self._keep_hours = keep_hours
        self._log = log
        self._unix_time = unix_time
        self._unqueued = 0
        self._unsummed = 0
        self._entries: deque[tuple[Slot, Amounts]] = deque()
        self._waiting: dict[Slot, Amounts] = {}
        self._forgotten_at = 0
        """The hour in which old hours were last forgotten."""
        self._trouble: str | None = None
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay-usage", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Return how many exchanges the ledger will not have."""
        return self._unqueued + self._unsummed

    # gateway.Observer

    def began(self) -> None:
        """Write nothing."""

    def routed(self, exchange: Exchange) -> None:
        """Write nothing."""

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """Write nothing: the outcome says it."""

    def violated(self, identity: str) -> None:
        """Write nothing."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """Take what an exchange used."""
        if summary.is_quiet:
            return
        if len(self._entries) >= QUEUE_ENTRIES:
            self._unqueued += 1
            return
        key, usage = summary.request.key, summary.usage
        slot = Slot(
            int(self._unix_time()) // HOUR,
            "" if key is None else key.name,
            summary.route or "",
            summary.upstream or "",
            _RESULTS[summary.outcome],
            "" if usage is None or summary.usage_source is None else summary.usage_source.value,
        )
        used = usage or _NOTHING
        self._entries.append((slot, Amounts(1, used.input, used.output, used.cached, used.reasoning, summary.cost)))
        if len(summary.attempts) > 1:
            self._take_lost(summary, slot)

    def _take_lost(self, summary: Summary, slot: Slot) -> None:
        """Take what attempts used that another one beat: no request of its own, at the upstream that was called."""
        for attempt in summary.attempts:
            if attempt.lost is not None:
                at = slot._replace(upstream=attempt.target.upstream.name, source=UsageSource.ESTIMATED.value)
                self._entries.append((at, Amounts(0, attempt.lost.input, attempt.lost.output, 0, 0, attempt.lost_cost)))

    # The thread

    def close(self, seconds: float = 5.0) -> None:
        """Write what is left, for at most `seconds`."""
        self._is_closing.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._is_closing.wait(BATCH_SECONDS):
            self._write()
        self._write()
        if self._ledger is not None:
            self._ledger.close()

    def _write(self) -> None:
        for _ in range(len(self._entries)):
            self._wait(*self._entries.popleft())
        hour = int(self._unix_time()) // HOUR
        is_new_hour = hour != self._forgotten_at
        if not self._waiting and not is_new_hour:
            return
        try:
            if self._ledger is None:
                self._ledger = self._open()
            self._ledger.add(self._waiting, forget_before=max(hour - self._keep_hours, 0) if is_new_hour else 0)
        except UsageBroken as broken:
            self._tell(str(broken))
            return
        self._waiting.clear()
        self._forgotten_at = hour
        self._tell(None)

    def _wait(self, slot: Slot, amounts: Amounts) -> None:
        before = self._waiting.get(slot)
        if before is None and len(self._waiting) >= WAITING_SLOTS:
            self._unsummed += 1
            return
        self._waiting[slot] = amounts if before is None else before.plus(amounts)

    def _tell(self, trouble: str | None) -> None:
        if trouble == self._trouble:
            return
        if trouble is None:
            self._log.info("usage", result="ok", message="the usage ledger can be written again")
        else:
            self._log.error("usage", result="waiting", message=f"{trouble}; what is used meanwhile waits")
        self._trouble = trouble
