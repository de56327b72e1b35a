"""Routes with several targets against a running relay: order, rests, budgets, and what an SDK is told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from tests.fakes.events import chat_stream
from tests.fakes.ports import refusing_port
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import error_answer, json_answer, respond, sse
from tests.fakes.upstream import ScriptedUpstream

HI = [{"role": "user", "content": "hi"}]
ANSWER = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        yield other


@pytest.fixture
async def third() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        yield other


def config(*upstreams: ScriptedUpstream, route: object) -> dict[str, object]:
    names = ("first", "second", "third")
    return {
        "upstreams": {name: {"base_url": up.url, "api_key": f"sk-{name}"} for name, up in zip(names, upstreams, strict=False)},
        "routes": {"fast": route},
        "timeouts": {"connect": "5s", "first_token": "8s", "between_tokens": "8s", "write": "8s", "total": "20s"},
    }


async def started(directory: Path, told: dict[str, object]) -> RelayProcess:
    relay = RelayProcess(told, directory)
    await relay.start()
    return relay


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_failing_first_target_goes_unnoticed(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path, is_stream: bool
) -> None:
    upstream.answers(error_answer(503))
    second.answers(sse(chat_stream("hello")) if is_stream else json_answer(ANSWER))
    relay = await started(tmp_path, config(upstream, second, route=["first/a", "second/b"]))
    try:
        response = await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI, "stream": is_stream})
        assert (response.status, response.end) == (200, "complete")
        headers = {name.lower(): value for name, value in response.headers}
        assert (headers[b"x-relay-upstream"], headers[b"x-relay-attempts"]) == (b"second", b"2")
        assert [request.json()["model"] for request in (*upstream.requests, *second.requests)] == ["a", "b"]
        assert (await relay.metrics()).value("relay_fallbacks_total", from_upstream="first", to_upstream="second") == 1
    finally:
        await relay.stop()


async def test_three_dead_upstreams_cost_an_sdk_three_attempts_not_nine(
    upstream: ScriptedUpstream, second: ScriptedUpstream, third: ScriptedUpstream, tmp_path: Path
) -> None:
    for dead in (upstream, second, third):
        dead.answers(error_answer(500))
    relay = await started(tmp_path, config(upstream, second, third, route=["first/a", "second/b", "third/c"]))
    try:
        async with openai.AsyncOpenAI(base_url=relay.url, api_key="none", max_retries=2) as client:
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="fast", messages=HI)  # type: ignore[arg-type]
        assert [len(dead.requests) for dead in (upstream, second, third)] == [1, 1, 1]
    finally:
        await relay.stop()


async def test_a_target_that_keeps_failing_rests_and_the_last_one_never_does(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.answers(error_answer(500))
    second.answers(json_answer(ANSWER))
    relay = await started(tmp_path, config(upstream, second, route={"to": ["first/a", "second/b"], "retries": 0}))
    try:
        for _ in range(12):
            assert (await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI})).status == 200
        assert len(upstream.requests) == 5
        assert (await relay.metrics()).value("relay_target_health", target="first/a", state="cooling") == 1
        second.answers(error_answer(500))
        known = len(upstream.requests) + len(second.requests)
        for _ in range(8):
            assert (await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI})).status == 500
        # With both at rest each request still makes one attempt, at the one whose rest ends first.
        assert len(upstream.requests) + len(second.requests) == known + 8
    finally:
        await relay.stop()


async def test_a_throttled_target_rests_for_as_long_as_it_asks(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.answers(respond(429, [("Content-Type", "application/json"), ("Retry-After", "30")], b'{"error":{"type":"requests"}}'))
    second.answers(json_answer(ANSWER))
    relay = await started(tmp_path, config(upstream, second, route=["first/a", "second/b"]))
    try:
        for _ in range(4):
            assert (await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI})).status == 200
        assert len(upstream.requests) == 1
    finally:
        await relay.stop()


@pytest.mark.parametrize(
    ("said", "attempts"),
    [("3600", 1), ("999999999999", 1), ("Fri, 31 Dec 9999 23:59:59 GMT", 1), ("soon", 2), ("-5", 2), ("nan", 2), ("0.2", 2)],
)
async def test_whatever_a_retry_after_says_an_sdk_asks_no_more_often_than_helps(
    upstream: ScriptedUpstream, tmp_path: Path, said: str, attempts: int
) -> None:
    upstream.answers(respond(429, [("Content-Type", "application/json"), ("Retry-After", said)], b'{"error":{"type":"requests"}}'))
    relay = await started(tmp_path, config(upstream, route={"to": ["first/a"], "retries": 0}))
    try:
        async with openai.AsyncOpenAI(base_url=relay.url, api_key="none", max_retries=1) as client:
            with pytest.raises(openai.RateLimitError) as raised:
                await client.chat.completions.create(model="fast", messages=HI)  # type: ignore[arg-type]
        assert len(upstream.requests) == attempts
        assert raised.value.response.headers["retry-after"] == said
    finally:
        await relay.stop()


async def test_a_callers_own_mistake_neither_falls_back_nor_counts(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.answers(error_answer(400))
    relay = await started(tmp_path, config(upstream, second, route=["first/a", "second/b"]))
    try:
        for _ in range(8):
            assert (await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI})).status == 400
        assert (len(upstream.requests), len(second.requests)) == (8, 0)
        assert (await relay.metrics()).value("relay_target_health", target="first/a", state="healthy") == 1
    finally:
        await relay.stop()


async def test_refused_targets_cost_no_attempt(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(json_answer(ANSWER))
    with refusing_port() as port:
        told = config(upstream, route=["dead/a", "dead/b", "dead/c", "dead/d", "first/e"])
        told["upstreams"]["dead"] = {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "sk-dead"}  # type: ignore[index]
        relay = await started(tmp_path, told)
        try:
            assert (await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI})).status == 200
        finally:
            await relay.stop()


async def test_a_request_that_stores_something_is_sent_once(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(error_answer(500))
    relay = await started(tmp_path, config(upstream, second, route=["first/a", "second/b"]))
    try:
        response = await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI, "store": True})
        assert response.status == 500
        assert (len(upstream.requests), len(second.requests)) == (1, 0)
    finally:
        await relay.stop()


async def test_a_balanced_route_shares_by_weight(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(json_answer(ANSWER))
    second.answers(json_answer(ANSWER))
    route = {"balance": [{"to": "first/a", "weight": 3}, {"to": "second/b", "weight": 1}]}
    relay = await started(tmp_path, config(upstream, second, route=route))
    try:
        answers = [relay.post("/v1/chat/completions", {"model": "fast", "messages": HI}) for _ in range(40)]
        assert {answer.status for answer in await asyncio.gather(*answers)} == {200}
        assert (len(upstream.requests), len(second.requests)) == (30, 10)
    finally:
        await relay.stop()


async def test_a_conversation_keeps_landing_on_the_same_target(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.answers(json_answer(ANSWER))
    second.answers(json_answer(ANSWER))
    route = {"balance": [{"to": "first/a"}, {"to": "second/b"}], "affinity": "user"}
    relay = await started(tmp_path, config(upstream, second, route=route))
    try:
        for user in range(12):
            before = (len(upstream.requests), len(second.requests))
            for _ in range(3):
                await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI, "user": f"u{user}"})
            gained = (len(upstream.requests) - before[0], len(second.requests) - before[1])
            assert sorted(gained) == [0, 3]
        assert upstream.requests and second.requests
    finally:
        await relay.stop()
