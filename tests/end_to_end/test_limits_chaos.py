"""Hundreds of limited streams that end in every way there is, at once and through reloads: at rest nothing is held, all sums right."""

import asyncio
import json
import random
import signal
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.fakes.client import RawClient
from tests.fakes.events import chat_stream, content, role
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import EVENT_STREAM, Script, body, close, error_answer, hang, json_answer, reset, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

HEADERS = [("Authorization", "Bearer sk-alice"), ("Content-Type", "application/json")]
MODELS = ("fast", "fast", "spare", "gone", "none")
SCRIPTS: tuple[Script, ...] = (
    sse(chat_stream("a", "b", usage=(10, 2))),
    sse(chat_stream("a", "b")),
    sse(chat_stream("a"), end="fin"),
    sse([role(), content("a")], end="rst"),
    body([role(), content("a")], headers=EVENT_STREAM, end="hang"),
    json_answer({"id": "x", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}),
    error_answer(429),
    error_answer(500),
    close(),
    reset(),
    hang(),
)


def config(upstream: ScriptedUpstream, rpm: int) -> dict[str, Any]:
    return {
        "upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}, "dead": {"base_url": "http://127.0.0.1:9/v1"}},
        "routes": {
            "fast": {"to": ["mine/m"], "limits": {"rpm": "10k", "tpm": "10M"}},
            "spare": {"to": ["dead/m", "mine/m"], "limits": {"concurrency": 40}},
            "gone": "dead/m",
        },
        "keys": {
            "alice": {
                "key": "sk-alice",
                "limits": {
                    "rpm": rpm,
                    "tpm": "5M",
                    "concurrency": 60,
                    "budget": "100M tokens/day",
                    "per_route": {"fast": {"concurrency": 30}},
                },
            }
        },
        "timeouts": {"connect": "1s", "first_token": "2s", "between_tokens": "1s", "write": "1s", "total": "5s"},
    }


async def one(relay: RelayProcess, chance: random.Random) -> None:
    """Ask for something, and leave whenever."""
    patience = chance.choice((0.0, 0.002, 0.02, 0.2, 8.0, 8.0, 8.0))
    asked: dict[str, Any] = {
        "model": chance.choice(("fast", "fast", "spare", "gone", "none")),
        "messages": [],
        "stream": chance.random() < 0.8,
    }
    if chance.random() < 0.5:
        asked["max_tokens"] = chance.randint(1, 500)
    sent = json.dumps(asked).encode()
    if chance.random() < 0.05:
        sent = sent[: chance.randint(0, len(sent))]
    try:
        async with asyncio.timeout(patience), await RawClient.open(relay.port) as client:
            await client.request("POST", "/v1/chat/completions", HEADERS, sent)
            await client.read_response(within=8.0)
    except (TimeoutError, OSError, EOFError):
        return


async def run(relay: RelayProcess, upstream: ScriptedUpstream, count: int) -> None:
    chance = random.Random(7)

    async def any_script(peer: Peer) -> None:
        await chance.choice(SCRIPTS)(peer)

    upstream.answers(any_script)
    places = asyncio.Semaphore(80)

    async def place(number: int) -> None:
        async with places:
            if number % 100 == 50:
                relay.write_config(config(upstream, 4_000 + number))
                relay.process.send_signal(signal.SIGHUP)
            await one(relay, chance)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(place(number))
    metrics = await relay.settled(within=20.0)
    assert not metrics.nonzero("relay_tokens_reserved")
    assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="concurrency") == 0
    assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="key_route_concurrency") == 0
    assert not metrics.nonzero("relay_invariant_violations_total")
    outcomes = {labels["outcome"] for labels in map(dict, metrics.nonzero("relay_key_requests_total"))}
    assert {"complete", "client_gone", "upstream_cut", "upstream_failed"} <= outcomes, "the load is not what it was meant to be"
    await relay.assert_identities()


async def test_500_streams_that_end_in_every_way_leave_nothing_behind(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    await run(await relay_with(config(upstream, 4_000)), upstream, 500)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_10000_streams_that_end_in_every_way_leave_nothing_behind(
    relay_with: RelayWith, upstream: ScriptedUpstream, workers: int
) -> None:
    await run(await relay_with(config(upstream, 4_000) | {"server": {"workers": workers}}), upstream, 10_000)
