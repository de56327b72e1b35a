"""What an upstream's answers to health checks say: several bad ones in a row mean that it is ill, one good one that it is well.

Only what speaks of the upstream itself counts. That a path is unknown, or not for this credential, says nothing of whether requests
would be answered: the check is at fault then, and its upstream neither rests nor comes back for it.
"""

from enum import Enum
from typing import Final

ILL_AFTER: Final = 3
"""Bad signs in a row: one answer that is late or lost happens to the best."""


class Sign(Enum):
    """What one answer says."""

    GOOD = "good"
    BAD = "bad"
    NONE = "none"


class State(Enum):
    """What an upstream is taken for."""

    UNKNOWN = "unknown"
    WELL = "well"
    ILL = "ill"
    UNCLEAR = "unclear"
    """It answers, and not the question."""


class Signs:
    """The signs of one upstream."""

    __slots__ = ("_bad", "state")

    def __init__(self) -> None:
        self.state = State.UNKNOWN
        self._bad = 0

    def take(self, sign: Sign) -> bool:
        """Take one sign; return whether the state is another one now."""
        before = self.state
        self._bad = self._bad + 1 if sign is Sign.BAD else 0
        match sign:
            case Sign.GOOD:
                self.state = State.WELL
            case Sign.NONE:
                self.state = State.UNCLEAR
            case Sign.BAD if self._bad >= ILL_AFTER:
                self.state = State.ILL
        return self.state is not before


def sign_of(status: int | None) -> Sign:
    """Read a sign from the status of an answer; None when no whole answer came in time."""
    if status is None or status >= 500:
        return Sign.BAD
    return Sign.GOOD if 200 <= status < 300 else Sign.NONE


def rest_seconds(every: float, timeout: float) -> float:
    """Return how long one bad sign may keep an upstream at rest: until the next one must have come, also a late one."""
    return 2 * every + timeout
