"""Whether a target (or a credential) is well: HEALTHY takes requests, COOLING rests, PROBING lets exactly one try.

Attempts tell how they went; where an upstream is asked on purpose too, its answers are signs beside them. Each attempt holds a
`Permit` from `begin`; a result counts only while the state it began in lasts, so that those still under way when the breaker trips
neither lengthen the rest nor end it. Where nothing else is left a target is tried although it rests (`is_forced`): such an attempt may
bring it back and can do no further harm.

Report success when the answer commits, not when it is over: else a probe keeps everyone waiting for the length of a stream.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from relay.policy.window import Window

CONSECUTIVE_FAILURES: Final = 5
WINDOW_SECONDS: Final = 30
WINDOW_ATTEMPTS: Final = 20
"""Fewer say nothing about a share."""
REST_SECONDS: Final = 10.0
MAX_REST_SECONDS: Final = 300.0
JITTER: Final = 0.2
"""Rests are shortened by up to this share, so that relays do not probe in step; the cap stays a cap."""
MAX_RETRY_AFTER_SECONDS: Final = 60.0
PROBE_SECONDS: Final = 300.0
"""A probe that never told its end gives its place up: no wait without a bound."""


class Health(Enum):
    """What a breaker lets through."""

    HEALTHY = "healthy"
    COOLING = "cooling"
    PROBING = "probing"


class Cause(Enum):
    """Why there is a rest."""

    FAILURES = "failures"
    ASKED = "asked"
    """The upstream wants it: a rate limit, a spent account, a refused credential."""
    SIGNS = "signs"
    """The upstream was asked whether it is well, and was not."""
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """The right to one attempt, to be handed back with its result exactly once."""

    epoch: int
    is_probe: bool


class Breaker:
    """The health of one target or credential."""

    __slots__ = (
        "_cause",
        "_consecutive",
        "_epoch",
        "_has_to_probe",
        "_healthy_since",
        "_permit",
        "_probe_at",
        "_probe_seconds",
        "_recent",
        "_until",
        "trips",
    )

    def __init__(self, probe_seconds: float = PROBE_SECONDS) -> None:
        self._probe_seconds = probe_seconds
        self._recent = Window(WINDOW_SECONDS)
        self._consecutive = 0
        self._epoch = 0
        self._permit = Permit(epoch=0, is_probe=False)
        """What everybody gets who is no probe, as long as the epoch lasts: permits have no identity."""
        self._until: float | None = None
        self._cause = Cause.FAILURES
        self._has_to_probe = False
        self._probe_at: float | None = None
        self._healthy_since = 0.0
        self.trips = 0
        """Trips in a row: each makes the next rest longer."""

    def health(self, now: float) -> Health:
        """Tell the state at `now`; COOLING lasts until somebody begins the probe."""
        if self._until is None:
            return Health.HEALTHY
        if self._probe_at is not None and now < self._probe_at + self._probe_seconds:
            return Health.PROBING
        if now >= self._until and not self._has_to_probe:
            return Health.HEALTHY
        return Health.COOLING

    def rest_left(self, now: float) -> float:
        """Return how many seconds of rest are left; 0 when a try is due."""
        return 0.0 if self._until is None else max(0.0, self._until - now)

    def cause(self, now: float) -> Cause | None:
        """Return why it rests, None when it does not."""
        return None if self.health(now) is Health.HEALTHY else self._cause

    def may_try(self, now: float) -> bool:
        """Tell whether `begin` would give a permit."""
        if self._until is None:
            return True
        match self.health(now):
            case Health.HEALTHY:
                return True
            case Health.COOLING:
                return self.rest_left(now) <= 0
            case Health.PROBING:
                return False

    def begin(self, now: float, *, is_forced: bool = False) -> Permit | None:
        """Take the right to an attempt, None while resting; `is_forced` never gets None. The first after a rest is the probe."""
        if self._until is None:
            return self._permit
        if self.health(now) is Health.HEALTHY:
            self._recover(now)
            return self._permit
        if self.may_try(now):
            self._probe_at = now
            self._turn_over()
            return Permit(epoch=self._epoch, is_probe=True)
        return self._permit if is_forced else None

    def succeeded(self, permit: Permit, now: float) -> None:
        """Take a success: it ends a run of failures, and any rest it was tried in."""
        if permit.epoch != self._epoch:
            return
        if self._until is not None:
            self._recover(now)
            return
        self._consecutive = 0
        self._recent.add_first(now)

    def failed(self, permit: Permit, now: float, chance: float, *, at_least: float = 0.0) -> bool:
        """Take a failure that is the target's fault; return whether it trips.

        `chance` in [0, 1) jitters the rest; `at_least` is what the upstream asked for with Retry-After, in seconds.
        """
        if permit.epoch != self._epoch:
            return False
        if self._until is not None:
            if permit.is_probe:
                self._trip(now, chance, at_least, in_a_row=True)
            return permit.is_probe
        self._consecutive += 1
        self._recent.add_second(now)
        total = self._recent.first + self._recent.second
        if self._consecutive < CONSECUTIVE_FAILURES and not (total >= WINDOW_ATTEMPTS and 2 * self._recent.second >= total):
            return False
        self._trip(now, chance, at_least, in_a_row=self.trips > 0 and now < self._healthy_since + WINDOW_SECONDS)
        return True

    def abandoned(self, permit: Permit) -> None:
        """Take an end without a verdict (the client left, the caller's own fault): the next may probe."""
        if permit.is_probe and permit.epoch == self._epoch:
            self._probe_at = None

    def rest(self, now: float, seconds: float, *, has_to_probe: bool = True, cause: Cause = Cause.ASKED) -> None:
        """Rest from now, at least for `seconds`; without `has_to_probe` everyone may try at once afterwards (a rate limit)."""
        is_resting = self._until is not None and self.health(now) is not Health.HEALTHY
        until = now + seconds
        self._has_to_probe = has_to_probe or (is_resting and self._has_to_probe)
        self._until = max(until, self._until) if is_resting and self._until is not None else until
        self._cause = cause
        self._probe_at = None
        self._turn_over()

    def seems_ill(self, now: float, seconds: float) -> None:
        """Take a bad sign from outside: rest for `seconds`, unless there is a rest for another reason."""
        if self._until is None or self._cause is Cause.SIGNS or self.health(now) is Health.HEALTHY:
            self._until = None
            self.rest(now, seconds, cause=Cause.SIGNS)

    def seems_well(self, now: float) -> None:
        """Take a good sign from outside: it ends a rest for bad ones, and after failures makes the probe due.

        A rest that the upstream or an operator asked for lasts: the sign says nothing of its reason.
        """
        if self._until is None:
            return
        if self._cause is Cause.SIGNS:
            self._recover(now)
        elif self._cause is Cause.FAILURES:
            self._until = min(self._until, now)

    def _turn_over(self) -> None:
        self._epoch += 1
        self._permit = Permit(epoch=self._epoch, is_probe=False)

    def bring_back(self, now: float) -> None:
        """End any rest, and forget the failures that led to it."""
        self.trips = 0
        self._recover(now)

    def _recover(self, now: float) -> None:
        self._until = self._probe_at = None
        self._has_to_probe = False
        self._consecutive = 0
        self._recent.clear()
        self._healthy_since = now
        self._turn_over()

    def _trip(self, now: float, chance: float, at_least: float, *, in_a_row: bool) -> None:
        self.trips = self.trips + 1 if in_a_row else 1
        seconds = min(REST_SECONDS * self.trips, MAX_REST_SECONDS) * (1 - JITTER * chance)
        self._until = now + max(seconds, min(at_least, MAX_RETRY_AFTER_SECONDS))
        self._cause = Cause.FAILURES
        self._has_to_probe = True
        self._probe_at = None
        self._turn_over()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is seen of one breaker from outside."""

    name: str
    health: Health
    rest_seconds: float
    trips: int


_Item = TypeVar("_Item")


class Healths:
    """The breakers of all targets (or credentials) by name; names come from the configuration alone, so their number is bounded."""

    __slots__ = ("_breakers", "_probe_seconds")

    def __init__(self, probe_seconds: float = PROBE_SECONDS) -> None:
        self._breakers: dict[str, Breaker] = {}
        self._probe_seconds = probe_seconds

    def of(self, name: str) -> Breaker:
        """Return the breaker of `name`, a healthy one when it is new."""
        found = self._breakers.get(name)
        if found is None:
            found = self._breakers[name] = Breaker(self._probe_seconds)
        return found

    def keep(self, names: Iterable[str]) -> None:
        """Forget all but `names`: a new configuration came."""
        kept = frozenset(names)
        self._breakers = {name: breaker for name, breaker in self._breakers.items() if name in kept}

    def standings(self, now: float) -> list[Standing]:
        """Return the state of every breaker that was ever asked for."""
        return [
            Standing(name=name, health=breaker.health(now), rest_seconds=breaker.rest_left(now), trips=breaker.trips)
            for name, breaker in self._breakers.items()
        ]


def usable(items: Sequence[_Item], may_try: Callable[[_Item], bool], rest_left: Callable[[_Item], float]) -> list[_Item]:
    """Return the items that may be tried, in order; when all rest, the one whose rest ends first.

    The last target of a route is never taken out, and never more than one is kept for that: were all of them tried while all are
    down, each request would cost as many attempts as there are targets. A target that is kept is begun with `is_forced`.
    """
    able = [item for item in items if may_try(item)]
    return able if able or not items else [min(items, key=rest_left)]
