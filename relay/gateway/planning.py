"""Where a request goes: the plan of its route, and objects that live at one upstream."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from relay.config.tree import Config
from relay.dialects.openai import makes_object, object_id
from relay.errors import ClientError
from relay.exchange import ClientRequest, Exchange, Operation
from relay.gateway.catalog import Catalog
from relay.policy.owners import Owner, Owners
from relay.policy.routing import RoutePlan, Router
from relay.policy.targets import Targets
from relay.providers.openai import OpenAIProvider


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one configuration means: swapped whole by a reload, kept by the exchanges that began with it."""

    config: Config
    router: Router
    providers: dict[str, OpenAIProvider]
    catalog: Catalog

    total_seconds: float
    """The longest that any route lets a request take: what a body may take before its route is known."""


class Siblings(Protocol):
    """Other processes of the same relay, among whom an object has one owner whoever of them saw it made."""

    def made(self, object_id: str, owner: Owner) -> None:
        """Remember who made `object_id`, unless that is known."""

    async def owner(self, object_id: str) -> Owner | None:
        """Return the owner of `object_id`, or None when no process knows it."""


class Planner:
    """Makes the plans, and remembers which upstream made which object."""

    __slots__ = ("_chance", "_owners", "_siblings", "_targets")

    def __init__(self, targets: Targets, chance: Callable[[], float], siblings: Siblings | None) -> None:
        """Order targets by what is known of `targets`; `chance` gives numbers in [0, 1); if there are `siblings`, they know the owners."""
        self._siblings = siblings
        self._targets = targets
        self._chance = chance
        self._owners = Owners()

    async def plan(self, snapshot: Snapshot, request: ClientRequest) -> RoutePlan:
        """Plan for a request. Raises ClientError: those of `Router.plan`, and unknown_id."""
        object_name = object_id(request.path)
        if object_name is None and request.body is not None:
            object_name = request.body.previous_response_id
        if object_name is None:
            return self._free_plan(snapshot, request)
        owner = self._owners.find(object_name) if self._siblings is None else await self._siblings.owner(object_name)
        return self._pinned(snapshot, request, owner)

    def _free_plan(self, snapshot: Snapshot, request: ClientRequest) -> RoutePlan:
        """Plan for a request that any target of its route may answer."""
        return snapshot.router.plan(
            request.model,
            request.key,
            takes_default=request.body is not None,
            order=lambda route: self._targets.order(route, request, monotonic(), self._chance()),
        )

    def _pinned(self, snapshot: Snapshot, request: ClientRequest, owner: Owner | None) -> RoutePlan:
        """Plan for an object that lives at one upstream; to another key it does not exist."""
        if owner is None:
            if len(snapshot.config.upstreams) > 1:
                raise ClientError("unknown_id")
            return self._free_plan(snapshot, request)
        if owner.key != (None if request.key is None else request.key.name):
            raise ClientError("unknown_id")
        if request.body is not None:
            return snapshot.router.plan(request.model, request.key, pinned=owner.upstream)
        return snapshot.router.pinned(owner.route, owner.upstream, request.key)

    def remember(self, exchange: Exchange) -> None:
        """Remember who made the object that this answer told of."""
        if not exchange.attempts or exchange.route is None:
            return
        request = exchange.request
        made = exchange.attempts[-1].meter.response_id
        is_stored = request.operation is Operation.RESPONSES or (request.body is not None and request.body.store)
        if made is not None and (is_stored or (request.method == "POST" and makes_object(request.path))):
            owner = Owner(
                upstream=exchange.attempts[-1].target.upstream.name,
                route=exchange.route.name,
                key=None if request.key is None else request.key.name,
            )
            (self._owners if self._siblings is None else self._siblings).made(made, owner)
