"""Extra attempts that the requests of the last while allow: a share of them, so that what helps one request never becomes a storm.

The bound is a true one: whatever the pattern of calls, what was granted in any stretch of the window's length is at most the share of
the requests in it, or the minimum. Without a minimum that holds over any run as well. (Take the last grant and the window before it,
then the last grant before that window, and so on: the windows do not overlap, and each holds requests enough for its grants.)
"""

from relay.policy.window import Window


class Ration:
    """What was asked and what was granted lately. Time must not run backwards; if it does, it stands still."""

    __slots__ = ("_minimum", "_recent")

    def __init__(self, window_seconds: int, *, minimum: int = 0) -> None:
        """Grant `minimum` in a window whatever the share: with little traffic a share says nothing."""
        self._recent = Window(window_seconds)
        self._minimum = minimum

    def note_request(self, now: float) -> None:
        """Count a request: each once, whether it will want more or not."""
        self._recent.add_first(now)

    def take(self, now: float, share: float) -> bool:
        """Take one; False when `share` of the requests is used up."""
        self._recent.advance(now)
        if self._recent.second + 1 > max(self._minimum, share * self._recent.first):
            return False
        self._recent.add_second(now)
        return True
