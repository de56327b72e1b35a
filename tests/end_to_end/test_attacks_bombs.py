"""Requests made to cost much (A13, A18): refused, or read within their share of time while other streams go on."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, Refusal, post
from tests.fakes import events, scripts
from tests.fakes.upstream import Peer, ScriptedUpstream

MIB = 2**20
OTHERS_WAIT_SECONDS = 10.0
"""No other stream may be held up for longer, on a machine that has other work too; alone it is a fiftieth of it."""
BOMB_CPU_SECONDS = 1.0
"""What one request of 10 MB may cost the relay; a plain `json.loads` of the worst of them takes more, in one piece."""
AMPLIFIED = Refusal(status=400, code="amplified_body")
CHUNKED = b"Transfer-Encoding: chunked"

BOMBS: dict[str, bytes] = {
    "empty lists": b'{"model":"nobody","x":[' + b"[]," * (3 * MIB) + b"0]}",
    "empty objects": b'{"model":"nobody","x":[' + b"{}," * (3 * MIB) + b"0]}",
    "saw": b'{"model":"nobody","x":[' + (b"[" * 60 + b"]" * 60 + b",") * 70_000 + b"0]}",
    "saw of objects": b'{"model":"nobody","x":[' + (b'{"a":' * 60 + b"0" + b"}" * 60 + b",") * 25_000 + b"0]}",
    "numbers": b'{"model":"nobody","x":[' + b"1," * (4 * MIB) + b"0]}",
    "keys": b'{"model":"nobody"' + b"".join(b',"k%d":1' % number for number in range(700_000)) + b"}",
    "long keys": b'{"model":"nobody"' + b"".join(b',"%07d%b":1' % (number, b"k" * 10_000) for number in range(900)) + b"}",
    "escapes": b'{"model":"nobody","x":"' + b"\\u0061" * (MIB + MIB // 2) + b'"}',
    "surrogates": b'{"model":"nobody","x":"' + b"\\ud800" * (MIB + MIB // 2) + b'"}',
    "quotes": b'{"model":"nobody","x":"' + b'\\"' * (4 * MIB) + b'"}',
    "spaces": b'{"model":"nobody"' + b" " * (9 * MIB) + b"}",
    "never closed": b'{"model":"nobody","x":' + b"[[],[" * (MIB + MIB // 2),
    "digits": b'{"model":"nobody","x":' + b"9" * (9 * MIB) + b"}",
    "fraction": b'{"model":"nobody","x":0.' + b"9" * (9 * MIB) + b"}",
}
"""They name no route, so that what is timed is the relay's own work and not the scripted upstream's reading."""


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    routes = {"known": "mine/known", "still-serving": "mine/still-serving", "stream": "mine/stream"}
    upstreams = {"mine": {"base_url": shared_upstream.url, "api_key": "sk-upstream"}}
    shared_upstream.answers(scripts.json_answer(ANSWER))
    bed = Bed(await shared_relay_with({"upstreams": upstreams, "routes": routes}), shared_upstream)
    yield bed
    await bed.settle_accounts()


class Watched:
    """A stream whose events the test sends one at a time, to see how long each takes while something else goes on."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._ticks: asyncio.Queue[bytes] = asyncio.Queue()
        self.longest_wait = 0.0

    @property
    def cpu_seconds(self) -> float:
        """What the relay has worked since the watch began."""
        return self._cpu() - self._cpu_before

    def _cpu(self) -> float:
        times = self._bed.relay.process.cpu_times()
        return times.user + times.system

    async def __aenter__(self) -> "Watched":
        self._cpu_before = self._cpu()
        self._bed.upstream.route("stream", self._script)
        self._client = await self._bed.relay.connect()
        await self._client.post(CHAT, {"model": "stream", "stream": True})
        self._ticks.put_nowait(events.content("begin"))
        await self._client.read_until(b"begin")
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._ticks.put_nowait(events.DONE)
        answer = await self._client.read_response()
        await self._client.close()
        assert (answer.end, answer.has_done) == ("complete", True)
        numbers = [json.loads(line)["choices"][0]["delta"]["content"] for line in answer.data[1:-1]]
        assert numbers == [f"tick {number}." for number in range(len(numbers))]

    async def ticks(self, count: int = 3) -> None:
        """Wait for some more events, so that those held up are counted."""
        target = self._number + count
        async with asyncio.timeout(30):
            while self._number < target:
                await asyncio.sleep(0.02)

    _number = 0

    async def _run(self) -> None:
        while True:
            name = f"tick {self._number}."
            started_at = time.monotonic()
            self._ticks.put_nowait(events.content(name))
            await self._client.read_until(name.encode(), within=30)
            self.longest_wait = max(self.longest_wait, time.monotonic() - started_at)
            self._number += 1
            await asyncio.sleep(0.01)

    async def _script(self, peer: Peer) -> None:
        await peer.send(scripts.head(200, [*scripts.EVENT_STREAM, ("Transfer-Encoding", "chunked")]))
        while True:
            event = await self._ticks.get()
            await peer.send_chunk(event)
            if event == events.DONE:
                await peer.send(scripts.LAST_CHUNK)
                return


