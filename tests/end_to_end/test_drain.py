"""Shutting down: what runs may finish, what runs too long is told so, nothing new begins, and the process ends well."""

import asyncio
import hashlib
import json
import os
import random
import signal
import time
from contextlib import AsyncExitStack

import openai
import pytest

from tests.conftest import RelayWith
from tests.end_to_end.sdk import Sdk
from tests.fakes.client import RawClient, Response
from tests.fakes.events import chat_stream, content, role
from tests.fakes.ports import free_port
from tests.fakes.relay import Metrics, RelayProcess, config_for
from tests.fakes.scripts import JSON, Script, body, hang, head, respond, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
TIMEOUTS = {"connect": "5s", "first_token": "20s", "between_tokens": "20s", "write": "5s", "total": "60s"}
FAST_SECONDS = 3.0


async def relay_for(relay_with: RelayWith, upstream: ScriptedUpstream, drain: str, **more: object) -> RelayProcess:
    return await relay_with(config_for(upstream, server={"drain": drain}, timeouts=TIMEOUTS, **more))


async def ask(relay: RelayProcess, stack: AsyncExitStack, model: str, *, is_stream: bool = True) -> RawClient:
    client = await stack.enter_async_context(await relay.connect())
    await client.post(CHAT, {"model": model, "stream": is_stream})
    return client


def terminate(relay: RelayProcess) -> float:
    os.kill(relay.pid, signal.SIGTERM)
    return time.monotonic()


def error_of(response: Response) -> dict[str, object]:
    """The error in the last event of a stream."""
    value = json.loads(response.data[-1])["error"]
    assert isinstance(value, dict)
    return value


async def refused(relay: RelayProcess) -> None:
    """Wait until new connections are refused."""
    async with asyncio.timeout(FAST_SECONDS):
        while True:
            try:
                async with await relay.connect():
                    await asyncio.sleep(0.02)
            except ConnectionError:
                return


