"""What the client gets is what the upstream sent, byte for byte, whatever it was and however TCP cut it.

Random streams are compared whole; the relay may add at most one error event of its own behind them, and only to a stream that had no
terminator. Other bodies are a table.
"""

import asyncio
import gzip
import hashlib
import itertools
import json
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import RelayWith
from tests.fakes.client import Response
from tests.fakes.events import DONE, chat_chunk, content, error, event, role
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import BodyFraming, Script, head, raw, respond
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
AT_ONCE_SECONDS = 1.8
"""For what must not wait: less than the two seconds for which an answer may be held."""


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    timeouts = {"connect": "5s", "first_token": "5s", "between_tokens": "5s", "write": "5s", "total": "60s"}
    return await shared_relay_with(config_for(shared_upstream, timeouts=timeouts))


# Random streams

COMMITTING = [
    content("x"),
    b"data: not json\n\n",
    b"event: later\ndata: {}\n\n",
    b"data:{}\r\n\r\n",
    b"data: 1\ndata: 2\n\n",
    chat_chunk(finish="stop"),
]
LEGAL = [
    content("hello"),
    content("é€😀\u2028"),
    role(),
    chat_chunk(usage=(3, 4)),
    event({"choices": []}, name="message"),
    b": comment\n\n",
    b":\n",
    b"\n",
    b"retry: 10\n\n",
    b"id: 7\ndata: {}\n\n",
    b"event: ping\n\n",
    b"data\n\n",
    b"data: a\rdata: b\r\r",
    content("c").replace(b"\n", b"\r\n"),
    content("d").replace(b"\n", b"\r"),
    content("e").replace(b"data: ", b"data:"),
    content("long" * 5000),
    DONE,
]
ILLEGAL = [
    b'data: {"choices":[{',
    b"\xff\xfe\x00garbage",
    b"\x00",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"0\r\n\r\n",
    b'{"error": 1}',
    b'data: {"choices": 5}\n\n',
    b'data: {"choices": [null]}\n\n',
    b"data: [DO",
    b"\xef\xbb\xbf",
    error(),
]
PIECES = st.one_of(st.sampled_from(LEGAL), st.sampled_from(ILLEGAL), st.binary(max_size=60))
STREAMS = st.builds(
    lambda held, first, rest: b"".join([*held, first, *rest]),
    st.lists(st.sampled_from([role(), b": waiting\n\n", b"event: ping\n\n"]), max_size=2),
    st.sampled_from(COMMITTING),
    st.lists(PIECES, max_size=12),
)
OUR_EVENT = re.compile(rb'data: \{"error":\{"message":"[^"\n]*","type":"upstream_error","param":null,"code":"[a-z_]+"\}\}\n\n')
LINE_END = re.compile(rb"\r\n|\r|\n")


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Cut at the given places, each taken modulo the length."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def has_done(data: bytes) -> bool:
    """Whether a line `data: [DONE]` has ended."""
    return any(line in (b"data: [DONE]", b"data:[DONE]") for line in LINE_END.split(data)[:-1])


def framed(data: bytes, framing: BodyFraming, rng: random.Random) -> bytes:
    """Put a whole answer on the wire; HTTP chunks get sizes of their own, independent of how TCP cuts them."""
    lines = [("Content-Type", "text/event-stream")]
    if framing == "chunked":
        chunks = split(data, [rng.randrange(len(data) + 1) for _ in range(rng.randrange(6))])
        return (
            head(200, [*lines, ("Transfer-Encoding", "chunked")]) + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
        )
    if framing == "length":
        return head(200, [*lines, ("Content-Length", str(len(data)))]) + data
    return head(200, lines) + data


def check_stream(sent: bytes, got: Response) -> None:
    """Compare one whole stream with what the client got of it."""
    assert got.status == 200
    added = got.body[len(sent) :]
    assert got.body[: len(sent)] == sent
    if has_done(sent):
        assert (added, got.end) == (b"", "complete")
        return
    assert added == b"" or OUR_EVENT.fullmatch(added), added
    if added:
        assert got.end == "cut"


class Streams:
    """Sends one random stream after the other through the same relay."""

    def __init__(self, relay: RelayProcess, upstream: ScriptedUpstream) -> None:
        self._relay = relay
        self._upstream = upstream
        self._count = 0

    async def through(self, data: bytes, framing: BodyFraming, cuts: Sequence[int], seed: int) -> None:
        self._count += 1
        model = f"random-{self._count}"
        pieces = split(framed(data, framing, random.Random(seed)), cuts)
        self._upstream.route(model, raw(*pieces, end="fin" if framing == "close" else "clean"))
        async with await self._relay.connect() as client:
            await client.post(CHAT, {"model": model, "stream": True})
            check_stream(data, await client.read_response())


@pytest.fixture(scope="module")
async def streams(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> Streams:
    return Streams(relay, shared_upstream)


ANY_STREAM = given(
    data=STREAMS,
    framing=st.sampled_from(["chunked", "length", "close"]),
    cuts=st.lists(st.integers(0, 30_000), max_size=8),
    seed=st.integers(0, 2**32),
)
SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate, Phase.shrink],
)


