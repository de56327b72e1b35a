"""How long to wait before a worker is started again: at once after a long life, ever longer while it keeps dying young."""

from typing import Final

FIRST_SECONDS: Final = 0.1
CAP_SECONDS: Final = 30.0
YOUNG_SECONDS: Final = 60.0
"""A worker that lived longer died of something else than its start."""


class Restarts:
    """The restarts of one worker."""

    __slots__ = ("_early",)

    def __init__(self) -> None:
        self._early = 0

    def wait_seconds(self, lived_seconds: float, chance: float) -> float:
        """Return the wait after a life of `lived_seconds`: 0.1 s x 2^n up to 30 s, of which `chance` in [0, 1) takes up to half off."""
        if lived_seconds >= YOUNG_SECONDS:
            self._early = 0
        wait = min(CAP_SECONDS, FIRST_SECONDS * 2.0 ** min(self._early, 16))
        self._early += 1
        return wait * (1.0 - chance / 2)
