"""Files in and out: 64 MiB arrive unchanged in both directions while the relay's memory stays flat, and no side waits for ever."""

import asyncio
import hashlib
import json
import random
from collections.abc import Awaitable, Callable

import pytest

from tests.conftest import RelayWith
from tests.fakes.client import Response
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import JSON, head, respond
from tests.fakes.upstream import Peer, ScriptedUpstream

MIB = 2**20
FLAT_BYTES = 16 * MIB
"""How much the relay may grow while 64 MiB pass."""
FIRST_TOKEN_SECONDS = 1.5
FORM = ("Content-Type", "multipart/form-data; boundary=b")


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    timeouts = {
        "connect": "1s",
        "first_token": f"{FIRST_TOKEN_SECONDS * 1000:.0f}ms",
        "between_tokens": "5s",
        "write": "5s",
        "total": "60s",
    }
    return await shared_relay_with(config_for(shared_upstream, timeouts=timeouts))


class Memory:
    """Watches how far the relay's memory grows."""

    def __init__(self, relay: RelayProcess) -> None:
        self._process = relay.process
        self._start = self._process.memory_info().rss
        self.growth = 0

    async def watch(self) -> None:
        while True:
            self.growth = max(self.growth, self._process.memory_info().rss - self._start)
            await asyncio.sleep(0.02)

    async def during(self, work: Callable[[], Awaitable[None]]) -> None:
        watcher = asyncio.create_task(self.watch())
        try:
            await work()
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


BIG = 64 * MIB
BLOCK = random.Random(64).randbytes(MIB)


def big_hash() -> str:
    digest = hashlib.sha256()
    for number in range(BIG // MIB):
        digest.update(number.to_bytes(4, "big") + BLOCK[4:])
    return digest.hexdigest()


def blocks() -> list[bytes]:
    """The parts of 64 MiB, each different from the others."""
    return [number.to_bytes(4, "big") + BLOCK[4:] for number in range(BIG // MIB)]


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_upload_of_64_mib_arrives_unchanged_with_memory_flat(
    relay: RelayProcess, shared_upstream: ScriptedUpstream, framing: str
) -> None:
    path = f"/v1/files/up-{framing}"
    start, end = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n', b"\r\n--b--\r\n"

    async def receive(peer: Peer) -> None:
        body = await peer.body()
        digest = hashlib.sha256(body[len(start) : len(body) - len(end)]).hexdigest()
        peer.request.body = b""
        await respond(
            200, JSON, json.dumps({"id": "file-1", "sha": digest, "ends": body.startswith(start) and body.endswith(end)}).encode()
        )(peer)

    shared_upstream.route(path, receive, early=True)
    lines: list[tuple[str, str]] = [FORM]
    size = len(start) + BIG + len(end)
    lines.append(("Content-Length", str(size)) if framing == "length" else ("Transfer-Encoding", "chunked"))

    async with await relay.connect() as client:

        async def upload() -> None:
            await client.request("POST", path, lines)
            put = client.send if framing == "length" else client.send_chunk
            for part in [start, *blocks(), end]:
                await put(part)
            if framing == "chunked":
                await client.send(b"0\r\n\r\n")

        memory = Memory(relay)
        await memory.during(upload)
        got = await client.read_response()
    assert got.json() == {"id": "file-1", "sha": big_hash(), "ends": True}
    (request,) = shared_upstream.of(path)
    assert request.header("content-type") == b"multipart/form-data; boundary=b"
    assert request.header("content-length") == (str(size).encode() if framing == "length" else None)
    assert memory.growth < FLAT_BYTES, memory.growth


async def test_upload_waits_for_an_upstream_that_does_not_read(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    path = "/v1/files/stuffed"

    async def dawdle(peer: Peer) -> None:
        peer.pause_reading()
        await asyncio.sleep(0.5)
        peer.resume_reading()
        size = len(await peer.body())
        peer.request.body = b""
        await respond(200, JSON, b'{"size":%d}' % size)(peer)

    shared_upstream.route(path, dawdle, early=True)
    async with await relay.connect() as client:

        async def upload() -> None:
            await client.request("POST", path, [FORM, ("Content-Length", str(BIG))])
            for part in blocks():
                await client.send(part)

        memory = Memory(relay)
        await memory.during(upload)
        assert (await client.read_response()).json() == {"size": BIG}
    assert memory.growth < FLAT_BYTES, memory.growth


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_download_of_64_mib_arrives_unchanged_with_memory_flat(
    relay: RelayProcess, shared_upstream: ScriptedUpstream, framing: str
) -> None:
    path = f"/v1/files/{framing}/content"
    framing_line = {"length": [("Content-Length", str(BIG))], "chunked": [("Transfer-Encoding", "chunked")], "close": []}[framing]

    async def send(peer: Peer) -> None:
        await peer.send(head(200, [("Content-Type", "application/octet-stream"), *framing_line]))
        for part in blocks():
            await (peer.send_chunk(part) if framing == "chunked" else peer.send(part))
        if framing == "chunked":
            await peer.send(b"0\r\n\r\n")
        elif framing == "close":
            await peer.fin()

    shared_upstream.route(path, send)
    async with await relay.connect() as client:
        await client.request("GET", path)
        memory = Memory(relay)
        got: list[Response] = []

        async def download() -> None:
            got.append(await client.read_response(method="GET", within=30))

        await memory.during(download)
    assert (hashlib.sha256(got[0].body).hexdigest(), got[0].end) == (big_hash(), "complete")
    assert memory.growth < FLAT_BYTES, memory.growth


async def test_upload_answered_early_gives_the_answer(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    path = "/v1/files/refused"
    refusal = respond(413, JSON, b'{"error":{"message":"too large"}}')
    shared_upstream.route(path, refusal, early=True)
    async with await relay.connect() as client:
        await client.request("POST", path, [FORM, ("Content-Length", str(BIG))])
        await client.send(b"x" * 100_000)
        got = await client.read_response()
    assert (got.status, got.body) == (413, b'{"error":{"message":"too large"}}')


async def test_upload_that_nobody_reads_ends_within_first_token(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    path = "/v1/files/never"

    async def ignore(peer: Peer) -> None:
        peer.pause_reading()
        await asyncio.sleep(FIRST_TOKEN_SECONDS * 2)
        peer.resume_reading()
        await peer.wait_closed()

    shared_upstream.route(path, ignore, early=True)
    async with await relay.connect() as client:
        await client.request("POST", path, [FORM, ("Content-Length", str(BIG))])

        async def upload() -> None:
            for part in blocks():
                await client.send(part)

        sending = asyncio.create_task(upload())
        got = await client.read_response(within=FIRST_TOKEN_SECONDS * 3)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert (got.status, got.error_code) == (504, "upstream_timeout")


async def test_upload_whose_client_pauses_longer_than_first_token_is_no_fault_of_the_upstream(
    relay: RelayProcess, shared_upstream: ScriptedUpstream
) -> None:
    path = "/v1/files/pausing"
    shared_upstream.route(path, respond(200, JSON, b'{"id":"file-2"}'))
    async with await relay.connect() as client:
        await client.request("POST", path, [FORM, ("Content-Length", "10")])
        await client.send(b"12345")
        await asyncio.sleep(FIRST_TOKEN_SECONDS + 0.2)
        await client.send(b"67890")
        assert (await client.read_response()).status == 200
    assert shared_upstream.of(path)[0].body == b"1234567890"


async def test_accounts_are_in_order_afterwards(relay: RelayProcess) -> None:
    await relay.assert_identities()
