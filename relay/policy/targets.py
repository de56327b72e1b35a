"""What is known of the targets while the relay runs: health, pace and load; and so in which order a route's are tried.

A target's name is its upstream's and the model's name there, the same on every route, so routes that share a target share
what was learned of it. Names come from the configuration alone: everything here is bounded by it.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from relay.config.tree import Affinity, AffinityKind, Config, Route, Strategy, Target
from relay.exchange import ClientRequest
from relay.policy import affinity, balance
from relay.policy.breaker import Breaker, Healths, Standing
from relay.policy.deadlines import LearnedDeadline
from relay.policy.hedging import Hedging

MEAN_SHARE: Final = 0.1
"""How much of a target's pace the newest answer makes."""


class Targets:
    """Orders the targets of routes by health, strategy and affinity."""

    __slots__ = ("_healths", "_hedgings", "_in_flight", "_lessons", "_paces", "_turns")

    def __init__(self) -> None:
        self._healths = Healths()
        self._paces: dict[str, float] = {}
        """Mean seconds to the first content, weighted towards the newest."""
        self._in_flight: dict[str, int] = {}
        self._lessons: dict[str, tuple[LearnedDeadline, LearnedDeadline]] = {}
        """Of whole answers and of streams, of the targets whose times anything is made of."""
        self._hedgings: dict[str, Hedging] = {}
        self._turns: dict[str, balance.Turns] = {}

    def order(self, route: Route, request: ClientRequest, now: float, chance: float) -> list[Target]:
        """Return the targets to try, first to last: those that rest are left out, but never the last one. `chance` in [0, 1)."""
        targets = list(route.targets)
        if len(targets) > 1:
            targets = [targets[position] for position in self._positions(route, request, chance)]
        targets += route.fallbacks
        return targets if len(targets) == 1 else self._healths.usable(targets, name_of, now)

    def _positions(self, route: Route, request: ClientRequest, chance: float) -> Sequence[int]:
        names = [name_of(target) for target in route.targets]
        weights = [target.weight for target in route.targets]
        key = _affinity_key(route.affinity, request)
        if key is not None:
            return affinity.rank(key, names, weights)
        match route.strategy:
            case Strategy.ORDERED:
                return range(len(names))
            case Strategy.WEIGHTED:
                return self._turns.setdefault(route.name, balance.Turns()).order(names, weights)
            case Strategy.LEAST_BUSY:
                return balance.least_busy([self._in_flight.get(name, 0) for name in names], weights, chance)
            case Strategy.FASTEST:
                return balance.fastest([self._paces.get(name) for name in names], chance)

    def breaker(self, target: Target) -> Breaker:
        """Return the health of one target."""
        return self._healths.of(name_of(target))

    def began(self, target: Target) -> None:
        """Count an attempt in."""
        name = name_of(target)
        self._in_flight[name] = self._in_flight.get(name, 0) + 1

    def ended(self, target: Target) -> None:
        """Count an attempt out."""
        name = name_of(target)
        left = self._in_flight.pop(name) - 1
        if left:
            # Without a zero for each name that ever was: reloads may bring many.
            self._in_flight[name] = left

    def answered(self, target: Target, seconds: float) -> None:
        """Learn how long a target took to its first content."""
        name = name_of(target)
        pace = self._paces.get(name, seconds)
        self._paces[name] = pace + MEAN_SHARE * (seconds - pace)

    def lesson(self, target: Target, request: ClientRequest) -> LearnedDeadline | None:
        """Return what was learned of the time that answers to such requests take; None where nothing is learned."""
        if not self._lessons or request.body is None:
            return None
        both = self._lessons.get(name_of(target))
        return None if both is None else both[request.is_stream]

    def hedging(self, route: Route) -> Hedging:
        """Return the count of a route's backup attempts."""
        return self._hedgings.setdefault(route.name, Hedging())

    def standings(self, now: float) -> list[Standing]:
        """Return the health of every target that was ever tried."""
        return self._healths.standings(now)

    def know(self, config: Config) -> None:
        """Forget what a new configuration no longer names."""
        names = {name_of(target) for route in config.routes.values() for target in route.all_targets}
        self._healths.keep(names)
        self._paces = {name: pace for name, pace in self._paces.items() if name in names}
        self._turns = {name: turns for name, turns in self._turns.items() if name in config.routes}
        self._hedgings = {name: hedging for name, hedging in self._hedgings.items() if name in config.routes}
        self._lessons = {
            name: self._lessons.get(name) or (LearnedDeadline(), LearnedDeadline())
            for name in {name_of(target) for route in config.routes.values() for target in _learners(route)}
        }
        for name in names:
            self._healths.of(name)


def _learners(route: Route) -> Iterator[Target]:
    """Yield the targets whose times to a first token must be known."""
    needs_p95 = route.hedge is not None and route.hedge.after is None
    for target in route.all_targets:
        if needs_p95 or (target.timeouts or route.timeouts).first_token_auto:
            yield target


def name_of(target: Target) -> str:
    """Return a target's name: upstream and model there, as in the configuration."""
    return target.name


def _affinity_key(rule: Affinity, request: ClientRequest) -> bytes | None:
    match rule.kind:
        case AffinityKind.NONE:
            return None
        case AffinityKind.PREFIX:
            return affinity.prefix_key(request)
        case AffinityKind.USER:
            return affinity.user_key(request)
        case AffinityKind.HEADER:
            return affinity.header_key(request, rule.header or b"")
