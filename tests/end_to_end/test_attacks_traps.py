"""Traps that catch a conventional relay: what its HTTP libraries do by default and nobody asked for.

Others of the same kind stand with their relatives: cookies, Latin-1 going up, malformed chunks and encoded uploads in the tables of
attacks, aborts by the hundred with the disconnects.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import pytest

from relay.config.tree import Timeouts
from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed
from tests.fakes import events, scripts
from tests.fakes.client import RawClient
from tests.fakes.upstream import Peer, ScriptedUpstream


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    base_url = f"http://localhost:{shared_upstream.port}/v1"
    config = {"upstreams": {"mine": {"base_url": base_url, "api_key": "sk-upstream"}}, "routes": {"*": "mine/*"}}
    bed = Bed(await shared_relay_with(config), shared_upstream)
    yield bed
    await bed.settle_accounts()


async def test_cookie_of_one_client_never_reaches_the_next(bed: Bed) -> None:
    """A session's cookie jar does this by default; it keeps no cookies of IP addresses, so the upstream has a name here."""
    bed.upstream.route("jar", scripts.json_answer(ANSWER, headers=[("Set-Cookie", "session=of-the-first; Path=/")]))
    await bed.forwarded(CHAT, {"model": "jar"})
    answer, got = await bed.forwarded(CHAT, {"model": "jar"})
    assert (got.all("cookie"), answer.all("set-cookie")) == ([], [])


@pytest.mark.parametrize("stream", [False, True])
async def test_abort_before_the_head_closes_the_upstream(bed: Bed, stream: bool) -> None:
    model = f"silent-head-{stream}"
    bed.upstream.route(model, scripts.hang())
    async with await bed.relay.connect() as client:
        await client.post(CHAT, {"model": model, "stream": stream})
        (got,) = await bed.upstream.wait_for(model)
        client.fin()
        assert await bed.upstream.wait_closed(got, within=2.5) in ("fin", "rst")
    await bed.relay.wait_log(model=model, outcome="client_gone")


async def test_abort_in_a_silent_stream_closes_the_upstream(bed: Bed) -> None:
    """Nothing is written while a stream is silent, so no write fails: the end of the client must be seen for itself."""
    bed.upstream.route("silent-stream", scripts.sse([events.role(), events.content("one")], end="hang"))
    async with await bed.relay.connect() as client:
        await client.post(CHAT, {"model": "silent-stream", "stream": True})
        await client.read_until(b"one")
        (got,) = await bed.upstream.wait_for("silent-stream")
        client.fin()
        assert await bed.upstream.wait_closed(got, within=2.5) in ("fin", "rst")
    await bed.relay.wait_log(model="silent-stream", outcome="client_gone")


async def test_gzip_upload_is_not_unpacked_and_keeps_its_label(bed: Bed) -> None:
    bed.upstream.route("/v1/images", scripts.json_answer(ANSWER))
    body = gzip.compress(b'{"model":"inside"}')
    _, got = await bed.forwarded("/v1/images", body, [("Content-Encoding", "gzip")])
    assert (got.body, got.header("content-encoding"), got.header("content-length")) == (body, b"gzip", b"%d" % len(body))


async def test_encoded_slash_in_path_and_query_stays_encoded(bed: Bed) -> None:
    target = "/v1/images/a%2Fb%2fc?path=d%2Fe&plus=%2B+&percent=%25"
    bed.upstream.route(target.partition("?")[0], scripts.json_answer(ANSWER))
    _, got = await bed.forwarded(target, None, method="GET")
    assert got.target == target.encode()


async def test_repeated_query_parameters_keep_order_and_number(bed: Bed) -> None:
    bed.upstream.route("/v1/images", scripts.json_answer(ANSWER))
    target = "/v1/images?include[]=a&include[]=b&include[]=a&empty=&bare&&x=1;y=2"
    _, got = await bed.forwarded(target, None, method="GET")
    assert got.target == target.encode()


@pytest.mark.parametrize("value", ["naïve".encode("latin-1"), b"\x80\xff", "日本".encode(), b"\xed\xa0\x80", b"caf\xe9; x=\xfc"])
async def test_odd_bytes_in_a_response_header_pass_as_they_came(bed: Bed, value: bytes) -> None:
    headers = [("Content-Type", b"application/json"), ("X-Odd", value), ("X-Odd", b"second")]
    bed.upstream.route("odd-header", scripts.respond(200, headers, json.dumps(ANSWER).encode()))
    answer, _ = await bed.forwarded(CHAT, {"model": "odd-header"})
    assert answer.all("x-odd") == [value, b"second"]


