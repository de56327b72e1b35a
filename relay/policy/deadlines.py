"""How long to wait for a first token: learned from what this target took for prompts of this size.

deadline = 99 % quantile x FACTOR x 2^(cuts in a row), between a floor and what is configured. The factor covers the spread within a size
class (prompts differ by two) and the tail that was never seen. An attempt that is cut teaches nothing about how long it would have
taken, so a target that became slow for good would be cut for ever: therefore each cut in a row doubles the deadline of that size,
until answers come again and are learned from. Scattered stalls are followed by answers and leave it where it was.

Nothing here knows the time: the same observations give the same deadline.
"""

from typing import Final

from relay.policy.latency import SIZES, Latencies, size_of

SHARE: Final = 0.99
FACTOR: Final = 4.0
MIN_SAMPLES: Final = 20
"""Answers to prompts of a size before anything is concluded from them."""
FLOOR_SECONDS: Final = 5.0
"""However fast a target is, a short pause of it is no reason to pay for a second answer."""
LAST_TARGET_GRACE: Final = 2.0
"""Leaving the last target early helps nobody; it only stays bounded."""
_MAX_DOUBLINGS: Final = 10
"""By then every deadline is at its ceiling: from five seconds, more than an hour."""


class LearnedDeadline:
    """First-token deadlines of one target, for streams or for whole answers: what the two take has nothing in common."""

    __slots__ = ("_cuts", "latencies")

    def __init__(self) -> None:
        self.latencies = Latencies()
        self._cuts = [0] * SIZES

    def answered(self, prompt_tokens: int, seconds: float) -> None:
        """Learn from a first token that came after `seconds`."""
        self.latencies.observe(prompt_tokens, seconds)
        self._cuts[size_of(prompt_tokens)] = 0

    def cut(self, prompt_tokens: int) -> None:
        """Take note that the deadline ran out."""
        size = size_of(prompt_tokens)
        self._cuts[size] = min(self._cuts[size] + 1, _MAX_DOUBLINGS)

    def beaten(self, prompt_tokens: int, seconds: float) -> None:
        """Learn that a first token took more than `seconds`: a backup's came first.

        Counted as if it had come then: were the slow ones left out, the percentile after which a backup starts would sink by
        and by, and with it the time that is waited before the next.
        """
        self.latencies.observe(prompt_tokens, seconds)

    def seconds(self, prompt_tokens: int, configured: float, *, is_last: bool) -> float:
        """Return the deadline for a prompt of `prompt_tokens`: at most `configured`, and just that while too few answers were seen."""
        learned = self.latencies.quantile(prompt_tokens, SHARE, at_least=MIN_SAMPLES)
        if learned is None:
            return configured
        patience = FACTOR * 2.0 ** self._cuts[size_of(prompt_tokens)] * (LAST_TARGET_GRACE if is_last else 1.0)
        return min(max(learned * patience, FLOOR_SECONDS), configured)
