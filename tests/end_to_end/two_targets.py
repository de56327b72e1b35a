"""A route of two or three targets on a relay in the test's own loop, and the accounts that must hold afterwards."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.fakes.client import RawClient
from tests.fakes.relay import Metrics
from tests.fakes.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
ROUTE = "fast"
TIMEOUTS = {"connect": "5s", "first_token": "20s", "between_tokens": "20s", "write": "8s", "total": "60s"}


def config(upstreams: Mapping[str, ScriptedUpstream], settings: Mapping[str, object], **more: object) -> dict[str, Any]:
    """Configuration of one route that tries the upstreams in order."""
    return {
        "upstreams": {name: {"base_url": upstream.url, "api_key": f"sk-{name}"} for name, upstream in upstreams.items()},
        "routes": {ROUTE: {"to": [f"{name}/m" for name in upstreams], **settings}},
        "timeouts": TIMEOUTS,
        **more,
    }


def ask(prompt: str = "hi", *, is_stream: bool = True, **more: object) -> dict[str, object]:
    """A chat request for the route."""
    return {"model": ROUTE, "messages": [{"role": "user", "content": prompt}], "stream": is_stream, **more}


async def begin(relay: RelayInLoop, value: Mapping[str, object] | None = None) -> RawClient:
    """Send a request on a connection of its own."""
    client = await relay.connect()
    await client.post(CHAT, ask() if value is None else value)
    return client


async def at_rest(relay: RelayInLoop) -> Metrics:
    """Wait until nothing is in flight anywhere; return the metrics."""
    metrics = await relay.settled()
    await relay.assert_identities()
    assert not relay.app._running._runs
    assert not relay.app._targets._in_flight
    return metrics


@asynccontextmanager
async def running(
    directory: Path, upstreams: Mapping[str, ScriptedUpstream], settings: Mapping[str, object], **more: object
) -> AsyncIterator[RelayInLoop]:
    """Run a relay with that route; when all is well, check its accounts at the end."""
    async with relay_in_loop(config(upstreams, settings, **more), directory) as relay:
        yield relay
        await at_rest(relay)
