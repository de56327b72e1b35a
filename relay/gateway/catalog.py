"""What GET /v1/models answers: the names in the configuration, and for each wildcard its upstream's own list.

An upstream's list is kept for 60 s; one that does not come within 2 s is left out, so that a dead upstream never
makes the list fail.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final

import msgspec

from relay.config.tree import Config, Key, Route, Upstream
from relay.errors import ClientError
from relay.policy.routing import may_use

LIST_SECONDS: Final = 60.0
FETCH_SECONDS: Final = 2.0
MAX_MODELS: Final = 10_000

Fetch = Callable[[Upstream, str], Awaitable[bytes | None]]
"""Gets a path of an upstream, such as `/v1/models`; None when it did not answer 200."""


class Catalog:
    """Lists the models that a key may use."""

    __slots__ = ("_config", "_fetch", "_lists")

    def __init__(self, config: Config, fetch: Fetch) -> None:
        self._config = config
        self._fetch = fetch
        self._lists: dict[str, tuple[float, list[dict[str, Any]]]] = {}

    async def answer(self, key: Key | None, wanted: str | None) -> bytes:
        """Encode the list, or the one model `wanted`. Raises ClientError: model_not_found."""
        models = await self._models(key)
        if wanted is None:
            return msgspec.json.encode({"object": "list", "data": list(models.values())})
        model = models.get(wanted)
        if model is None:
            raise ClientError("model_not_found", param="model")
        return msgspec.json.encode(model)

    async def _models(self, key: Key | None) -> dict[str, dict[str, Any]]:
        routes = [route for route in self._config.routes.values() if may_use(key, route)]
        models = {route.name: _entry(route.name, "relay") for route in routes if not route.is_wildcard}
        wildcards = [route for route in routes if route.is_wildcard and (route.targets[0].model or "*").endswith("*")]
        upstreams = {route.targets[0].upstream.name: route.targets[0].upstream for route in wildcards}
        await asyncio.gather(*(self._refresh(upstream) for upstream in upstreams.values()))
        for route in wildcards:
            for entry in self._lists.get(route.targets[0].upstream.name, (0.0, []))[1]:
                name = _name_here(route, str(entry["id"]))
                # A route of that very name goes before the wildcard, and may not be this key's.
                if name is not None and name not in self._config.routes and len(models) < MAX_MODELS:
                    models.setdefault(name, entry | {"id": name})
        return models

    async def _refresh(self, upstream: Upstream) -> None:
        known = self._lists.get(upstream.name)
        if known is not None and monotonic() - known[0] < LIST_SECONDS:
            return
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                body = await self._fetch(upstream, "/v1/models")
        except TimeoutError:
            body = None
        if body is not None:
            self._lists[upstream.name] = (monotonic(), _parse(body))
        else:
            self._lists.pop(upstream.name, None)


def _entry(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _name_here(route: Route, model: str) -> str | None:
    """Return the name by which a client reaches an upstream's model through a wildcard route, None when it cannot."""
    pattern = (route.targets[0].model or "*")[:-1]
    return route.name[:-1] + model[len(pattern) :] if model.startswith(pattern) and len(model) > len(pattern) else None


def _parse(body: bytes) -> list[dict[str, Any]]:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return []
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        return []
    return [
        _entry(str(entry["id"]), "") | entry
        for entry in entries[:MAX_MODELS]
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    ]
