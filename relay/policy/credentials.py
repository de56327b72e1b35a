"""How the upstreams' credentials fare: refused everywhere, or throttled at one target; and which one goes next.

The first that is well is used, so that prompt caches are kept; a credential that is throttled or refused rests, and the next one
takes over. Those of one upstream are told apart by their value: a reload that brings a new one brings it healthy.
"""

from collections.abc import Mapping, Sequence

from relay.config.tree import Config, Secret, Upstream
from relay.policy.breaker import Breaker, Health


class Credential:
    """One credential of an upstream."""

    __slots__ = ("_places", "account", "secret")

    def __init__(self, secret: Secret | None) -> None:
        """Keep books for `secret`; None stands for the one in a file."""
        self.secret = secret
        self.account = Breaker()
        """Its health at every target."""
        self._places: dict[str, Breaker] = {}

    def at(self, target: str) -> Breaker:
        """Return its health at one target (limits are mostly counted per model)."""
        found = self._places.get(target)
        if found is None:
            found = self._places[target] = Breaker()
        return found

    def rest_left(self, target: str, now: float) -> float:
        """Return how many seconds of rest are left at `target`."""
        return max(self.account.rest_left(now), self.at(target).rest_left(now))

    def health(self, now: float) -> Health:
        """Return its state: that of the account, else the worst of its places."""
        states = [self.account.health(now), *(place.health(now) for place in self._places.values())]
        return next((state for state in (Health.COOLING, Health.PROBING) if state in states), Health.HEALTHY)

    def keep(self, targets: frozenset[str]) -> None:
        """Forget all but these targets."""
        self._places = {name: place for name, place in self._places.items() if name in targets}


class Credentials:
    """The credentials of all upstreams; those of callers are not among them."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Secret | None, ...], tuple[Credential, ...]]] = {}

    def know(self, config: Config, targets: frozenset[str]) -> None:
        """Forget what a new configuration no longer holds; `targets` are the names of its targets."""
        known = {}
        for name, upstream in config.upstreams.items():
            before = {each.secret: each for each in self._known.get(name, ((), ()))[1]}
            kept = tuple(before.get(secret) or Credential(secret) for secret in upstream.credentials)
            for each in kept:
                each.keep(targets)
            known[name] = (upstream.credentials, kept)
        self._known = known

    def of(self, upstream: Upstream) -> Sequence[Credential]:
        """Return the credentials of `upstream`, first choice first.

        Of an upstream as it was before a reload, new ones: its exchanges end with the credentials they began with, and what becomes
        of those is nobody's business any more.
        """
        known = self._known.get(upstream.name)
        if known is not None and known[0] == upstream.credentials:
            return known[1]
        return tuple(map(Credential, upstream.credentials))

    def counts(self, now: float) -> Mapping[str, Mapping[str, int]]:
        """Return how many credentials are in which state, by upstream; only of upstreams that have any."""
        found = {}
        for name, (_, kept) in self._known.items():
            if kept:
                states = [each.health(now) for each in kept]
                found[name] = {state.value: states.count(state) for state in Health}
        return found


def next_credential(credentials: Sequence[Credential], target: str, now: float) -> Credential | None:
    """Return the first that may be used at `target` now; None when all rest."""
    if len(credentials) == 1:
        return credentials[0] if credentials[0].account.may_try(now) else None
    for each in credentials:
        if each.account.may_try(now) and each.at(target).may_try(now):
            return each
    return None