@settings(SETTINGS, max_examples=500)
@ANY_STREAM
async def test_random_stream_arrives_unchanged(streams: Streams, data: bytes, framing: BodyFraming, cuts: list[int], seed: int) -> None:
    await streams.through(data, framing, cuts, seed)


@pytest.mark.slow
@settings(SETTINGS, max_examples=10_000)
@ANY_STREAM
async def test_many_random_streams_arrive_unchanged(
    streams: Streams, data: bytes, framing: BodyFraming, cuts: list[int], seed: int
) -> None:
    await streams.through(data, framing, cuts, seed)


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_event_of_four_megabytes_arrives_unchanged(streams: Streams, framing: BodyFraming) -> None:
    await streams.through(content("x") + content("image" * 800_000) + DONE, framing, [1, 70_000, 2_000_000], 1)


# Other bodies


async def fetch(relay: RelayProcess, model: str, *, method: str = "POST", path: str = CHAT) -> Response:
    async with await relay.connect() as client:
        if method == "POST":
            await client.post(path, {"model": model})
        else:
            await client.request(method, f"{path}?model={model}")
        return await client.read_response(method=method)


JSON = ("Content-Type", "application/json")
ODD_ERRORS: list[tuple[int, list[tuple[str, str]], bytes]] = [
    (400, [JSON], b'{"error":{"message":"no","code":17}}'),
    (400, [JSON], b"[1, 2"),
    (404, [("Content-Type", "text/html")], b"<html><h1>Not Found</h1></html>"),
    (409, [JSON], b"\xff\xfe\x00"),
    (413, [("Content-Type", "text/plain")], b"too large"),
    (418, [], b"I am\r\n\r\na teapot"),
    (422, [JSON], b"[]"),
    (429, [JSON, ("Retry-After", "7"), ("X-Should-Retry", "false")], b'{"error":"slow"}'),
    (451, [JSON], b""),
    (500, [("Content-Type", "text/event-stream")], b"data: half an ev"),
    (503, [JSON, ("Retry-After", "Fri, 31 Dec 1999 23:59:59 GMT")], b"x" * 200_000),
    (529, [JSON], b'{"type":"error","error":{"type":"overloaded_error"}}'),
    (599, [("Content-Type", "application/octet-stream")], bytes(range(256))),
]


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize(("status", "lines", "body"), ODD_ERRORS, ids=[str(row[0]) + f"-{n}" for n, row in enumerate(ODD_ERRORS)])
async def test_error_body_arrives_unchanged(
    relay: RelayProcess, shared_upstream: ScriptedUpstream, framing: str, status: int, lines: list[tuple[str, str]], body: bytes
) -> None:
    model = f"error-{framing}-{status}-{len(body)}"
    framing_line = {"chunked": [("Transfer-Encoding", "chunked")], "length": [("Content-Length", str(len(body)))], "close": []}[framing]
    wire = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if framing == "chunked" and body else b"0\r\n\r\n" if framing == "chunked" else body
    shared_upstream.route(model, raw(head(status, [*lines, *framing_line]), wire, end="fin" if framing == "close" else "clean"))
    got = await fetch(relay, model)
    assert (got.status, got.body, got.end) == (status, body, "complete")
    for name, value in lines:
        assert got.all(name) == [value.encode()]
    if not lines:
        assert got.header("content-type") is None


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("media_type", ["application/json", "text/event-stream"])
async def test_encoded_body_passes_untouched_with_its_header(
    relay: RelayProcess, shared_upstream: ScriptedUpstream, coding: str, status: int, media_type: str
) -> None:
    model = f"encoded-{coding}-{status}-{media_type[:4]}"
    body = gzip.compress(b'{"id":"x"}' * 500, mtime=0) if coding == "gzip" else b"\x28\xb5\x2f\xfd\x00 not really"
    shared_upstream.route(model, respond(status, [("Content-Type", media_type), ("Content-Encoding", coding)], body))
    got = await fetch(relay, model)
    assert (got.status, got.body, got.all("content-encoding")) == (status, body, [coding.encode()])
    assert got.header("content-type") == media_type.encode()


@pytest.mark.parametrize(("method", "status"), [("GET", 204), ("DELETE", 204), ("GET", 304), ("POST", 204)])
async def test_answer_without_a_body_has_none(relay: RelayProcess, shared_upstream: ScriptedUpstream, method: str, status: int) -> None:
    path = f"/v1/nothing/{method}/{status}"
    shared_upstream.route(path, raw(head(status, [("ETag", '"a"'), ("Content-Length", "0")] if status == 304 else [("ETag", '"a"')])))
    async with await relay.connect() as client:
        for _ in range(2):  # the second one on the same connection shows that no stray byte followed the first
            await client.request(method, path)
            got = await client.read_response(method=method)
            assert (got.status, got.raw.partition(b"\r\n\r\n")[2], got.header("etag")) == (status, b"", b'"a"')
            assert got.header("transfer-encoding") is None


