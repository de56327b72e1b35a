"""Health checks against a running relay: what they send, what rests for them, and when they stop."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import error_answer, hang, json_answer, respond
from tests.fakes.upstream import ScriptedUpstream

ANSWER = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
ASK = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
WITHIN = 20.0
"""Ten times what a few checks a second apart take."""


@pytest.fixture
async def second() -> Any:
    async with ScriptedUpstream() as other:
        yield other


def config(first: ScriptedUpstream, second: ScriptedUpstream, **check: object) -> dict[str, Any]:
    health = {"path": "/models?limit=1", "every": "1s", "timeout": "1s", **check}
    return {
        "upstreams": {
            "first": {"base_url": first.url, "api_key": "sk-first", "health": health},
            "second": {"base_url": second.url, "api_key": "sk-second"},
        },
        "routes": {"fast": ["first/a", "second/b"], "alone": "first/a"},
    }


async def until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(WITHIN):
        while not await is_so():
            await asyncio.sleep(0.05)


async def health_is(relay: RelayProcess, state: str) -> None:
    async def is_so() -> bool:
        return (await relay.metrics()).sum("relay_target_health", target="first/a", route="fast", state=state) == 1

    await until(is_so)


async def test_an_upstream_that_fails_its_checks_rests_and_comes_back_with_the_first_good_one(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith
) -> None:
    upstream.answers(json_answer(ANSWER))
    second.answers(json_answer(ANSWER))
    upstream.route("/v1/models", error_answer(503))
    relay = await relay_with(config(upstream, second))
    await health_is(relay, "cooling")
    assert [line["status"] for line in await relay.wait_log("health_check", upstream="first", state="ill")] == [503]
    assert (await relay.post("/v1/chat/completions", ASK)).header("x-relay-upstream") == b"second"
    upstream.route("/v1/models", respond(200))
    await health_is(relay, "healthy")
    await relay.wait_log("health_check", upstream="first", state="well")
    assert (await relay.post("/v1/chat/completions", ASK)).header("x-relay-upstream") == b"first"
    (check, *_) = upstream.of("/v1/models")
    assert (check.method, check.target, check.header("authorization")) == (b"GET", b"/v1/models?limit=1", b"Bearer sk-first")
    assert [line["state"] for line in relay.logs("health_check")] == ["ill", "well"]


async def test_the_last_target_of_a_route_is_never_out_whatever_the_checks_say(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith
) -> None:
    upstream.answers(json_answer(ANSWER))
    upstream.route("/v1/models", error_answer(503))
    relay = await relay_with(config(upstream, second))
    await health_is(relay, "cooling")
    answer = await relay.post("/v1/chat/completions", {**ASK, "model": "alone"})
    assert (answer.status, answer.header("x-relay-upstream")) == (200, b"first")


async def test_a_good_check_ends_the_rest_after_failures_early(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith
) -> None:
    upstream.answers(error_answer(500))
    second.answers(json_answer(ANSWER))
    upstream.route("/v1/models", hang())
    relay = await relay_with(config(upstream, second))
    for _ in range(5):
        await relay.post("/v1/chat/completions", ASK)
    upstream.answers(json_answer(ANSWER))
    assert (await relay.post("/v1/chat/completions", ASK)).header("x-relay-upstream") == b"second"
    upstream.route("/v1/models", respond(200))

    async def is_back() -> bool:
        return (await relay.post("/v1/chat/completions", ASK)).header("x-relay-upstream") == b"first"

    # A rest after failures lasts at least 8 s, one for signs ends with the good one.
    await until(is_back)


async def test_a_check_that_is_refused_says_nothing(upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith) -> None:
    upstream.answers(json_answer(ANSWER))
    upstream.route("/v1/models", error_answer(403))
    relay = await relay_with(config(upstream, second))
    await upstream.wait_for("/v1/models", 4, within=WITHIN)
    assert (await relay.post("/v1/chat/completions", ASK)).header("x-relay-upstream") == b"first"
    assert [line["state"] for line in relay.logs("health_check")] == ["unclear"]


async def test_a_reload_without_checks_stops_them_and_a_stop_does_not_wait_for_them(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.route("/v1/models", hang())
    relay = RelayProcess(config(upstream, second, timeout="1h"), tmp_path)
    await relay.start()
    try:
        (check,) = await upstream.wait_for("/v1/models", within=WITHIN)
        plain = config(upstream, second)
        del plain["upstreams"]["first"]["health"]
        relay.write_config(plain)
        relay.process.send_signal(1)
        await relay.wait_log("reload", within=WITHIN)
        assert await upstream.wait_closed(check) in ("fin", "rst")
        relay.write_config(config(upstream, second, timeout="1h"))
        relay.process.send_signal(1)
        await upstream.wait_for("/v1/models", 2, within=WITHIN)
    finally:
        await relay.stop()
