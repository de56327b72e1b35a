"""Upstreams that take only so many calls at once, against a running relay: what waits, what goes elsewhere, what is refused."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.fakes import events
from tests.fakes.client import RawClient, Response
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import error_answer, json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

ANSWER = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
CHAT = "/v1/chat/completions"
WITHIN = 20.0


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        yield other


def config(first: ScriptedUpstream, second: ScriptedUpstream | None = None, **limits: object) -> dict[str, Any]:
    upstreams = {"first": {"base_url": first.url, "api_key": "sk-first", "limits": {"concurrency": 1, **limits}}}
    if second is not None:
        upstreams["second"] = {"base_url": second.url, "api_key": "sk-second"}
    routes = {"fast": ["first/a"] if second is None else ["first/a", "second/b"]}
    return {"upstreams": upstreams, "routes": routes, "timeouts": {"connect": "5s", "first_token": "10s", "between_tokens": "10s"}}


def ask(*, stream: bool = False) -> dict[str, object]:
    return {"model": "fast", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}


class Gate:
    """A script that answers when the test says so, and knows how many answers are under way."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.current = self.most = 0

    async def __call__(self, peer: Peer) -> None:
        self.current += 1
        self.most = max(self.most, self.current)
        try:
            await self.opened.wait()
            await json_answer(ANSWER)(peer)
        finally:
            self.current -= 1


async def queued(relay: RelayProcess, count: int) -> None:
    async with asyncio.timeout(WITHIN):
        while (await relay.metrics()).value("relay_requests_queued", route="fast") != count:
            await asyncio.sleep(0.02)


async def test_what_finds_no_slot_waits_for_its_turn_in_order(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    gate = Gate()
    upstream.answers(gate)
    relay = await relay_with(config(upstream))
    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(relay.post(CHAT, {**ask(), "user": str(number)})))
        await (queued(relay, number) if number else upstream.wait_for("a"))
    metrics = await relay.metrics()
    assert metrics.value("relay_upstream_in_flight", upstream="first") == 1
    assert len(upstream.requests) == 1
    gate.opened.set()
    assert {(await task).status for task in tasks} == {200}
    assert [request.json()["user"] for request in upstream.requests] == ["0", "1", "2"]
    assert gate.most == 1
    metrics = await relay.settled()
    assert metrics.value("relay_queue_wait_seconds_count", route="fast") == 2
    assert not metrics.value("relay_requests_queued", route="fast")
    lines = relay.logs("request")
    assert [line["queue_ms"] > 0 for line in lines] == [False, True, True]
    assert all(line["overhead_ms"] < 1000 for line in lines)
    await relay.assert_identities()


async def test_f38_a_full_queue_and_a_wait_that_takes_too_long_are_refused_without_an_attempt(
    upstream: ScriptedUpstream, relay_with: RelayWith
) -> None:
    gate = Gate()
    upstream.answers(gate)
    relay = await relay_with(config(upstream, queue=1, queue_wait="1s"))
    first = asyncio.create_task(relay.post(CHAT, ask()))
    await upstream.wait_for("a")
    waiting = asyncio.create_task(relay.post(CHAT, ask()))
    await queued(relay, 1)
    crowded = await relay.post(CHAT, ask())
    for refused in (crowded, await waiting):
        assert (refused.status, refused.error_code, refused.header("retry-after")) == (503, "overloaded", b"1")
    gate.opened.set()
    assert (await first).status == 200
    assert len(upstream.requests) == 1
    metrics = await relay.settled()
    assert metrics.value("relay_requests_total", route="fast", outcome="overloaded") == 2
    assert [line["attempts"] for line in relay.logs("request", outcome="overloaded")] == [0, 0]
    # Being full says nothing of a target's health.
    assert metrics.value("relay_target_health", target="first/a", state="healthy") == 1
    await relay.assert_identities()


async def test_a_target_with_a_free_slot_goes_before_a_queue_and_a_full_one_is_still_a_fallback(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith
) -> None:
    gate = Gate()
    upstream.answers(gate)
    second.answers(json_answer(ANSWER))
    relay = await relay_with(config(upstream, second))
    first = asyncio.create_task(relay.post(CHAT, ask()))
    await upstream.wait_for("a")
    elsewhere = await relay.post(CHAT, ask())
    assert (elsewhere.header("x-relay-upstream"), elsewhere.header("x-relay-attempts")) == (b"second", b"1")
    second.answers(error_answer(500))
    falling_back = asyncio.create_task(relay.post(CHAT, ask()))
    await queued(relay, 1)
    gate.opened.set()
    assert (await first).status == 200
    answer = await falling_back
    assert (answer.status, answer.header("x-relay-upstream"), answer.header("x-relay-attempts")) == (200, b"first", b"2")
    await relay.assert_identities()


