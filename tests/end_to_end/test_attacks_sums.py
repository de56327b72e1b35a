"""Numbers too large for any account: whatever a request asks for, and whatever an upstream reports, slots come back and limits hold."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT
from tests.fakes.client import Response
from tests.fakes.events import DONE, chat_stream
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import hang, json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

SLOTS = 12
LIES: list[dict[str, Any]] = [
    {"prompt_tokens": 2**53 - 1, "completion_tokens": 2**53 - 1},
    {"total_tokens": 2**63},
    {"prompt_tokens": -5, "completion_tokens": -(2**40)},
    {"prompt_tokens": 1e300, "completion_tokens": "many"},
    {"prompt_tokens": 10, "completion_tokens": 2**31, "completion_tokens_details": {"reasoning_tokens": 2**62}},
]


def config(upstream: ScriptedUpstream, price: int) -> dict[str, Any]:
    return {
        "upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}},
        "routes": {"fast": {"to": "mine/m", "limits": {"concurrency": SLOTS}}},
        "prices": {"mine/*": {"input": price, "output": price}},
        "keys": {
            "alice": {"key": "sk-alice", "limits": {"budget": "100 USD/day"}},
            "bob": {"key": "sk-bob", "limits": {"budget": "1M tokens/day", "tpm": 100_000}},
            "carol": {"key": "sk-carol"},
        },
    }


async def ask(relay: RelayProcess, key: str, **more: Any) -> Response:
    return await relay.post(CHAT, {"model": "fast", "messages": [], **more}, (("Authorization", f"Bearer sk-{key}"),))


async def every_slot_is_free(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    """Assert that as many run at once as the route allows: a slot that was lost would show."""
    together = asyncio.Barrier(SLOTS)

    async def script(peer: Peer) -> None:
        await together.wait()
        await json_answer(ANSWER)(peer)

    upstream.answers(script)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(ask(relay, "carol") for _ in range(SLOTS)))
    assert Counter(answer.status for answer in answers) == {200: SLOTS}
    await relay.assert_identities()


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_that_cannot_be_costs_no_slot(relay_with: RelayWith, upstream: ScriptedUpstream, stream: bool) -> None:
    relay = await relay_with(config(upstream, 75))
    for lie in LIES:
        told = b"data: " + json.dumps({"choices": [], "usage": lie}).encode() + b"\n\n"
        upstream.answers(sse([*chat_stream("hi", done=False), told, DONE]) if stream else json_answer(ANSWER | {"usage": lie}))
        for key in ("alice", "bob", "carol"):
            for _ in range(2):
                answer = await ask(relay, key, stream=stream, max_tokens=5)
                assert answer.status in (200, 429), answer.raw
    await every_slot_is_free(relay, upstream)


async def test_requests_for_endless_answers_are_within_what_can_be_counted(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    # What costs nothing is admitted by a budget in dollars however long it is.
    relay = await relay_with(config(upstream, 0))
    together = asyncio.Barrier(SLOTS)

    async def script(peer: Peer) -> None:
        await together.wait()
        await json_answer(ANSWER)(peer)

    upstream.answers(script)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(ask(relay, "alice", max_tokens=999_999_999, n=999_999_999) for _ in range(SLOTS)))
    assert Counter(answer.status for answer in answers) == {200: SLOTS}
    await every_slot_is_free(relay, upstream)


@pytest.mark.parametrize("path", ["/v1/chat/%63ompletions", "/v1/chat/completions/", "/v1/Chat%2FCompletions;a=b"])
async def test_another_spelling_of_the_path_is_no_way_around_a_limit(relay_with: RelayWith, upstream: ScriptedUpstream, path: str) -> None:
    keys = {"alice": {"key": "sk-alice", "limits": {"tpm": 200}}}
    relay = await relay_with(config(upstream, 75) | {"keys": keys})
    upstream.answers(sse(chat_stream(*["word"] * 60)))
    body = {"model": "fast", "stream": True, "messages": []}
    statuses = [(await relay.post(path, body, (("Authorization", "Bearer sk-alice"),))).status for _ in range(4)]
    assert (statuses[0], statuses[-1]) == (200, 429)
    assert upstream.requests[0].target == path.encode()
    assert upstream.requests[0].json()["stream_options"] == {"include_usage": True}
    twice = b'{"model":"fast","Model":"dear","messages":[]}'
    refused = await relay.post(path, twice, (("Authorization", "Bearer sk-alice"),))
    assert (refused.status, refused.error_code) == (400, "duplicate_key")


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_answer_is_no_way_around_a_budget(relay_with: RelayWith, upstream: ScriptedUpstream, stream: bool) -> None:
    keys = {"alice": {"key": "sk-alice", "limits": {"budget": "1000 tokens/day"}}}
    relay = await relay_with(config(upstream, 75) | {"keys": keys})
    upstream.answers(hang())
    body = {"model": "fast", "stream": stream, "max_tokens": 1, "messages": [{"role": "user", "content": "word " * 560}]}
    async with await relay.connect() as client:
        await client.post(CHAT, body, [("Authorization", "Bearer sk-alice")])
        await upstream.wait_for("m")
    await relay.assert_identities()
    refused = await relay.post(CHAT, body, (("Authorization", "Bearer sk-alice"),))
    assert (refused.status, refused.error_code) == (429, "budget_exhausted")