async def test_content_type_that_the_upstream_did_not_send_is_not_invented(bed: Bed) -> None:
    bed.upstream.route("/v1/images", scripts.respond(200, [], b"\x89PNG"))
    answer, _ = await bed.forwarded("/v1/images", None, method="GET")
    assert (answer.body, answer.all("content-type"), answer.all("server"), answer.all("date")) == (b"\x89PNG", [], [], [])


def test_no_default_ends_a_stream_of_five_minutes() -> None:
    """A client library's default of 300 s in all cuts every long answer; ours bound silence, and the whole only at an hour."""
    defaults = Timeouts()
    assert (defaults.connect, defaults.first_token, defaults.between_tokens, defaults.write, defaults.total) == (5, 120, 120, 30, 3600)


async def test_hundreds_of_streams_to_one_upstream_run_at_the_same_time(bed: Bed) -> None:
    """A connector's default of 100 connections makes the 101st wait without a word."""
    count = 250
    everybody = asyncio.Event()
    waiting = 0

    async def script(peer: Peer) -> None:
        nonlocal waiting
        await peer.send(scripts.head(200, [*scripts.EVENT_STREAM, ("Transfer-Encoding", "chunked")]))
        await peer.send_chunk(events.content("first"))
        waiting += 1
        if waiting == count:
            everybody.set()
        await everybody.wait()
        await peer.send_chunk(events.DONE)
        await peer.send(scripts.LAST_CHUNK)

    bed.upstream.route("crowd", script)
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*(bed.send(CHAT, {"model": "crowd", "stream": True}) for _ in range(count)))
    assert {(answer.status, answer.end, answer.has_done) for answer in answers} == {(200, "complete", True)}


@pytest.mark.parametrize(
    "lines",
    [[("Content-Length", "0")], [], [("Content-Type", "application/json"), ("Content-Length", "0")], [("Transfer-Encoding", "chunked")]],
)
async def test_post_with_an_empty_body_arrives_as_one(bed: Bed, lines: list[tuple[str, str]]) -> None:
    bed.upstream.route("/v1/images/cancel", scripts.json_answer(ANSWER))
    known = len(bed.upstream.requests)
    async with await bed.relay.connect() as client:
        await client.request("POST", "/v1/images/cancel", lines, b"0\r\n\r\n" if lines and lines[0][0].startswith("T") else None)
        assert (await client.read_response()).status == 200
    (got,) = bed.upstream.requests[known:]
    assert got.body == b""
    assert got.header("content-length") == b"0" or got.header("transfer-encoding") == b"chunked"


@pytest.mark.parametrize("path", ["/v1/images", CHAT, "/v1/files"])
async def test_head_keeps_the_length_and_has_no_body(bed: Bed, path: str) -> None:
    head = scripts.head(200, [("Content-Type", "application/json"), ("Content-Length", "1234")])
    bed.upstream.route(path, scripts.raw(head))
    async with await bed.relay.connect() as client:
        for _ in range(2):
            await client.request("HEAD", path)
            answer = await client.read_response(method="HEAD")
            assert (answer.status, answer.header("content-length"), answer.all("transfer-encoding")) == (200, b"1234", [])
        await still_in_step(client)
    assert bed.upstream.of(path)[-1].method == b"HEAD"


async def still_in_step(client: RawClient) -> None:
    """Assert that the connection's framing is whole: the next answer begins where the last one ended."""
    await client.request("GET", "/healthz")
    assert (await client.read_response(method="GET")).json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/v1/images", CHAT, "/v1/files"])
async def test_options_is_the_upstreams_business(bed: Bed, path: str) -> None:
    bed.upstream.route(path, scripts.respond(204, [("Allow", "GET, POST, OPTIONS")]))
    answer, got = await bed.forwarded(path, None, method="OPTIONS")
    assert (answer.status, answer.header("allow"), got.method) == (204, b"GET, POST, OPTIONS", b"OPTIONS")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "QUERY", "PURGE"])
async def test_other_methods_pass_with_their_bodies(bed: Bed, method: str) -> None:
    bed.upstream.route("/v1/images", scripts.json_answer(ANSWER))
    headers = [("Content-Type", "application/octet-stream")]
    _, got = await bed.forwarded("/v1/images", b"\0\1\2", headers, method=method)
    assert (got.method, got.body) == (method.encode(), b"\0\1\2")


@pytest.mark.parametrize("status", [204, 304])
async def test_answer_without_a_body_has_no_framing_of_one(bed: Bed, status: int) -> None:
    bed.upstream.route("/v1/images", scripts.raw(scripts.head(status, [("ETag", '"x"')])))
    async with await bed.relay.connect() as client:
        await client.request("GET", "/v1/images")
        answer = await client.read_response(method="GET")
        assert (answer.status, answer.all("transfer-encoding"), answer.header("etag")) == (status, [], b'"x"')
        await still_in_step(client)
