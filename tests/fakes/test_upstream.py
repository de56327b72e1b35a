"""The test bed proves itself: what the scripted upstream does is what the raw client sees, and the other way round."""

import asyncio

import aiohttp
import pytest

from tests.conftest import Connect
from tests.fakes import events, scripts
from tests.fakes.certificates import Authority
from tests.fakes.client import RawClient
from tests.fakes.ports import refusing_port, swallowing_port
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
STREAM = events.chat_stream("Hello", " world", usage=(3, 2))


async def test_known_length_answer_is_complete_and_the_connection_serves_the_next(upstream: ScriptedUpstream, connect: Connect) -> None:
    upstream.answers(scripts.json_answer({"n": 1}))
    client = await connect(upstream.port)
    for number in range(3):
        answer = await client.exchange(CHAT, {"model": f"m{number}"})
        assert (answer.status, answer.end, answer.framing, answer.json()) == (200, "complete", "length", {"n": 1})
    assert [request.number_on_connection for request in upstream.requests] == [0, 1, 2]
    assert [request.model for request in upstream.requests] == ["m0", "m1", "m2"]
    assert upstream.connection_count == 1


@pytest.mark.parametrize(
    ("framing", "end", "seen"),
    [
        ("chunked", "clean", "complete"),
        ("chunked", "fin", "cut"),
        ("chunked", "rst", "rst"),
        ("length", "clean", "complete"),
        ("length", "fin", "cut"),
        ("length", "rst", "rst"),
        ("close", "clean", "complete"),
        ("close", "fin", "complete"),
        ("close", "rst", "rst"),
    ],
)
async def test_stream_end_is_seen_as_it_was_made(
    upstream: ScriptedUpstream, connect: Connect, framing: scripts.BodyFraming, end: scripts.End, seen: str
) -> None:
    upstream.answers(scripts.sse(STREAM, framing=framing, end=end))
    client = await connect(upstream.port)
    answer = await client.exchange(CHAT, {"model": "m", "stream": True})
    assert answer.end == seen
    assert answer.framing == framing
    assert answer.body == b"".join(STREAM)
    assert answer.has_done
    if framing == "chunked":
        assert answer.chunks == STREAM


async def test_each_chunk_is_one_write_that_arrives_before_the_next(upstream: ScriptedUpstream, connect: Connect) -> None:
    upstream.answers(scripts.sse([b"data: 1\n\n", b"data: 2\n\n"], pause=0.1))
    client = await connect(upstream.port)
    await client.post(CHAT, {})
    assert b"data: 2" not in await client.read_until(b"data: 1")
    await client.read_until(b"data: 2")


async def test_chunk_cut_in_its_middle_is_reported_with_what_came(upstream: ScriptedUpstream, connect: Connect) -> None:
    upstream.answers(scripts.raw(scripts.head(200, [("Transfer-Encoding", "chunked")]) + b"a\r\nhello", end="fin"))
    client = await connect(upstream.port)
    answer = await client.exchange(CHAT, {})
    assert (answer.end, answer.body) == ("cut", b"hello")


@pytest.mark.parametrize("piece", [b"zz\r\nhello\r\n", b"3\r\nhello\r\n"])
async def test_broken_chunk_framing_is_malformed(upstream: ScriptedUpstream, connect: Connect, piece: bytes) -> None:
    upstream.answers(scripts.raw(scripts.head(200, [("Transfer-Encoding", "chunked")]) + piece))
    client = await connect(upstream.port)
    assert (await client.exchange(CHAT, {})).end == "malformed"


async def test_chunked_request_body_is_read_whole_whatever_the_split(upstream: ScriptedUpstream, connect: Connect) -> None:
    upstream.answers(scripts.json_answer({}))
    client = await connect(upstream.port)
    wire = b'5\r\n{"mod\r\n8;ext=1\r\nel":"m"}\r\n0\r\n\r\n'
    await client.request("POST", CHAT, [("Transfer-Encoding", "chunked")])
    for byte in wire:
        await client.send(bytes([byte]))
    await client.read_response()
    (request,) = upstream.of("m")
    assert (request.body, request.chunk_count) == (b'{"model":"m"}', 2)


async def test_script_is_chosen_by_model_then_path_then_default(upstream: ScriptedUpstream, connect: Connect) -> None:
    upstream.route("m", scripts.json_answer({"by": "model"}))
    upstream.route("/v1/files", scripts.json_answer({"by": "path"}))
    upstream.answers(scripts.json_answer({"by": "default"}))
    client = await connect(upstream.port)
    seen = [
        (await client.exchange(path, value)).json()["by"]
        for path, value in (("/v1/files", {"model": "m"}), ("/v1/files?a=1", {}), ("/x", {}))
    ]
    assert seen == ["model", "path", "default"]


async def test_early_script_answers_before_the_upload_is_in(upstream: ScriptedUpstream, connect: Connect) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await peer.body() == b"abc"
        await scripts.json_answer({})(peer)

    upstream.route("/v1/files", script, early=True)
    client = await connect(upstream.port)
    await client.request("POST", "/v1/files", [("Content-Length", "3")])
    await client.read_until(b"100 Continue")
    await client.send(b"abc")
    answer = await client.read_response()
    assert [head.status for head in answer.interim] == [100]
    assert len(upstream.requests) == 1


