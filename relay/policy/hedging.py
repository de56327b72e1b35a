"""When a second attempt may start beside a slow first one: after a fixed time or the learned p95, for a bounded share of requests.

The bound is a true one: whatever the pattern of calls, over any run the hedges are at most `at_most` times the requests, and so they
are in the last minute at the moment each hedge is granted. (Take the last hedge and the minute before it, then the last hedge before
that minute, and so on: the minutes do not overlap, and each holds requests enough for its hedges.)
"""

from typing import Final

from relay.policy.latency import Latencies
from relay.policy.window import Window

WINDOW_SECONDS: Final = 60
SHARE: Final = 0.95
MIN_SAMPLES: Final = 20


class Hedging:
    """The hedges of one route. `after` in seconds, None for the learned p95; `at_most` a share of requests."""

    __slots__ = ("_after", "_at_most", "_recent")

    def __init__(self, after: float | None, at_most: float) -> None:
        self._after = after
        self._at_most = at_most
        self._recent = Window(WINDOW_SECONDS)

    def note_request(self, now: float) -> None:
        """Count a request, whether it may be hedged or not."""
        self._recent.add_first(now)

    def delay(self, latencies: Latencies, prompt_bytes: int) -> float | None:
        """Return after how many seconds without content a hedge is due; None while p95 is not known yet."""
        return self._after if self._after is not None else latencies.quantile(prompt_bytes, SHARE, at_least=MIN_SAMPLES)

    def may_hedge(self, now: float) -> bool:
        """Take one hedge; False when the share is used up."""
        self._recent.advance(now)
        if self._recent.second + 1 > self._at_most * self._recent.first:
            return False
        self._recent.add_second(now)
        return True