# A13: amplification by framing.


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param((b"1;" + b"e" * 4000 + b"\r\n \r\n") * 2000 + b"0\r\n\r\n", id="extensions"),
        pytest.param(b"1;" + b"e" * 8_000_000 + b"\r\n \r\n0\r\n\r\n", id="one extension"),
        pytest.param(b"0" * 8_000_000 + b"1\r\n \r\n0\r\n\r\n", id="leading zeros"),
    ],
)
async def test_a13_body_far_larger_on_the_wire_than_its_content_is_refused(bed: Bed, path: str, body: bytes) -> None:
    known = len(bed.upstream.requests)
    async with await bed.relay.connect() as client:
        await client.post("/v1/files", b"")  # a sound request first: it must not pay into the account of the next one
        await client.read_response()
    data = post(CHUNKED, b"Content-Type: application/json", body=body, path=path.encode())
    async with await bed.relay.connect() as client:
        await client.send(data)
        answer = await client.read_response()
    bed.check(answer, AMPLIFIED)
    assert [request.path for request in bed.upstream.requests[known:]] == []
    await bed.check_log(answer, AMPLIFIED)
    await bed.still_serves()


async def test_a13_hundreds_of_thousands_of_tiny_chunks_are_read_while_others_are_served(bed: Bed) -> None:
    """One byte a chunk is six bytes on the wire: slow to read for whoever sends it, and for nobody else."""
    body = b'{"model":"known","x":"' + b"y" * 400_000 + b'"}'
    data = post(CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    async with Watched(bed) as watched:
        async with await bed.relay.connect() as client:
            await client.send(data)
            answer = await client.read_response()
        await watched.ticks()
    assert answer.status == 200
    assert watched.cpu_seconds < 3 * BOMB_CPU_SECONDS
    assert bed.upstream.of("known")[-1].body == body
    assert watched.longest_wait < OTHERS_WAIT_SECONDS


async def test_a13_endless_trailers_are_refused(bed: Bed) -> None:
    data = post(CHUNKED, body=b"2\r\n{}\r\n0\r\n" + b"X-A: bbbbbbbbbbb\r\n" * 200_000)
    await bed.refuse(data, Refusal(status=400, code="bad_request", outcome=None, closes=True))


# A18: JSON made to be slow.


@pytest.mark.parametrize("name", BOMBS)
async def test_a18_slow_json_holds_no_other_stream_up(bed: Bed, name: str) -> None:
    bomb = BOMBS[name]
    async with Watched(bed) as watched:
        answers = await asyncio.gather(*(bed.send(CHAT, bomb) for _ in range(2)))
        await watched.ticks()
    assert {answer.status for answer in answers} <= {400, 404}
    assert watched.cpu_seconds < len(answers) * BOMB_CPU_SECONDS
    assert watched.longest_wait < OTHERS_WAIT_SECONDS


async def test_a18_slow_json_on_a_peeked_path_holds_no_other_stream_up(bed: Bed) -> None:
    bomb = b'{"model":"nobody","x":[' + b"[]," * (MIB // 3 - 20) + b"0]}"
    assert len(bomb) <= MIB
    async with Watched(bed) as watched:
        answers = await asyncio.gather(*(bed.send("/v1/files", bomb) for _ in range(8)))
        await watched.ticks()
    assert {answer.status for answer in answers} == {404}
    assert watched.cpu_seconds < len(answers) * BOMB_CPU_SECONDS
    assert watched.longest_wait < OTHERS_WAIT_SECONDS
