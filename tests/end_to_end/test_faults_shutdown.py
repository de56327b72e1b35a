"""F41: the relay is told to stop while answers are under way: they may end for `server.drain`, then they are cut and say so."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.fault_bed import CLOSE_SECONDS, check_error_event
from tests.end_to_end.in_loop import relay_in_loop
from tests.fakes import events
from tests.fakes.client import RawClient, Response
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import Script, body, hang, sse
from tests.fakes.upstream import ScriptedUpstream

START = [events.role(), events.content("Hel"), events.content("lo")]
SENT = b"".join(START)
HALF = b'data: {"choices":[{"del'
DRAIN_SECONDS = 1.0
SCRIPTS: dict[str, Script] = {
    "stream": sse(START, end="hang"),
    "mid-event": sse([*START, HALF], end="hang"),
    "old-client": sse(START, end="hang"),
    "waiting": hang(),
    "held": body([b'{"id": '], end="hang"),
    "finishing": sse(events.chat_stream("Hel", "lo"), pause=0.12),
}
LOG = {
    "stream": ("drained", "server_shutting_down", 200),
    "mid-event": ("drained", "server_shutting_down", 200),
    "old-client": ("drained", "server_shutting_down", 200),
    "waiting": ("overloaded", "server_shutting_down", 503),
    "held": ("overloaded", "server_shutting_down", 503),
    "finishing": ("complete", None, 200),
}


async def shut_down(relay: RelayProcess, upstream: ScriptedUpstream, stop: Callable[[], Awaitable[object]]) -> dict[str, Response]:
    """Have one answer of every kind under way, stop the relay, and take what they become."""
    for name, script in SCRIPTS.items():
        upstream.route(name, script)
    clients: dict[str, RawClient] = {}
    try:
        for name in SCRIPTS:
            clients[name] = client = await relay.connect()
            version = "HTTP/1.0" if name == "old-client" else "HTTP/1.1"
            await client.post("/v1/chat/completions", {"model": name, "stream": name != "held"}, version=version)
        for name in ("stream", "mid-event", "old-client"):
            await clients[name].read_until(b"lo")
        for name in ("waiting", "held"):
            await upstream.wait_for(name)
        await asyncio.sleep(0.05)
        answers = asyncio.gather(*[client.read_response() for client in clients.values()])
        _, responses = await asyncio.gather(stop(), answers)
    finally:
        for client in clients.values():
            await client.close()
    return dict(zip(clients, responses, strict=True))


async def check(relay: RelayProcess, upstream: ScriptedUpstream, responses: dict[str, Response]) -> None:
    """Every answer ended as it should, for the client, the upstream and the log."""
    assert responses["stream"].end == responses["mid-event"].end == "cut"
    check_error_event(responses["stream"].body.removeprefix(SENT), "server_shutting_down")
    assert responses["mid-event"].body == SENT + HALF
    assert responses["old-client"].end == "rst"
    for name in ("waiting", "held"):
        response = responses[name]
        assert (response.status, response.error_code, response.end) == (503, "server_shutting_down", "complete")
        assert response.header("retry-after") is not None
    assert (responses["finishing"].body, responses["finishing"].end) == (b"".join(events.chat_stream("Hel", "lo")), "complete")
    for name, expected in LOG.items():
        (line,) = await relay.wait_log(model=name)
        assert (line["outcome"], line["error_code"], line["status"]) == expected
        (request,) = upstream.of(name)
        if name == "finishing":
            continue  # its connection is kept, as after any whole answer
        assert await upstream.wait_closed(request, within=CLOSE_SECONDS) in ("fin", "rst")


async def test_f41_answers_that_outlast_the_drain_are_cut_and_say_so(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_with(config_for(upstream, server={"drain": f"{int(DRAIN_SECONDS)}s"}))

    async def stop() -> None:
        relay.process.send_signal(signal.SIGTERM)
        assert await relay.wait_exit() == 0

    loop = asyncio.get_running_loop()
    began_at = loop.time()
    responses = await shut_down(relay, upstream, stop)
    assert loop.time() - began_at > 0.9 * DRAIN_SECONDS
    await check(relay, upstream, responses)


async def test_f41_every_end_is_counted(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """The same in the test's loop, since a process that has ended cannot be scraped."""
    async with relay_in_loop(config_for(upstream, server={"drain": "1s"}), tmp_path) as relay:
        responses = await shut_down(relay, upstream, relay.drain)
        await check(relay, upstream, responses)
        metrics = relay.metrics_now()
    counted = {name: metrics.sum("relay_requests_total", outcome=name) for name in ("drained", "overloaded", "complete")}
    assert counted == {"drained": 3, "overloaded": 2, "complete": 1}
    assert metrics.sum("relay_requests_total") == len(SCRIPTS)
    assert metrics.sum("relay_upstream_attempts_total", result="cancelled") == 5
    assert not metrics.nonzero("relay_requests_in_flight")
    assert not metrics.nonzero("relay_invariant_violations_total")


async def test_f41_a_second_signal_cuts_at_once(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_with(config_for(upstream, server={"drain": "30s"}))
    upstream.route("stream", SCRIPTS["stream"])
    async with await relay.connect() as client:
        await client.post("/v1/chat/completions", {"model": "stream", "stream": True})
        await client.read_until(b"lo")
        relay.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert client.closed_how is None
        relay.process.send_signal(signal.SIGTERM)
        response = await client.read_response(within=CLOSE_SECONDS)
        check_error_event(response.body.removeprefix(SENT), "server_shutting_down")
    assert await relay.wait_exit(within=5) == 0


async def test_f41_a_request_on_an_open_connection_is_refused_while_draining(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    """A kept connection is closed when it is idle; one that is busy gets no second answer out of a relay that drains."""
    relay = await relay_with(config_for(upstream, server={"drain": "5s"}))
    upstream.route("finishing", sse(events.chat_stream("Hel", "lo"), pause=0.2))
    async with await relay.connect() as idle, await relay.connect() as busy:
        await idle.request("GET", "/healthz")
        await idle.read_response(method="GET")
        await busy.post("/v1/chat/completions", {"model": "finishing", "stream": True})
        await busy.read_until(b"Hel")
        relay.process.send_signal(signal.SIGTERM)
        await idle.read_until_close(within=CLOSE_SECONDS)
        with pytest.raises(OSError):
            await relay.connect()
        assert (await busy.read_response()).end == "complete"
        await busy.read_until_close(within=CLOSE_SECONDS)
    assert await relay.wait_exit() == 0
    assert len(upstream.requests) == 1
