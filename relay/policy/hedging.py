"""When a second attempt may start beside a slow first one: after a fixed time or the learned p95, for a bounded share of requests.

The bound is a true one: whatever the pattern of calls, over any run the hedges are at most `at_most` times the requests, and so they
are in the last minute at the moment each hedge is granted. (Take the last hedge and the minute before it, then the last hedge before
that minute, and so on: the minutes do not overlap, and each holds requests enough for its hedges.)
"""

from typing import Final

from relay.config.tree import Hedge
from relay.policy.latency import Latencies
from relay.policy.window import Window

WINDOW_SECONDS: Final = 60
SHARE: Final = 0.95
MIN_SAMPLES: Final = 20
"""Answers to prompts of a size before their 95th percentile is one."""


class Hedging:
    """The hedges of one route."""

    __slots__ = ("_recent",)

    def __init__(self) -> None:
        self._recent = Window(WINDOW_SECONDS)

    def note_request(self, now: float) -> None:
        """Count a request, whether it may be hedged or not."""
        self._recent.add_first(now)

    def may_hedge(self, now: float, at_most: float) -> bool:
        """Take one hedge; False when the share `at_most` of the requests is used up."""
        self._recent.advance(now)
        if self._recent.second + 1 > at_most * self._recent.first:
            return False
        self._recent.add_second(now)
        return True


def delay_of(hedge: Hedge, latencies: Latencies | None, prompt_bytes: int) -> float | None:
    """Return after how many seconds without content a hedge is due; None while the p95 that was asked for is not known yet."""
    if hedge.after is not None or latencies is None:
        return hedge.after
    return latencies.quantile(prompt_bytes, SHARE, at_least=MIN_SAMPLES)