async def test_upgrade_gives_the_script_a_tunnel(upstream: ScriptedUpstream, connect: Connect) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(scripts.head(101, [("Upgrade", "websocket"), ("Connection", "Upgrade")]))
        while data := await peer.read_raw():
            await peer.send(data.upper())

    upstream.answers(script)
    client = await connect(upstream.port)
    await client.request("GET", "/v1/realtime", [("Upgrade", "websocket"), ("Connection", "Upgrade")])
    assert (await client.read_response(method="GET")).status == 101
    await client.send(b"frame")
    assert await client.read_until(b"FRAME") == b"FRAME"


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_client_leaving_is_seen_with_its_manner_and_time(upstream: ScriptedUpstream, connect: Connect, how: str) -> None:
    upstream.answers(scripts.sse(STREAM, end="hang"))
    client = await connect(upstream.port)
    await client.post(CHAT, {"model": "m"})
    await client.read_until(b"[DONE]")
    (request,) = upstream.of("m")
    assert request.closed_at is None
    left_at = asyncio.get_running_loop().time()
    client.fin() if how == "fin" else client.rst()
    assert await upstream.wait_closed(request) == how
    assert request.closed_at is not None
    assert 0 <= request.closed_at - left_at < 1
    await upstream.wait_open_count(0)


async def test_script_that_writes_after_the_client_left_ends_quietly(upstream: ScriptedUpstream, connect: Connect) -> None:
    async def script(peer: Peer) -> None:
        await peer.wait_closed()
        await peer.send(b"too late")

    upstream.answers(script)
    client = await connect(upstream.port)
    await client.post(CHAT, {"model": "m"})
    await upstream.wait_for("m")
    client.fin()
    await upstream.wait_open_count(0)
    assert upstream.gone_count == 1


async def test_reader_that_stops_pauses_the_script_within_bounded_bytes(upstream: ScriptedUpstream, connect: Connect) -> None:
    seen: list[Peer] = []

    async def script(peer: Peer) -> None:
        seen.append(peer)
        await peer.send(scripts.head(200))
        for _ in range(1000):
            await peer.send(b"x" * 65536)
        await peer.fin()

    upstream.answers(script)
    client = await connect(upstream.port, receive_buffer=8192)
    await client.post(CHAT, {})
    await client.read_until(b"xxx")
    client.pause()
    async with asyncio.timeout(5):
        while not (seen and seen[0].is_paused):
            await asyncio.sleep(0.01)
    assert seen[0].sent_bytes < 32 * 2**20
    client.resume()
    answer = await client.read_response()
    assert (len(answer.body), answer.end) == (65_536_000, "complete")


async def test_client_half_close_is_seen_as_a_fin_and_answered_by_one(upstream: ScriptedUpstream, connect: Connect) -> None:
    async def script(peer: Peer) -> None:
        assert await peer.wait_closed() == "fin"

    upstream.answers(script)
    client = await connect(upstream.port)
    await client.post(CHAT, {})
    client.half_close()
    assert await client.read_until_close() == (b"", "fin")


async def test_scripts_in_turn_answer_one_request_each(upstream: ScriptedUpstream, connect: Connect) -> None:
    upstream.answers(scripts.in_turn(scripts.error_answer(429), scripts.json_answer({})))
    client = await connect(upstream.port)
    assert [(await client.exchange(CHAT, {})).status for _ in range(3)] == [429, 200, 200]


async def test_no_answer_at_all_is_told_from_a_reset(upstream: ScriptedUpstream, connect: Connect) -> None:
    upstream.answers(scripts.in_turn(scripts.close(), scripts.reset()))
    for how in ("fin", "rst"):
        client = await connect(upstream.port)
        await client.post(CHAT, {})
        assert await client.read_until_close() == (b"", how)


async def test_failure_inside_a_script_fails_the_test(connect: Connect) -> None:
    async def script(peer: Peer) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with ScriptedUpstream() as upstream:
            upstream.answers(script)
            client = await connect(upstream.port)
            await client.post(CHAT, {})
            await client.read_until_close()


async def test_request_without_a_script_is_answered_by_a_status_nobody_mistakes(upstream: ScriptedUpstream, connect: Connect) -> None:
    client = await connect(upstream.port)
    assert (await client.exchange(CHAT, {})).status == 599


async def test_ordinary_library_understands_the_scripted_stream(upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.sse(STREAM))
    async with aiohttp.ClientSession() as session, session.post(upstream.url + "/chat/completions", json={"model": "m"}) as answer:
        assert await answer.read() == b"".join(STREAM)


async def test_ordinary_library_reports_the_cut(upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.sse(STREAM, end="fin"))
    async with aiohttp.ClientSession() as session, session.post(upstream.url + "/chat/completions", json={"model": "m"}) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_stream_over_tls_with_a_private_authority(authority: Authority) -> None:
    async with ScriptedUpstream(authority.server()) as upstream:
        upstream.answers(scripts.sse(STREAM))
        async with await RawClient.open(upstream.port, tls=authority.client()) as client:
            answer = await client.exchange(CHAT, {})
        assert (answer.end, answer.chunks) == ("complete", STREAM)


async def test_thousand_connections_at_once_are_served_and_closed(upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.sse(STREAM, end="hang"))

    async def one(number: int) -> None:
        async with await RawClient.open(upstream.port) as client:
            await client.post(CHAT, {"model": f"m{number}"})
            await client.read_until(b"[DONE]")

    await asyncio.gather(*(one(number) for number in range(1000)))
    await upstream.wait_open_count(0)
    assert upstream.connection_count == len({request.model for request in upstream.requests}) == 1000


async def test_refusing_port_refuses() -> None:
    with refusing_port() as port, pytest.raises(ConnectionRefusedError):
        await RawClient.open(port)


async def test_swallowing_port_never_connects() -> None:
    with swallowing_port() as port, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await RawClient.open(port)
