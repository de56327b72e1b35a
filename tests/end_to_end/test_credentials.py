"""Several credentials of one upstream against a running relay, and what a caller is told of attempts that failed."""

import pytest

from tests.conftest import RelayWith
from tests.fakes.ports import refusing_port
from tests.fakes.scripts import error_answer, json_answer, respond
from tests.fakes.upstream import Peer, ScriptedUpstream

ASK: dict[str, object] = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
ANSWER: dict[str, object] = {"id": "x", "object": "chat.completion", "choices": []}
TIMEOUTS = {"connect": "5s", "first_token": "5s", "total": "20s"}


def told(url: str, route: object = "mine/m") -> dict[str, object]:
    mine = {"base_url": url, "api_keys": ["sk-one", "sk-two"]}
    return {"upstreams": {"mine": mine}, "routes": {"fast": route}, "timeouts": TIMEOUTS}


def used(upstream: ScriptedUpstream) -> list[bytes]:
    return [dict(request.headers)[b"Authorization"].removeprefix(b"Bearer ") for request in upstream.requests]


async def test_a_refused_credential_rests_and_the_next_one_answers(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    async def script(peer: Peer) -> None:
        is_bad = dict(peer.request.headers)[b"Authorization"] == b"Bearer sk-one"
        await (error_answer(401) if is_bad else json_answer(ANSWER))(peer)

    upstream.answers(script)
    relay = await relay_with(told(upstream.url))
    assert [(await relay.post(CHAT, ASK)).status for _ in range(3)] == [200] * 3
    assert used(upstream) == [b"sk-one", b"sk-two", b"sk-two", b"sk-two"]
    metrics = await relay.metrics()
    assert metrics.value("relay_upstream_credentials", upstream="mine", state="cooling") == 1
    assert metrics.value("relay_upstream_credentials", upstream="mine", state="healthy") == 1
    assert metrics.sum("relay_retries_total", upstream="mine", reason="http_401") == 1
    assert metrics.sum("relay_fallbacks_total") == 0


async def test_a_throttled_credential_rests_for_as_long_as_it_is_asked_to(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    throttled = respond(429, [("Content-Type", "application/json"), ("Retry-After", "30")], b'{"error":{"type":"requests"}}')

    async def script(peer: Peer) -> None:
        is_throttled = dict(peer.request.headers)[b"Authorization"] == b"Bearer sk-one"
        await (throttled if is_throttled else json_answer(ANSWER))(peer)

    upstream.answers(script)
    relay = await relay_with(told(upstream.url))
    assert [(await relay.post(CHAT, ASK)).status for _ in range(3)] == [200] * 3
    assert used(upstream).count(b"sk-one") == 1


async def test_an_error_of_the_relay_lists_the_attempts_without_secrets(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    upstream.answers(error_answer(401))
    with refusing_port() as port:
        config = told(upstream.url, ["dead/a", "mine/m"])
        config["upstreams"]["dead"] = {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "sk-dead"}  # type: ignore[index]
        relay = await relay_with(config)
        response = await relay.post(CHAT, ASK)
    error = response.json()["error"]
    assert isinstance(error, dict)
    assert error["attempts"] == [
        {"target": "dead/a", "reason": "connect_error"},
        {"target": "mine/m", "reason": "http_401"},
        {"target": "mine/m", "reason": "http_401"},
    ]
    assert b"sk-" not in response.body


@pytest.mark.parametrize(("said", "waits"), [(None, 0.0), ("0.2", 0.2)])
async def test_an_only_target_is_asked_again_when_it_says_and_the_client_never_notices(
    upstream: ScriptedUpstream, relay_with: RelayWith, said: str | None, waits: float
) -> None:
    refusal = error_answer(503, headers=() if said is None else (("Retry-After", said),))
    answers = iter([refusal, json_answer(ANSWER)])

    async def script(peer: Peer) -> None:
        await next(answers)(peer)

    upstream.answers(script)
    relay = await relay_with(told(upstream.url))
    response = await relay.post(CHAT, ASK)
    assert (response.status, response.header("x-relay-attempts")) == (200, b"2")
    first, second = upstream.requests
    # A timer may fire a little early.
    assert second.arrived_at - first.arrived_at > waits - 0.01


async def test_an_only_target_that_asks_for_a_longer_wait_is_not_waited_for(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    upstream.answers(error_answer(503, headers=(("Retry-After", "5"),)))
    relay = await relay_with(told(upstream.url))
    response = await relay.post(CHAT, ASK)
    assert (response.status, response.header("retry-after"), len(upstream.requests)) == (503, b"5", 1)


async def test_a_refusal_whose_message_alone_tells_falls_back_where_that_is_asked_for(
    upstream: ScriptedUpstream, relay_with: RelayWith
) -> None:
    body = b'{"error":{"message":"This model\'s maximum context length is 8192 tokens.","type":"invalid_request_error","code":null}}'
    async with ScriptedUpstream() as second:
        upstream.answers(respond(400, [("Content-Type", "application/json")], body))
        second.answers(json_answer(ANSWER))
        config = told(upstream.url, {"to": ["mine/m", "second/m"], "fallback_on": ["context_length"]})
        config["routes"]["strict"] = ["mine/m", "second/m"]  # type: ignore[index]
        config["upstreams"]["second"] = {"base_url": second.url, "api_key": "sk-second"}  # type: ignore[index]
        relay = await relay_with(config)
        assert (await relay.post(CHAT, ASK)).header("x-relay-upstream") == b"second"
        refused = await relay.post(CHAT, {**ASK, "model": "strict"})
        assert (refused.status, refused.body) == (400, body)
        second.answers(respond(400, [("Content-Type", "application/json")], body))
        assert (await relay.post(CHAT, ASK)).body == body
        # Another target was asked, but the request is what was wrong.
        assert len(await relay.wait_log(outcome="rejected", count=2)) == 2
