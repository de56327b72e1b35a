"""A client that stops reading stops its upstream, costs bounded memory, and is cut after `write`.

One that reads slowly, but reads, is served to the end.
"""

import asyncio
import hashlib
import random
import time

import pytest

from tests.conftest import RelayWith
from tests.fakes.client import RawClient
from tests.fakes.events import DONE, content
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import EVENT_STREAM, Script, head
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
SPEECH = "/v1/audio/speech"
MIB = 2**20
WRITE_SECONDS = 0.5
READERS = 50
PENDING = 64 * MIB
"""What each upstream would send: far more than all kernel buffers on the way hold."""
PASSED = 16 * MIB
"""What may leave one upstream for a client that reads nothing: the kernel's buffers of two connections, mostly."""
GROWTH = 40 * MIB
"""What all stalled readers together may cost the relay: 0.8 MiB each."""
SMALL_BUFFER = 8192


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    # Silence of the upstream counts for nothing while the client takes nothing: between_tokens is far below the stalls here.
    timeouts = {"connect": "5s", "first_token": "5s", "between_tokens": "500ms", "write": f"{WRITE_SECONDS * 1000:.0f}ms", "total": "60s"}
    return await shared_relay_with(config_for(shared_upstream, timeouts=timeouts))


@pytest.fixture(scope="module")
async def patient_relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    timeouts = {"connect": "5s", "first_token": "5s", "between_tokens": "500ms", "write": "30s", "total": "60s"}
    return await shared_relay_with(config_for(shared_upstream, timeouts=timeouts))


