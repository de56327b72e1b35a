"""Faults of clients (F31 to F35): they leave in every phase and in every way, or stop reading.

The stalled upload (F36) needs shorter bounds than the relay has, and so has a file of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Literal

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.fault_bed import QUICK, Bed, Connection, Fault, Seen, Talk, Want, made
from tests.fakes import events
from tests.fakes.client import RawClient, Response
from tests.fakes.ports import swallowing_port
from tests.fakes.scripts import EVENT_STREAM, Pairs, Script, body, hang, head, sse
from tests.fakes.upstream import Peer

Leave = Literal["fin", "rst", "half-close"]
LEAVES: tuple[Leave, ...] = ("fin", "rst", "half-close")
START = [events.role(), events.content("Hel"), events.content("lo")]
FLOOD_BYTES = 64 * 2**20
BUFFERED_BYTES = 16 * 2**20
"""What may lie in all the buffers of three processes' sockets and of the relay; far less than what the upstream would send."""


def left(connection: Connection, *, logged_status: int = 499, requests: int = 1) -> Want:
    """The client is gone, and with it the upstream."""
    return Want(
        outcome="client_gone",
        status=None,
        logged_status=logged_status,
        results=("cancelled",),
        connection=connection,
        requests=requests,
    )


def leave(client: RawClient, how: Leave) -> None:
    match how:
        case "fin":
            client.fin()
        case "rst":
            client.rst()
        case "half-close":
            client.half_close()


def leaving(how: Leave, *, after: bytes | None = None) -> Talk:
    """Send the request and leave: as soon as it is with the upstream, or when `after` has come."""

    async def talk(bed: Bed, fault: Fault, client: RawClient) -> None:
        await client.post(fault.path, fault.body, fault.headers, version=fault.version)
        if after is not None:
            await client.read_until(after)
        elif fault.script is None:
            await asyncio.sleep(0.2)  # nothing tells that the relay is connecting
        else:
            await bed.upstream(fault).wait_for(fault.model)
            await asyncio.sleep(0.1)  # a head, if there is one, has come to the relay
        leave(client, how)

    return talk


def gone(swallowing: int) -> list[Fault]:
    """F32 to F34: the client leaves in each phase."""
    nowhere = {"base_url": f"http://127.0.0.1:{swallowing}/v1", "timeouts": {"connect": "8s"}}
    waiting: list[tuple[str, Script, bool]] = [
        ("head-stream", hang(), True),
        ("head-json", hang(), False),
        ("first-event", sse([], end="hang"), True),
        ("comments", sse([b": ping\n\n"], end="hang"), True),
        ("role-only", sse([events.role()], end="hang"), True),
        ("body", body([b'{"id":"x","choices":['], end="hang"), False),
    ]
    streaming: list[tuple[str, Script, str]] = [
        ("silent-stream", sse(START, end="hang"), "HTTP/1.1"),
        ("busy-stream", sse([*START, *[events.content("more")] * 500], pause=0.01, end="hang"), "HTTP/1.1"),
        ("http10", sse(START, end="hang"), "HTTP/1.0"),
    ]
    rows = []
    for how in LEAVES:
        early, late = ("F34", "F34") if how == "half-close" else ("F32", "F33")
        connecting = left("none", requests=0)
        name = f"{early}-{how}-connecting"
        rows.append(Fault(name=name, want=connecting, upstream=nowhere, talk=leaving(how), also=in_phase("connect")))
        for what, script, stream in waiting:
            row = Fault(name=f"{early}-{how}-{what}", want=left("closed"), script=script, stream=stream)
            rows.append(replace(row, talk=leaving(how), also=in_phase("wait")))
        for what, script, version in streaming:
            want = left("closed", logged_status=200)
            row = Fault(name=f"{late}-{how}-{what}", want=want, script=script, version=version)
            rows.append(replace(row, talk=leaving(how, after=b"lo"), also=in_phase("stream")))
    return rows


def in_phase(phase: str) -> Callable[[Seen], None]:
    def also(seen: Seen) -> None:
        assert seen.logs[-1]["phase"] == phase

    return also