async def test_head_keeps_the_length_and_sends_no_body(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("/v1/files/f", raw(head(200, [("Content-Type", "application/pdf"), ("Content-Length", "123456789")])))
    async with await relay.connect() as client:
        await client.request("HEAD", "/v1/files/f")
        got = await client.read_response(method="HEAD")
        assert (got.status, got.all("content-length"), got.body) == (200, [b"123456789"], b"")
        await client.request("GET", "/healthz")
        assert (await client.read_response(method="GET")).body == b'{"status":"ok"}'


async def test_repeated_and_odd_headers_arrive_as_they_were(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    lines: list[tuple[str | bytes, str | bytes]] = [
        ("Content-Type", "application/json"),
        ("X-Thing", "one"),
        ("x-THING", "two"),
        ("X-Thing", "one"),
        (b"X-Latin", b"caf\xe9 \x80\xff"),
        (b"X-Utf8", "näme".encode()),
        ("X-Empty", ""),
        ("Link", "<a>; rel=next"),
        ("Link", "<b>; rel=prev"),
        ("X-Tab", "a\tb"),
        ("WWW-Authenticate", 'Basic realm="x"'),
    ]
    shared_upstream.route("odd-headers", respond(200, lines, b'{"id":"x"}'))
    got = await fetch(relay, "odd-headers")
    assert got.all("x-thing") == [b"one", b"two", b"one"]
    assert got.all("x-latin") == [b"caf\xe9 \x80\xff"]
    assert got.all("x-utf8") == ["näme".encode()]
    assert got.all("x-empty") == [b""]
    assert got.all("x-tab") == [b"a\tb"]
    assert got.all("link") == [b"<a>; rel=next", b"<b>; rel=prev"]
    assert b"x-THING: two" in got.head.raw


async def test_audio_is_committed_at_once_and_arrives_unchanged(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    audio = random.Random(7).randbytes(300_000)
    go_on = asyncio.Event()

    async def speak(peer: Peer) -> None:
        await peer.send(head(200, [("Content-Type", "audio/mpeg"), ("Transfer-Encoding", "chunked")]))
        await peer.send_chunk(audio[:1])
        await asyncio.wait_for(go_on.wait(), 5)
        for start in range(1, len(audio), 7919):
            await peer.send_chunk(audio[start : start + 7919])
        await peer.send(b"0\r\n\r\n")

    shared_upstream.route("tts", speak)
    async with await relay.connect() as client:
        await client.post("/v1/audio/speech", {"model": "tts", "input": "hi"})
        # The upstream waits for us: the head and the first byte must come before there is a second one.
        await client.read_until(b"\r\n\r\n1\r\n" + audio[:1] + b"\r\n", within=AT_ONCE_SECONDS)
        go_on.set()
        got = await client.read_response()
    assert (got.body, got.end, got.header("content-type")) == (audio, "complete", b"audio/mpeg")


def in_two(first: bytes, second: bytes, go_on: asyncio.Event) -> Script:
    """Send the first part at once and the second when it is asked for."""

    async def script(peer: Peer) -> None:
        await peer.send(first)
        await go_on.wait()
        await peer.send(second)

    return script


async def test_head_of_an_opaque_answer_does_not_wait_for_its_body(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    go_on = asyncio.Event()
    parts = head(200, [("Content-Type", "text/csv"), ("Content-Length", "5")]), b"1,2,3"
    shared_upstream.route("/v1/files/slow/content", in_two(*parts, go_on))
    async with await relay.connect() as client:
        await client.request("GET", "/v1/files/slow/content")
        assert (await client.read_head(within=AT_ONCE_SECONDS)).header("content-length") == b"5"
        go_on.set()
        await client.read_until(b"1,2,3")


async def test_whole_answer_of_nine_megabytes_arrives_unchanged(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    body = json.dumps({"data": random.Random(8).randbytes(4_700_000).hex()}).encode()
    shared_upstream.route("nine", respond(200, [JSON], body))
    got = await fetch(relay, "nine", path="/v1/embeddings")
    assert (hashlib.sha256(got.body).digest(), got.end) == (hashlib.sha256(body).digest(), "complete")


async def test_slow_whole_answer_is_released_after_two_seconds(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    body = b'{"id":' + b" " * 100 + b"1}"
    go_on = asyncio.Event()
    shared_upstream.route("slow-json", in_two(head(200, [JSON, ("Content-Length", str(len(body)))]) + body[:50], body[50:], go_on))
    async with await relay.connect() as client:
        await client.post(CHAT, {"model": "slow-json"})
        await client.read_until(body[:50])
        go_on.set()
        got = await client.read_response()
    assert (got.body, got.all("content-length"), got.end) == (body, [str(len(body)).encode()], "complete")


async def test_accounts_are_in_order_afterwards(relay: RelayProcess) -> None:
    await relay.assert_identities()
