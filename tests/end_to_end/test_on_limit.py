"""What becomes of answers that reach a limit of tokens while they flow: they finish, are kept within what is left, or stop."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.end_to_end.sdk import Sdk
from tests.fakes.client import Response
from tests.fakes.events import DONE, chat_chunk, chat_stream, content, role
from tests.fakes.scripts import json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
ENDLESS = 2000
"""Events of an answer that only a limit can end."""
JSON_ANSWER = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}


def config(upstream: ScriptedUpstream, policy: str, limits: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}},
        "routes": {"fast": {"to": "mine/m", "on_limit": policy}},
        "keys": {"alice": {"key": "sk-alice", "limits": limits}},
        **more,
    }


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "fast", "messages": [], "stream": True, **more}


async def ask(relay: RelayInLoop, **more: Any) -> Response:
    return await relay.post(CHAT, asked(**more), [("Authorization", "Bearer sk-alice")])


def texts(response: Response) -> int:
    return response.body.count(b'"content":"x"')


async def used(relay: RelayInLoop, limit: str = "tpm") -> float:
    return (await relay.settled()).value("relay_key_limit_used_ratio", key="alice", limit=limit)


def endless(count: int = ENDLESS, *, at_once: int = 1) -> Any:
    events = [role(), *[b"".join([content("x")] * at_once) for _ in range(count // at_once)], chat_chunk(finish="stop"), DONE]
    return sse(events, pause=0.001)


@pytest.mark.parametrize("at_once", [1, 7])
async def test_five_streams_stop_at_a_limit_of_100_tokens(upstream: ScriptedUpstream, tmp_path: Path, at_once: int) -> None:
    upstream.answers(endless(at_once=at_once))
    async with relay_in_loop(config(upstream, "stop", {"tpm": 100}), tmp_path) as relay:
        answers = await asyncio.gather(*(ask(relay) for _ in range(5)))
        served = [answer for answer in answers if answer.status == 200]
        assert len(served) > 1, "what nobody has used yet is not reserved"
        assert {answer.status for answer in answers} <= {200, 429}
        for answer in served:
            assert answer.end == "cut" and not answer.has_done
            error = json.loads(answer.data[-1])["error"]
            assert (error["code"], error["type"]) == ("limit_reached", "rate_limit_error")
        metrics = await relay.settled()
        lines = relay.logs("request", outcome="limit_reached")
        assert len(lines) == len(served) == metrics.sum("relay_requests_total", outcome="limit_reached")
        prompts = sum(line["tokens_in"] for line in lines)
        assert 100 - len(served) <= prompts + sum(map(texts, served)) <= 100 + len(served)
        assert {line["tokens_source"] for line in lines} == {"estimated"}
        assert sum(line["tokens_out"] for line in lines) == sum(map(texts, served))
        async with asyncio.timeout(5):
            while any(request.closed_how is None for request in upstream.requests):
                await asyncio.sleep(0.01)
        assert metrics.value("relay_tokens_reserved", key="alice") == 0
        await relay.assert_identities()


async def test_a_large_event_counts_as_many_tokens(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse([role(), content("x"), *[content("y" * 4000)] * 5, chat_chunk(finish="stop"), DONE], pause=0.001))
    async with relay_in_loop(config(upstream, "stop", {"tpm": 1500}), tmp_path) as relay:
        answer = await ask(relay)
        assert (answer.end, answer.body.count(b"yyyy" * 1000)) == ("cut", 2), "a thousand tokens each"


async def test_an_answer_that_has_come_to_its_end_is_not_stopped(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse(chat_stream(*"xxx", usage=(5000, 3))))
    async with relay_in_loop(config(upstream, "stop", {"tpm": 1000}), tmp_path) as relay:
        answer = await ask(relay)
        assert (answer.end, answer.has_done) == ("complete", True)
        assert await used(relay) == pytest.approx(5.003), "what the upstream says is what counts"


async def test_a_said_bound_is_reserved_and_what_is_unused_comes_back(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse(chat_stream(*"xxx", usage=(10, 3))))
    async with relay_in_loop(config(upstream, "stop", {"tpm": 1000}), tmp_path) as relay:
        for _ in range(4):
            assert (await ask(relay, max_tokens=900)).end == "complete"
        assert await used(relay) == pytest.approx(0.052)
        upstream.answers(sse(chat_stream(*"xxx", usage=(0, 0))))
        assert (await ask(relay)).end == "complete"
        assert await used(relay) == pytest.approx(0.052), "an explicit zero stays zero"


async def test_a_budget_stops_a_stream_too(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(endless())
    prices = {"mine/m": {"input": 0, "output": 1}}
    async with relay_in_loop(config(upstream, "stop", {"budget": "0.0001 USD/day"}, prices=prices), tmp_path) as relay:
        answer = await ask(relay)
        assert (answer.end, texts(answer)) == ("cut", 101)
        assert await used(relay, "budget") == pytest.approx(1.01)
        assert (await ask(relay)).error_code == "budget_exhausted"


async def test_finish_lets_it_go_on_and_counts(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await sse([role(), *[content("x")] * 3000], end="hang")(peer) if gate.is_set() else None
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in [role(), *[content("x")] * 1500]:
            await peer.send_chunk(event)
        await gate.wait()
        for event in [chat_chunk(finish="stop"), DONE]:
            await peer.send_chunk(event)
        await peer.send(b"0\r\n\r\n")

    upstream.answers(script)
    async with relay_in_loop(config(upstream, "finish", {"tpm": 1000}), tmp_path) as relay:
        task = asyncio.create_task(ask(relay))
        async with asyncio.timeout(10):
            while (await relay.metrics()).value("relay_key_limit_used_ratio", key="alice", limit="tpm") < 1.48:
                await asyncio.sleep(0.02)
        assert (await ask(relay)).error_code == "rate_limit_tpm", "what flows counts for others at once"
        gate.set()
        answer = await task
        assert (answer.end, texts(answer)) == ("complete", 1500)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_clamp_keeps_an_answer_within_what_is_left(upstream: ScriptedUpstream, tmp_path: Path, is_stream: bool) -> None:
    used_up = {"usage": {"prompt_tokens": 400, "completion_tokens": 100, "total_tokens": 500}}
    upstream.answers(json_answer(JSON_ANSWER | used_up))
    async with relay_in_loop(config(upstream, "clamp", {"tpm": 1000}), tmp_path) as relay:
        first = await ask(relay, stream=False, max_tokens=600)
        assert (first.status, first.header("x-relay-max-tokens")) == (200, None)
        assert upstream.requests[0].json()["max_tokens"] == 600, "it fits"
        upstream.answers(sse(chat_stream("x", usage=(20, 1))) if is_stream else json_answer(JSON_ANSWER))
        second = await ask(relay, stream=is_stream, max_tokens=600, n=2)
        told = int(second.header("x-relay-max-tokens") or 0)
        assert upstream.requests[1].json()["max_tokens"] == told
        assert 200 < told < 250, "half of what is left, less the prompt, for each of two"
        assert second.header("x-relay-rewritten") == (b"usage" if is_stream else b"clamp")
        assert second.header("x-ratelimit-remaining-tokens") in (b"0", b"1")
        third = await ask(relay, stream=False, max_tokens=5000)
        assert third.status == 200 and upstream.requests[2].json()["max_tokens"] < 1000


async def test_clamp_refuses_what_leaves_no_answer_at_all(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(json_answer(JSON_ANSWER))
    async with relay_in_loop(config(upstream, "clamp", {"tpm": 20}), tmp_path) as relay:
        answer = await ask(relay, messages=[{"role": "user", "content": "a" * 400}])
        assert (answer.status, answer.error_code) == (429, "rate_limit_tpm")


@pytest.mark.parametrize("flavour", ["sync", "async"])
async def test_the_sdk_raises_when_a_limit_stops_a_stream(upstream: ScriptedUpstream, tmp_path: Path, flavour: Any) -> None:
    upstream.answers(endless())
    async with relay_in_loop(config(upstream, "stop", {"tpm": 60}), tmp_path) as relay:
        async with Sdk(flavour, f"http://127.0.0.1:{relay.port}/v1") as sdk:
            with pytest.raises(openai.APIError) as raised:
                await sdk.items("chat.completions.create", model="fast", messages=[])
        assert raised.value.code == "limit_reached"
        assert len(raised.value.chunks) > 10  # type: ignore[attr-defined]
