"""From the name a client asks for to the targets that may answer: exact names first, then the longest wildcard.

Only names in the configuration decide; nothing in a request can name a host (A25).
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from relay.config.tree import FallbackCause, Key, Route, Target
from relay.errors import ClientError
from relay.policy.slots import AllSlots


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One target of a plan with the model's name there filled in."""

    target: Target
    model: str | None
    """The name to send; None leaves the request without one."""
    is_mapped: bool
    """Whether we chose the name (then a 404 for it is our configuration's fault), not the caller by a wildcard."""
    fallback_on: frozenset[FallbackCause] = frozenset()
    """Refusals of the request itself after which the next target is tried."""


class RoutePlan:
    """The ordered targets of one exchange, each offered once; one that has no slot free is offered after those that have."""

    __slots__ = ("_choices", "route", "slots")

    def __init__(self, route: Route, choices: Sequence[Choice]) -> None:
        self.route = route
        self._choices = list(choices)
        self.slots: AllSlots | None = None
        """Tell which targets take no more calls for now; None where nothing is bounded."""

    def next(self) -> Choice | None:
        """Return the next target to try, or None when all were offered."""
        if not self._choices:
            return None
        position = 0
        if self.slots is not None and len(self._choices) > 1:
            position = next((number for number, choice in enumerate(self._choices) if self.has_free_slot(choice)), 0)
        return self._choices.pop(position)

    def take(self, choice: Choice) -> None:
        """Take one of those left out of turn."""
        self._choices.remove(choice)

    def has_free_slot(self, choice: Choice) -> bool:
        """Tell whether a call there need not wait for its turn."""
        return self.slots is None or not self.slots.of(choice.target.upstream.name).is_full

    def has_room(self, choice: Choice) -> bool:
        """Tell whether a call there may be made, or wait for its turn."""
        return self.slots is None or not self.slots.of(choice.target.upstream.name).is_crowded

    @property
    def left(self) -> Sequence[Choice]:
        """Return the targets that were not offered yet."""
        return self._choices

    @property
    def has_more(self) -> bool:
        """Tell whether another target is left."""
        return bool(self._choices)


class Router:
    """Finds the route of a model name."""

    __slots__ = ("_any", "_default_model", "_exact", "_prefixes", "_routes")

    def __init__(self, routes: Mapping[str, Route], default_model: str | None) -> None:
        self._routes = routes
        self._exact = {name: route for name, route in routes.items() if not route.is_wildcard}
        self._prefixes = sorted(
            ((name[:-1], route) for name, route in routes.items() if route.is_wildcard), key=lambda pair: len(pair[0]), reverse=True
        )
        self._any = routes.get("*")
        self._default_model = default_model

    def plan(
        self,
        model: str | None,
        key: Key | None,
        *,
        pinned: str | None = None,
        takes_default: bool = True,
        order: Callable[[Route], Sequence[Target]] = lambda route: route.all_targets,
    ) -> RoutePlan:
        """Plan a request for `model`; `pinned` names the only upstream that can serve it (stateful ids).

        `takes_default` lets the default model answer for none: not so on paths that are not about a model, such as /v1/files.

        `order` chooses which of a route's targets to try, first to last; without it all are, as written.

        Raises ClientError: model_not_found, no_default_route, route_not_allowed, unknown_id (pinned elsewhere).
        """
        name = self._default_model if model is None and takes_default else model
        route = self._find(name)
        if route is None:
            raise ClientError("model_not_found" if name is not None else "no_default_route", param="model")
        if not may_use(key, route):
            raise ClientError("route_not_allowed", param="model")
        if pinned is None:
            targets = order(route)
        else:
            targets = [target for target in route.all_targets if target.upstream.name == pinned][:1]
        choices = [resolve(route, target, name) for target in targets]
        if not choices:
            raise ClientError("unknown_id")
        return RoutePlan(route, choices)

    def pinned(self, route_name: str, upstream: str, key: Key | None) -> RoutePlan:
        """Plan a request for an object that `upstream` made on `route_name`.

        Raises ClientError: unknown_id when either is gone, or not the key's any more.
        """
        route = self._routes.get(route_name)
        targets = () if route is None else [target for target in route.all_targets if target.upstream.name == upstream]
        if route is None or not targets or not may_use(key, route):
            raise ClientError("unknown_id")
        return RoutePlan(route, [Choice(target=targets[0], model=None, is_mapped=False)])

    def _find(self, name: str | None) -> Route | None:
        if name is None:
            return self._any
        exact = self._exact.get(name)
        if exact is not None:
            return exact
        for prefix, route in self._prefixes:
            if name.startswith(prefix) and (len(name) > len(prefix) or not prefix):
                return route
        return None


def may_use(key: Key | None, route: Route) -> bool:
    """Tell whether `key` may use `route`; without keys everything is allowed."""
    return key is None or key.routes is None or route.name in key.routes


def resolve(route: Route, target: Target, name: str | None) -> Choice:
    """Fill in the model's name at `target` for a request that asks `route` for `name`."""
    pattern = target.model
    if pattern is None or (name is None and pattern.endswith("*")):
        return Choice(target=target, model=None, is_mapped=False, fallback_on=route.fallback_on)
    if not pattern.endswith("*"):
        return Choice(target=target, model=pattern, is_mapped=True, fallback_on=route.fallback_on)
    assert name is not None
    model = pattern[:-1] + name[len(route.name) - 1 :]
    return Choice(target=target, model=model, is_mapped=False, fallback_on=route.fallback_on)
