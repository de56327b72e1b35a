"""What a target took to its first token, by size of the prompt: quantiles from small histograms that forget slowly.

Bins grow by a quarter of a power of two, so a quantile is never too low and at most 19 % too high. When a histogram holds
`FULL` observations all its bins are halved: the past fades with what comes, not with time. A target costs at most
`SIZES` histograms of `BINS` numbers, 8 KiB in all.
"""

from array import array
from bisect import bisect_left
from math import ceil
from typing import Final

FULL: Final = 1024
"""Observations before the halving: enough for a 99th percentile, few enough to follow a target that changed."""
BINS: Final = 64
_EDGES: Final[tuple[float, ...]] = tuple([0.02 * 2.0 ** (number / 4) for number in range(BINS)])
"""Upper edges of the bins in seconds, from 20 ms to eighteen minutes; what is longer counts in the last."""
SIZES: Final = 16
"""Classes of prompt sizes."""
_SMALLEST_LOG2: Final = 8
"""Prompts up to 256 tokens share a histogram, those above four millions another; between, one per power of two."""


class Histogram:
    """Seconds in logarithmic bins."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts = array("H", bytes(2 * BINS))
        self.total = 0

    def observe(self, seconds: float) -> None:
        """Count one observation; O(1) but for the halving once in `FULL / 2`."""
        self._counts[min(bisect_left(_EDGES, seconds), BINS - 1)] += 1
        self.total += 1
        if self.total >= FULL:
            # Rounded up: what was seen once is not forgotten by the first halving.
            self._counts = array("H", [(count + 1) // 2 for count in self._counts])
            self.total = sum(self._counts)

    def quantile(self, share: float) -> float:
        """Return an upper bound of the `share` quantile, 0 < share <= 1, in seconds; 0 when nothing was observed."""
        if not self.total:
            return 0.0
        rank = max(1, ceil(share * self.total - 1e-9))
        seen = 0
        for number, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return _EDGES[number]
        raise AssertionError("the counts add up to the total")


class Latencies:
    """Times to first token of one target, by size of the prompt."""

    __slots__ = ("_by_size",)

    def __init__(self) -> None:
        self._by_size: list[Histogram | None] = [None] * SIZES

    def observe(self, prompt_tokens: int, seconds: float) -> None:
        """Take note of how long the first token took."""
        size = size_of(prompt_tokens)
        histogram = self._by_size[size]
        if histogram is None:
            histogram = self._by_size[size] = Histogram()
        histogram.observe(seconds)

    def quantile(self, prompt_tokens: int, share: float, *, at_least: int) -> float | None:
        """Return an upper bound of a quantile for prompts of this size, None while fewer than `at_least` were seen.

        A size too rare to tell borrows from the nearest larger one, never from a smaller: a longer prompt takes longer.
        """
        for histogram in self._by_size[size_of(prompt_tokens) :]:
            if histogram is not None and histogram.total >= at_least:
                return histogram.quantile(share)
        return None


def size_of(prompt_tokens: int) -> int:
    """Return which of the `SIZES` classes a prompt of `prompt_tokens` belongs to."""
    return min(max((max(prompt_tokens, 1) - 1).bit_length() - _SMALLEST_LOG2, 0), SIZES - 1)
