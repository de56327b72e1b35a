"""The ends that a load of clients brings about by chance if at all, each brought about on purpose."""

import asyncio
import os
import signal
from typing import Any, Final

from tests.end_to_end.test_workers import worker_of
from tests.fakes.buggy import MODEL as BUG
from tests.fakes.events import content, role
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import sse
from tests.fakes.upstream import ScriptedUpstream

CHAT: Final = "/v1/chat/completions"
KEY: Final = "sk-demo-carol"
WITHIN: Final = 15.0
"""For what takes milliseconds on a machine that does nothing else."""


def with_rare(config: dict[str, Any], upstream: ScriptedUpstream) -> dict[str, Any]:
    """Return a configuration with a place more for each of these ends."""
    upstream.route("held", sse([role(), content("a")], end="hang"))
    upstream.route("endless", sse([role(), *[content("x")] * 2000], pause=0.001))
    mine = {"base_url": upstream.url, "api_key": "sk-upstream"}
    routes = {"full": "narrowest/held", "stopped": {"to": "scripted/endless", "on_limit": "stop"}, BUG: "scripted/held"}
    return {
        **config,
        "upstreams": {**config["upstreams"], "scripted": mine, "narrowest": {**mine, "limits": {"concurrency": 1, "queue": 0}}},
        "routes": {**config["routes"], **routes},
        "keys": {**config["keys"], "carol": {"key": KEY, "limits": {"tpm": 100}}, "dora": {"key": "sk-demo-dora"}},
    }


def of_crew(upstream: ScriptedUpstream) -> dict[str, Any]:
    """Return a configuration of a relay with workers, for `end_a_worker`."""
    return {
        "server": {"workers": 2, "drain": "100ms"},
        "upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}},
        "routes": {"held": "mine/held"},
    }


async def bring_about(relay: RelayProcess, crew: RelayProcess) -> None:
    """Have a full upstream refuse, a limit stop a stream, a bug end a request, and a worker's end cut a stream."""
    async with asyncio.timeout(4 * WITHIN):
        await meet_a_full_upstream(relay)
        await reach_a_limit(relay)
        await meet_a_bug(relay)
        await end_a_worker(crew)


def _as(key: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {key}")]


async def meet_a_full_upstream(relay: RelayProcess) -> None:
    async with await relay.connect() as first:
        await first.post(CHAT, {"model": "full", "stream": True}, _as("sk-demo-dora"))
        await first.read_until(b'"a"', within=WITHIN)
        refused = await relay.post(CHAT, {"model": "full", "stream": True}, tuple(_as("sk-demo-dora")))
        assert (refused.status, refused.error_code) == (503, "overloaded")


async def reach_a_limit(relay: RelayProcess) -> None:
    answer = await relay.post(CHAT, {"model": "stopped", "stream": True, "messages": []}, tuple(_as(KEY)))
    assert (answer.status, answer.end) == (200, "cut")


async def meet_a_bug(relay: RelayProcess) -> None:
    answer = await relay.post(CHAT, {"model": BUG}, tuple(_as("sk-demo-dora")))
    assert (answer.status, answer.error_code) == (500, "internal_error")


async def end_a_worker(crew: RelayProcess) -> None:
    """Tell a worker to end that has a stream which outlasts its drain."""
    async with await crew.connect() as client:
        await client.post(CHAT, {"model": "held", "stream": True})
        await client.read_until(b'"a"', within=WITHIN)
        os.kill(worker_of(crew, client), signal.SIGTERM)
        answer = await client.read_response(within=WITHIN)
        assert (answer.end, answer.has_done) == ("cut", False)
    await crew.wait_log("worker_ready", count=3, within=WITHIN)