async def test_one_who_leaves_the_queue_is_served_no_more(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    gate = Gate()
    upstream.answers(gate)
    relay = await relay_with(config(upstream))
    first = asyncio.create_task(relay.post(CHAT, ask()))
    await upstream.wait_for("a")
    async with await relay.connect() as leaving:
        await leaving.post(CHAT, ask())
        await queued(relay, 1)
        leaving.rst()
        await queued(relay, 0)
    gate.opened.set()
    assert (await first).status == 200
    (line,) = await relay.wait_log(outcome="client_gone")
    assert (line["attempts"], line["phase"]) == (0, "queue")
    assert len(upstream.requests) == 1
    await relay.assert_identities()


async def test_a_reload_with_more_slots_serves_those_who_wait(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    gate = Gate()
    upstream.answers(gate)
    relay = await relay_with(config(upstream))
    tasks = [asyncio.create_task(relay.post(CHAT, ask())) for _ in range(4)]
    await queued(relay, 3)
    relay.write_config(config(upstream, concurrency=3))
    relay.process.send_signal(1)
    async with asyncio.timeout(WITHIN):
        while gate.current < 3:
            await asyncio.sleep(0.02)
    gate.opened.set()
    assert {(await task).status for task in tasks} == {200}
    assert gate.most == 3


async def test_a_stop_refuses_those_who_wait(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    gate = Gate()
    upstream.answers(gate)
    relay = await relay_with({**config(upstream, queue_wait="60s"), "server": {"drain": "1s"}})
    tasks = [asyncio.create_task(relay.post(CHAT, ask())) for _ in range(2)]
    await queued(relay, 1)
    relay.process.send_signal(15)
    answers = [await task for task in tasks]
    assert {(answer.status, answer.error_code) for answer in answers} == {(503, "server_shutting_down")}
    gate.opened.set()


async def test_under_disconnects_the_upstream_never_sees_more_than_the_limit_and_no_slot_is_lost(
    upstream: ScriptedUpstream, relay_with: RelayWith
) -> None:
    chance = random.Random(3)
    limit = 4
    most = 0
    live: set[Peer] = set()
    stream = sse([events.role(), *[events.content("x")] * 4, events.DONE], pause=0.005)

    async def script(peer: Peer) -> None:
        nonlocal most
        live.add(peer)
        try:
            await asyncio.sleep(0.01)  # the end of a connection that the relay has closed before may be read after this request
            most = max(most, sum(not each.is_gone for each in live))
            await stream(peer)
        finally:
            live.discard(peer)

    upstream.answers(script)
    relay = await relay_with(config(upstream, concurrency=limit, queue=1000, queue_wait="30s"))

    async def one() -> int | None:
        async with await relay.connect() as client:
            await client.post(CHAT, ask(stream=True))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() * 0.3)
                await left(client)
                return None
            return (await client.read_response(within=WITHIN)).status

    async def left(client: RawClient) -> None:
        client.rst() if chance.random() < 0.5 else client.fin()

    statuses = await asyncio.gather(*[one() for _ in range(150)])
    assert set(statuses) == {200, None}
    assert most == limit
    await relay.settled(within=5)
    await relay.assert_identities()
    assert (await relay.metrics()).value("relay_requests_queued", route="fast") == 0
    (load,) = (await relay.get("/admin/targets")).json()["upstreams"]  # type: ignore[index,call-overload]
    assert (load["in_flight"], load["waiting"]) == (0, 0)


def config_with_a_narrow_second(first: ScriptedUpstream, second: ScriptedUpstream) -> dict[str, Any]:
    told = config(first, second)
    told["upstreams"]["second"]["limits"] = {"concurrency": 1, "queue": 4, "queue_wait": "200ms"}
    del told["upstreams"]["first"]["limits"]
    return told


async def refused(status: int, upstream: ScriptedUpstream, second: ScriptedUpstream, relay: RelayProcess) -> Response:
    """Occupy the second target, and ask for what the first refuses."""
    gate = Gate()
    second.answers(gate)
    upstream.answers(error_answer(500))
    holding = asyncio.create_task(relay.post(CHAT, ask()))
    await second.wait_for("b")
    upstream.answers(error_answer(status, headers=[("Retry-After", "20")]))
    response = await relay.post(CHAT, ask())
    gate.opened.set()
    assert (await holding).status == 200
    return response


async def test_a_refusal_given_up_for_a_target_that_has_no_turn_in_time_is_the_answer_after_all(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith
) -> None:
    relay = await relay_with(config_with_a_narrow_second(upstream, second))
    response = await refused(429, upstream, second, relay)
    assert (response.status, response.end, response.error_code) == (429, "complete", None)
    assert b"scripted 429" in response.body
    assert (response.header("x-relay-upstream"), response.header("x-relay-attempts")) == (b"first", b"1")
    assert response.header("retry-after") is not None
    (line,) = await relay.wait_log(status=429)
    assert (line["outcome"], line["error_code"], line["attempts"]) == ("upstream_failed", None, 1)
    metrics = await relay.settled()
    assert metrics.value("relay_upstream_attempts_total", upstream="first", result="http_429") == 1
    await relay.assert_identities()


async def test_a_refusal_of_our_credential_is_not_the_answer_in_that_case_either(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith
) -> None:
    relay = await relay_with(config_with_a_narrow_second(upstream, second))
    response = await refused(401, upstream, second, relay)
    assert (response.status, response.error_code) == (502, "upstream_auth_error")
    assert b"scripted" not in response.raw


async def test_a_resend_on_a_fresh_connection_keeps_its_turn(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    gate = Gate()
    noticed = asyncio.Event()

    async def stale_once(peer: Peer) -> None:
        if peer.request.json()["user"] == "stale" and peer.request.number_on_connection:
            await noticed.wait()
            await peer.fin()
        elif peer.request.json()["user"] == "stale":
            await gate(peer)
        else:
            await json_answer(ANSWER)(peer)

    upstream.answers(stale_once)
    relay = await relay_with(config(upstream, queue=1, queue_wait="10s"))
    assert (await relay.post(CHAT, {**ask(), "user": "warm"})).status == 200
    stale = asyncio.create_task(relay.post(CHAT, {**ask(), "user": "stale"}))
    await upstream.wait_for("a", 2)
    waiting = asyncio.create_task(relay.post(CHAT, {**ask(), "user": "waiting"}))
    await queued(relay, 1)
    noticed.set()
    await upstream.wait_for("a", 3)
    gate.opened.set()
    assert ((await stale).status, (await waiting).status) == (200, 200)
    assert [request.json()["user"] for request in upstream.requests] == ["warm", "stale", "stale", "waiting"]
    await relay.assert_identities()