async def test_streams_in_flight_finish_whole_while_new_connections_are_refused(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_for(relay_with, upstream, "20s")
    events = chat_stream(*"abcdefghij")
    upstream.route("short", sse(events, pause=0.08))
    upstream.route("whole", body([b'{"id":', b'"x"}'], pause=0.8))
    async with AsyncExitStack() as stack:
        idle = await stack.enter_async_context(await relay.connect())
        await idle.request("GET", "/healthz")
        await idle.read_response(method="GET")
        streams = [await ask(relay, stack, "short") for _ in range(10)]
        await asyncio.gather(*(client.read_until(b'"a"') for client in streams))
        wholes = [await ask(relay, stack, "whole", is_stream=False) for _ in range(5)]
        await upstream.wait_for("whole", 5)
        terminate(relay)
        await refused(relay)
        await idle.read_until_close(within=FAST_SECONDS)
        for got in await asyncio.gather(*(client.read_response() for client in streams)):
            assert (got.body, got.end) == (b"".join(events), "complete")
        for got in await asyncio.gather(*(client.read_response() for client in wholes)):
            assert (got.status, got.body, got.end) == (200, b'{"id":"x"}', "complete")
    assert await relay.wait_exit() == 0
    assert [line["outcome"] for line in relay.logs("request")] == ["complete"] * 15
    (line,) = relay.logs("drain")
    assert (line["in_flight"], line["seconds"]) == (15, 20.0)
    relay.assert_quiet()


async def test_idle_relay_ends_at_once(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_for(relay_with, upstream, "20s")
    upstream.answers(respond(200, JSON, b'{"id":"x"}'))
    await relay.post(CHAT, {"model": "a"})
    async with await relay.connect():
        start = terminate(relay)
        assert await relay.wait_exit() == 0
        assert time.monotonic() - start < FAST_SECONDS
    assert relay.logs("drain") == []


async def test_stream_longer_than_the_drain_gets_an_error_event_and_no_terminator(
    relay_with: RelayWith, upstream: ScriptedUpstream
) -> None:
    relay = await relay_for(relay_with, upstream, "500ms")
    upstream.route("long", sse([role(), content("a")], end="hang"))
    upstream.route("middle", sse([role(), content("a"), content("b")[:-7]], end="hang"))
    upstream.route("silent", hang())
    upstream.route("half", body([b'{"id":'], end="hang"))
    async with AsyncExitStack() as stack:
        long, middle = await ask(relay, stack, "long"), await ask(relay, stack, "middle")
        silent, half = await ask(relay, stack, "silent"), await ask(relay, stack, "half", is_stream=False)
        sdk = await stack.enter_async_context(Sdk("async", relay.url))
        reading = asyncio.create_task(sdk.items("chat.completions.create", model="long", messages=[]))
        await long.read_until(b'"a"')
        await middle.read_until(b'"a"')
        await upstream.wait_for("long", 2)
        await upstream.wait_for("silent")
        await upstream.wait_for("half")
        start = terminate(relay)
        got = await long.read_response()
        assert 0.4 < time.monotonic() - start < FAST_SECONDS
        assert got.end == "cut"
        assert not got.has_done
        assert (error_of(got)["code"], error_of(got)["type"]) == ("server_shutting_down", "upstream_error")
        cut = await middle.read_response()
        assert (cut.end, cut.body.endswith(content("b")[:-7])) == ("cut", True)
        for client in (silent, half):
            answer = await client.read_response()
            assert (answer.status, answer.error_code, answer.end) == (503, "server_shutting_down", "complete")
        with pytest.raises(openai.APIError) as raised:
            await reading
        assert raised.value.code == "server_shutting_down"
        for model in ("long", "middle", "silent", "half"):
            await upstream.wait_closed(upstream.of(model)[0], within=2.5)
    assert await relay.wait_exit() == 0
    outcomes = {line["model"]: line["outcome"] for line in relay.logs("request")}
    assert outcomes == {"long": "drained", "middle": "drained", "silent": "overloaded", "half": "overloaded"}
    relay.assert_quiet()


async def test_second_signal_ends_at_once(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_for(relay_with, upstream, "60s")
    upstream.route("long", sse([role(), content("a")], end="hang"))
    async with AsyncExitStack() as stack:
        client = await ask(relay, stack, "long")
        await client.read_until(b'"a"')
        # One whose body never comes is in nobody's hands yet, and must not hold the process either.
        unsent = await stack.enter_async_context(await relay.connect())
        await unsent.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        terminate(relay)
        await refused(relay)
        assert client.closed_how is None
        start = terminate(relay)
        got = await client.read_response()
        assert (got.end, error_of(got)["code"]) == ("cut", "server_shutting_down")
        assert await relay.wait_exit() == 0
        assert time.monotonic() - start < FAST_SECONDS
    assert [line["outcome"] for line in relay.logs("request", model="long")] == ["drained"]
    assert all(line["outcome"] != "client_gone" for line in relay.logs("request"))


async def test_answer_that_waits_to_be_read_is_read_to_its_end(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    """The upstream is done and the exchange over, but a part of it still stands in the relay when it is told to end."""
    relay = await relay_for(relay_with, upstream, "20s")
    sound = random.Random(1).randbytes(705_000)  # more than the kernel takes, and not so much that the upstream has to wait
    upstream.route("sound", respond(200, [("Content-Type", "audio/mpeg")], sound))
    async with await relay.connect(receive_buffer=8192) as client:
        await client.post("/v1/audio/speech", {"model": "sound"})
        await client.read_head()
        client.pause()
        await asyncio.sleep(0.3)
        terminate(relay)
        await refused(relay)
        await asyncio.sleep(1.5)  # longer than a hurried end would take
        client.resume()
        data, how = await client.read_until_close()
    assert (hashlib.sha256(data).digest(), how) == (hashlib.sha256(sound).digest(), "fin")
    assert await relay.wait_exit() == 0


async def test_readyz_says_draining_and_metrics_stay_on_their_own_listener(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    port = free_port()
    relay = await relay_for(relay_with, upstream, "20s", metrics={"listen": f"127.0.0.1:{port}"})
    upstream.route("short", sse(chat_stream("a", "b", "c"), pause=0.3))

    async def look(target: str) -> Response:
        async with await RawClient.open(port) as client:
            await client.request("GET", target, [("Connection", "close")])
            return await client.read_response(method="GET")

    assert (await look("/readyz")).status == 200
    assert (await look("/v1/models")).status == 404, "the API must not be reachable where no key was asked for"
    async with AsyncExitStack() as stack:
        client = await ask(relay, stack, "short")
        await client.read_until(b'"a"')
        terminate(relay)
        await refused(relay)
        assert ((await look("/readyz")).status, (await look("/healthz")).status) == (503, 200)
        metrics = Metrics.parse((await look("/metrics")).body.decode())
        assert metrics.sum("relay_requests_in_flight") == 1
        assert (await client.read_response()).end == "complete"
    assert await relay.wait_exit() == 0


async def test_interrupt_is_a_shutdown_too(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_for(relay_with, upstream, "20s")
    os.kill(relay.pid, signal.SIGINT)
    assert await relay.wait_exit() == 0


def uploads_slowly(done: asyncio.Event) -> Script:
    async def script(peer: Peer) -> None:
        await peer.body()
        done.set()
        await peer.send(head(200, [*JSON, ("Content-Length", "2")]) + b"{}")

    return script


async def test_upload_in_flight_finishes(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_for(relay_with, upstream, "20s")
    done = asyncio.Event()
    upstream.route("/v1/files", uploads_slowly(done), early=True)
    async with await relay.connect() as client:
        await client.request("POST", "/v1/files", [("Content-Type", "multipart/form-data; boundary=b"), ("Content-Length", "10")])
        await client.send(b"12345")
        async with asyncio.timeout(5):
            while not upstream.of("/v1/files"):
                await upstream.changed()
        terminate(relay)
        await refused(relay)
        await client.send(b"67890")
        got = await client.read_response()
    assert (got.status, got.body, done.is_set()) == (200, b"{}", True)
    assert await relay.wait_exit() == 0