def flood(size: int, *, events: bool) -> Script:
    """Send `size` bytes as fast as they are taken."""
    lines = EVENT_STREAM if events else (("Content-Type", "audio/mpeg"),)
    piece = content("x" * 65_000) if events else b"x" * 65_536

    async def script(peer: Peer) -> None:
        await peer.send(head(200, [*lines, ("Transfer-Encoding", "chunked")]))
        for _ in range(size // len(piece)):
            await peer.send_chunk(piece)
        if events:
            await peer.send_chunk(DONE)
        await peer.send(b"0\r\n\r\n")

    return script


async def stall(relay: RelayProcess, path: str, model: str) -> RawClient:
    """Ask for a stream and stop reading after its head."""
    client = await relay.connect(receive_buffer=SMALL_BUFFER)
    await client.post(path, {"model": model, "stream": True})
    await client.read_head()
    client.pause()
    return client


async def stand_still(upstream: ScriptedUpstream, models: list[str]) -> list[int]:
    """Wait until no upstream gets rid of another byte; return how many each has sent."""
    last: list[int] = []
    async with asyncio.timeout(20):
        while True:
            connections = [upstream.of(model)[0].connection for model in models]
            sent = [connection.sent_bytes for connection in connections]
            if sent == last and all(connection.is_paused for connection in connections):
                return sent
            last = sent
            await asyncio.sleep(0.4)


@pytest.mark.parametrize("path", [CHAT, SPEECH], ids=["events", "opaque"])
async def test_stalled_readers_stop_their_upstreams_and_cost_bounded_memory(
    patient_relay: RelayProcess, shared_upstream: ScriptedUpstream, path: str
) -> None:
    models = [f"stalled-{path}-{number}" for number in range(READERS)]
    for model in models:
        shared_upstream.route(model, flood(PENDING, events=path == CHAT))
    before = patient_relay.process.memory_info().rss
    clients = await asyncio.gather(*(stall(patient_relay, path, model) for model in models))
    try:
        sent = await stand_still(shared_upstream, models)
        growth = patient_relay.process.memory_info().rss - before
        assert all(shared_upstream.of(model)[0].connection.is_paused for model in models)
        assert max(sent) < PASSED
        assert growth < GROWTH, growth
    finally:
        for client in clients:
            await client.close()
    await asyncio.gather(*(shared_upstream.wait_closed(shared_upstream.of(model)[0], within=2.5) for model in models))
    for lines in await asyncio.gather(*(patient_relay.wait_log(model=model) for model in models)):
        assert [line["outcome"] for line in lines] == ["client_gone"]
    await patient_relay.assert_identities()


async def test_stalled_reader_is_reset_after_write(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    counted = await relay.metrics()
    await asyncio.gather(*(be_reset(relay, shared_upstream, path) for path in (CHAT, SPEECH)))
    added = (await relay.settled()).since(counted)
    assert added.sum("relay_requests_total", outcome="client_stalled") == added.sum("relay_requests_total") == 2
    assert added.sum("relay_client_backpressure_seconds_total") >= WRITE_SECONDS * 1.6


async def be_reset(relay: RelayProcess, shared_upstream: ScriptedUpstream, path: str) -> None:
    model = f"reset-{path}"
    shared_upstream.route(model, flood(PENDING, events=path == CHAT))
    client = await stall(relay, path, model)
    async with client:
        start = time.monotonic()
        (request,) = shared_upstream.of(model)
        await shared_upstream.wait_closed(request, within=WRITE_SECONDS * 10)
        assert time.monotonic() - start > WRITE_SECONDS * 0.8
        client.resume()
        body, how = await client.read_until_close()
    assert how == "rst"
    assert b"[DONE]" not in body
    assert not body.endswith(b"0\r\n\r\n")
    (line,) = await relay.wait_log(model=model)
    assert line["outcome"] == "client_stalled"


async def test_slow_reader_that_keeps_reading_loses_nothing(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    """It takes several times `write` in all, and never more than a part of it for one piece."""
    await asyncio.gather(*(read_slowly(relay, shared_upstream, path) for path in (CHAT, SPEECH)))


async def read_slowly(relay: RelayProcess, shared_upstream: ScriptedUpstream, path: str) -> None:
    model = f"slow-{path}"
    sound = random.Random(3).randbytes(1_200_000)
    lines = EVENT_STREAM if path == CHAT else (("Content-Type", "audio/mpeg"),)
    pieces = [b"data: x\n\n", *(b": " + sound[start : start + 8192].hex().encode() + b"\n\n" for start in range(0, len(sound), 8192)), DONE]
    whole = b"".join(pieces)

    async def send(peer: Peer) -> None:
        await peer.send(head(200, [*lines, ("Transfer-Encoding", "chunked")]))
        for piece in pieces:
            await peer.send_chunk(piece)
        await peer.send(b"0\r\n\r\n")

    shared_upstream.route(model, send)
    async with await relay.connect(receive_buffer=SMALL_BUFFER) as client:
        await client.post(path, {"model": model, "stream": True})
        start = time.monotonic()
        while client.received_bytes < len(whole) - MIB and client.closed_how is None:
            client.pause()
            await asyncio.sleep(0.008)
            client.resume()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        got = await client.read_response(within=20)
        seconds = time.monotonic() - start
    assert (got.end, hashlib.sha256(got.body).digest()) == ("complete", hashlib.sha256(whole).digest())
    assert seconds > 1.5 * WRITE_SECONDS, "too quick to show anything"
    assert (await relay.wait_log(model=model))[0]["outcome"] == "complete"


async def test_reader_that_takes_little_at_a_time_is_not_taken_for_a_stalled_one(
    relay: RelayProcess, shared_upstream: ScriptedUpstream
) -> None:
    """A player reads sound as it plays it: a few kilobytes a second, for as long as there is something to play."""
    size = 3 * MIB
    shared_upstream.route("player", flood(size, events=False))
    async with await relay.connect(receive_buffer=SMALL_BUFFER) as client:
        await client.post(SPEECH, {"model": "player"})
        await client.read_head()
        for _ in range(int(3 * WRITE_SECONDS / 0.1)):
            client.pause()
            await asyncio.sleep(0.1)
            client.resume()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert client.closed_how is None
        assert client.received_bytes < MIB, "too quick to show anything"
        await client.read_until(b"\r\n0\r\n\r\n")
    assert (await relay.wait_log(model="player"))[0]["outcome"] == "complete"


async def test_stalled_reader_of_a_finished_answer_is_reset_after_write(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    """The upstream is done, and the last megabytes wait in the relay alone."""
    shared_upstream.route("tail", flood(MIB, events=False))
    before = relay.process.num_fds()
    client = await relay.connect(receive_buffer=SMALL_BUFFER)
    async with client:
        await client.post(SPEECH, {"model": "tail"})
        await client.read_head()
        client.pause()
        deadline = time.monotonic() + WRITE_SECONDS * 10
        while relay.process.num_fds() > before:
            assert time.monotonic() < deadline, "the relay keeps the connection of a client that reads nothing"
            await asyncio.sleep(0.1)
    await relay.assert_identities()


async def test_client_that_sends_ahead_and_reads_slowly_is_not_cut(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    """The second request is served while the first answer still waits to be read; the bound of the one must not strike the other."""
    shared_upstream.route("ahead", flood(2 * MIB, events=False))
    async with await relay.connect(receive_buffer=SMALL_BUFFER) as client:
        await client.post(SPEECH, {"model": "ahead"})
        await client.read_head()
        client.pause()
        await client.post(SPEECH, {"model": "ahead"})
        await asyncio.sleep(WRITE_SECONDS * 0.7)
        client.resume()
        for _ in range(2):
            await client.read_until(b"\r\n0\r\n\r\n")
            del client.inbox[: client.inbox.index(b"\r\n0\r\n\r\n") + 7]
        await asyncio.sleep(WRITE_SECONDS * 2.2)
        await client.request("GET", "/healthz")
        assert (await client.read_response(method="GET")).status == 200