def stalled() -> list[Fault]:
    """F35: the client stops reading; one that reads slowly is none of those."""
    want = Want(outcome="client_stalled", status=None, logged_status=200, results=("cancelled",), connection="closed")
    events_row = Fault(name="F35-stream", want=want, script=flood(EVENT_STREAM), upstream=QUICK, talk=reading_nothing, also=was_bounded)
    slowly = Want(outcome="complete", status=200, connection="free")
    slow_events = [events.role(), *[events.content("x" * 20_000)] * 100, events.DONE]
    slow_want = replace(slowly, body=b"".join(slow_events))
    return [
        events_row,
        replace(events_row, name="F35-http10", version="HTTP/1.0"),
        replace(events_row, name="F35-download", script=flood([("Content-Type", "audio/mpeg")]), path="/v1/audio/speech", stream=False),
        Fault(name="F35-slow-reader", want=slow_want, script=sse(slow_events), upstream=QUICK, talk=reading_slowly),
    ]


def flood(headers: Pairs) -> Script:
    """Send far more than any buffers hold."""
    piece = events.content("x" * 10_000)

    async def script(peer: Peer) -> None:
        await peer.send(head(200, [*headers, ("Transfer-Encoding", "chunked")]))
        while peer.sent_bytes < FLOOD_BYTES:
            await peer.send_chunk(piece)

    return script


async def reading_nothing(bed: Bed, fault: Fault, unused: RawClient) -> None:
    """Read the head, then nothing until the relay has lost its patience; what is left then ends in a reset."""
    async with await bed.relay.connect(receive_buffer=4096) as client:
        await client.post(fault.path, fault.body, version=fault.version)
        await client.read_head()
        client.pause()
        await bed.relay.wait_log(route=fault.route, within=6)
        client.resume()
        _, how = await client.read_until_close()
        assert how == "rst"


async def reading_slowly(bed: Bed, fault: Fault, unused: RawClient) -> Response:
    """Read on and off for longer than `write`."""
    async with await bed.relay.connect(receive_buffer=4096) as client:
        await client.post(fault.path, fault.body)
        for _ in range(12):
            client.pause()
            await asyncio.sleep(0.2)
            client.resume()
            await asyncio.sleep(0.005)
        return await client.read_response()


def was_bounded(seen: Seen) -> None:
    (request,) = seen.requests
    assert 100_000 < request.connection.sent_bytes < BUFFERED_BYTES, "the upstream was not paused"
    line = seen.logs[-1]
    assert 900 < line["duration_ms"] < 5_000
    assert seen.metrics.value("relay_client_backpressure_seconds_total", route=line["route"]) > 0.5


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith) -> AsyncIterator[Bed]:
    """Every row, run."""
    with swallowing_port() as port:
        async with made([*gone(port), *stalled()], shared_relay_with) as bed:
            yield bed


NAMES = [fault.name for fault in [*gone(0), *stalled()]]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
async def test_fault(number: int, bed: Bed) -> None:
    bed.check(bed.faults[number])


@pytest.mark.parametrize("how", LEAVES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/batches"], ids=["parsed", "peeked"])
async def test_f31_a_client_that_leaves_in_its_own_request_asks_no_upstream(bed: Bed, how: Leave, path: str) -> None:
    before = await bed.relay.settled()
    already = len(bed.relay.logs("request", outcome="client_gone", route=None))
    async with await bed.relay.connect() as client:
        headers = [("Content-Type", "application/json"), ("Content-Length", "1000")]
        await client.request("POST", path, headers, b'{"model": "f32-fin-')
        await asyncio.sleep(0.1)
        leave(client, how)
        lines = await bed.relay.wait_log(count=already + 1, outcome="client_gone", route=None)
    line = lines[-1]
    assert (line["attempts"], line["status"], line["phase"], line["upstream"]) == (0, 499, "request", None)
    added = (await bed.relay.settled()).since(before)
    assert added.sum("relay_requests_total") == added.sum("relay_requests_total", route="_none", outcome="client_gone") == 1
    assert not added.nonzero("relay_upstream_attempts_total")


@pytest.mark.parametrize("how", LEAVES)
async def test_f31_half_a_head_is_no_exchange(bed: Bed, how: Leave) -> None:
    before = await bed.relay.settled()
    async with await bed.relay.connect() as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
        await asyncio.sleep(0.05)
        leave(client, how)
        await client.read_until_close(within=2.5)
    assert not (await bed.relay.settled()).since(before).nonzero("relay_requests_total")
