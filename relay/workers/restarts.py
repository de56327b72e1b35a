"""How long to wait before a worker is started again, ever longer while it keeps dying young, and when to give up.

A worker that dies over and over does so by something that another start does not change (a request that crashes it and is sent
again, memory that is not there). A relay that goes on like this cuts streams each time and looks well from afar; one that ends tells who
runs it, and is started anew as a whole.
"""

from collections import deque
from typing import Final

FIRST_SECONDS: Final = 0.1
CAP_SECONDS: Final = 30.0
YOUNG_SECONDS: Final = 60.0
"""A worker that lived longer died of something else than its start."""
GIVE_UP_DEATHS: Final = 5
"""So many deaths in one place within GIVE_UP_SECONDS are no accidents."""
GIVE_UP_SECONDS: Final = 60.0


class Restarts:
    """The restarts of one worker."""

    __slots__ = ("_deaths", "_early", "_unready")

    def __init__(self) -> None:
        self._early = 0
        self._unready = 0
        self._deaths: deque[float] = deque(maxlen=GIVE_UP_DEATHS)

    def wait_seconds(self, lived_seconds: float, chance: float) -> float:
        """Return the wait after a life of `lived_seconds`: 0.1 s x 2^n up to 30 s, of which `chance` in [0, 1) takes up to half off."""
        if lived_seconds >= YOUNG_SECONDS:
            self._early = 0
        wait = min(CAP_SECONDS, FIRST_SECONDS * 2.0 ** min(self._early, 16))
        self._early += 1
        return wait * (1.0 - chance / 2)

    def is_hopeless(self, now: float, *, was_ready: bool) -> bool:
        """Take note of a death nobody wanted; tell whether it was the fifth within a minute, or in a row without having been ready.

        `now` is in seconds of any clock that does not step. The second bound is for machines where a start takes long.
        """
        self._deaths.append(now)
        self._unready = 0 if was_ready else self._unready + 1
        is_full = len(self._deaths) == GIVE_UP_DEATHS
        return (is_full and now - self._deaths[0] <= GIVE_UP_SECONDS) or self._unready >= GIVE_UP_DEATHS
