"""What is known of the targets while the relay runs: health, pace and load; and so in which order a route's are tried.

A target's name is its upstream's and the model's name there, the same on every route, so routes that share a target share
what was learned of it. Names come from the configuration alone: everything here is bounded by it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from relay.config.tree import Affinity, AffinityKind, Config, Route, Strategy, Target
from relay.exchange import ClientRequest
from relay.policy import affinity, balance
from relay.policy.breaker import Breaker, Cause, Health, Healths, Standing, usable
from relay.policy.credentials import Credential, Credentials, next_credential
from relay.policy.deadlines import LearnedDeadline
from relay.policy.hedging import WINDOW_SECONDS
from relay.policy.ration import Ration
from relay.policy.trial import Trial

MEAN_SHARE: Final = 0.1
"""How much of a target's pace the newest answer makes."""


class Targets:
    """Orders the targets of routes by health, strategy and affinity."""

    __slots__ = ("_credentials", "_healths", "_hedgings", "_in_flight", "_known", "_lessons", "_paces", "_turns")

    def __init__(self) -> None:
        self._healths = Healths()
        self._credentials = Credentials()
        self._known: dict[str, Target] = {}
        self._paces: dict[str, float] = {}
        """Mean seconds to the first content, weighted towards the newest."""
        self._in_flight: dict[str, int] = {}
        self._lessons: dict[str, tuple[LearnedDeadline, LearnedDeadline]] = {}
        """Of whole answers and of streams, of the targets whose times anything is made of."""
        self._hedgings: dict[str, Ration] = {}
        self._turns: dict[str, balance.Turns] = {}

    def order(self, route: Route, request: ClientRequest, now: float, chance: float) -> list[Target]:
        """Return the targets to try, first to last: those that rest are left out, but never the last one. `chance` in [0, 1)."""
        targets = list(route.targets)
        if len(targets) > 1:
            targets = [targets[position] for position in self._positions(route, request, chance)]
        targets += route.fallbacks
        if len(targets) == 1:
            return targets
        return usable(targets, lambda target: self.may_try(target, now), lambda target: self.rest_left(target, now))

    def _positions(self, route: Route, request: ClientRequest, chance: float) -> Sequence[int]:
        names = [target.name for target in route.targets]
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
        """Return the health of one target; of one that a reload has removed, a new one that nobody keeps."""
        name = target.name
        return self._healths.of(name) if name in self._known else Breaker()

    def begin(self, target: Target, now: float, *, is_forced: bool = False) -> Trial | None:
        """Take the right to an attempt at `target`, with the credential to use; None while it rests, unless `is_forced`."""
        breaker = self.breaker(target)
        credentials = self._credentials.of(target.upstream)
        if not credentials:
            permit = breaker.begin(now, is_forced=is_forced)
            return None if permit is None else Trial((breaker, permit))
        name = target.name
        chosen = next_credential(credentials, name, now)
        if chosen is None and is_forced:
            chosen = min(credentials, key=lambda each: each.rest_left(name, now))
        permit = None if chosen is None else breaker.begin(now, is_forced=is_forced)
        if chosen is None or permit is None:
            return None
        account = chosen.account
        held = account.begin(now, is_forced=True)
        assert held is not None
        place = None
        if len(credentials) > 1:
            at = chosen.at(name)
            at_permit = at.begin(now, is_forced=True)
            assert at_permit is not None
            place = (at, at_permit)
        return Trial((breaker, permit), credential=chosen.secret, account=(account, held), place=place)

    def may_try(self, target: Target, now: float) -> bool:
        """Tell whether `begin` would give a trial."""
        if not self.breaker(target).may_try(now):
            return False
        credentials = self._credentials.of(target.upstream)
        return not credentials or next_credential(credentials, target.name, now) is not None

    def rest_left(self, target: Target, now: float) -> float:
        """Return how many seconds of rest are left, the target's or all its credentials'; 0 when a try is due."""
        name = target.name
        credentials = self._credentials.of(target.upstream)
        spent = min((_credential_rest(each, name, now, is_only=len(credentials) == 1) for each in credentials), default=0.0)
        return max(self.breaker(target).rest_left(now), spent)

    def breakers_of(self, upstream: str) -> list[Breaker]:
        """Return the health of every target of one upstream."""
        return [self._healths.of(name) for name, target in self._known.items() if target.upstream.name == upstream]

    def began(self, target: Target) -> None:
        """Count an attempt in."""
        name = target.name
        self._in_flight[name] = self._in_flight.get(name, 0) + 1

    def ended(self, target: Target) -> None:
        """Count an attempt out."""
        name = target.name
        left = self._in_flight.pop(name) - 1
        if left:
            # Without a zero for each name that ever was: reloads may bring many.
            self._in_flight[name] = left

    def answered(self, target: Target, seconds: float) -> None:
        """Learn how long a target took to its first content."""
        name = target.name
        if name not in self._known:
            return
        pace = self._paces.get(name, seconds)
        self._paces[name] = pace + MEAN_SHARE * (seconds - pace)

    def lesson(self, target: Target, request: ClientRequest) -> LearnedDeadline | None:
        """Return what was learned of the time that answers to such requests take; None where nothing is learned."""
        if not self._lessons or request.body is None:
            return None
        both = self._lessons.get(target.name)
        return None if both is None else both[request.is_stream]

    def hedging(self, route: Route) -> Ration:
        """Return the ration of a route's backup attempts."""
        ration = self._hedgings.get(route.name)
        if ration is None:
            ration = self._hedgings[route.name] = Ration(WINDOW_SECONDS)
        return ration

    def standings(self, now: float) -> list[Standing]:
        """Return the health of every target of the configuration; one whose credentials all rest is cooling."""
        found = []
        for name, target in self._known.items():
            breaker = self._healths.of(name)
            health, rest = breaker.health(now), self.rest_left(target, now)
            if health is Health.HEALTHY and rest:
                health = Health.COOLING
            found.append(Standing(name=name, health=health, rest_seconds=rest, trips=breaker.trips))
        return found

    def cause(self, name: str, now: float) -> Cause | None:
        """Return why a target rests; None when it does not, and when only its credentials do."""
        return self._healths.of(name).cause(now)

    def pace(self, name: str) -> float | None:
        """Return the seconds that a target takes to its first content, as learned; None before anything was."""
        return self._paces.get(name)

    def in_flight(self, name: str) -> int:
        """Return how many attempts at a target are under way."""
        return self._in_flight.get(name, 0)

    def rest(self, name: str, now: float, seconds: float) -> None:
        """Let a target rest because somebody says so; raises KeyError when there is none of that name."""
        self._known[name]
        self._healths.of(name).rest(now, seconds, has_to_probe=False, cause=Cause.OPERATOR)

    def bring_back(self, name: str, now: float) -> None:
        """End any rest of a target and of its credentials there; raises KeyError when there is none of that name."""
        target = self._known[name]
        self._healths.of(name).bring_back(now)
        for credential in self._credentials.of(target.upstream):
            credential.account.bring_back(now)
            credential.at(name).bring_back(now)

    def credentials(self, now: float) -> Mapping[str, Mapping[str, int]]:
        """Return how many credentials are in which state, by upstream."""
        return self._credentials.counts(now)

    def know(self, config: Config) -> None:
        """Forget what a new configuration no longer names."""
        self._known = {target.name: target for route in config.routes.values() for target in route.all_targets}
        names = frozenset(self._known)
        self._healths.keep(names)
        self._credentials.know(config, names)
        self._paces = {name: pace for name, pace in self._paces.items() if name in names}
        self._turns = {name: turns for name, turns in self._turns.items() if name in config.routes}
        self._hedgings = {name: hedging for name, hedging in self._hedgings.items() if name in config.routes}
        self._lessons = {
            name: self._lessons.get(name) or (LearnedDeadline(), LearnedDeadline())
            for name in {target.name for route in config.routes.values() for target in _learners(route)}
        }


def _credential_rest(credential: Credential, target: str, now: float, *, is_only: bool) -> float:
    return credential.account.rest_left(now) if is_only else credential.rest_left(target, now)


def _learners(route: Route) -> Iterator[Target]:
    """Yield the targets whose times to a first token must be known."""
    needs_p95 = route.hedge is not None and route.hedge.after is None
    for target in route.all_targets:
        if needs_p95 or (target.timeouts or route.timeouts).first_token_auto:
            yield target


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
