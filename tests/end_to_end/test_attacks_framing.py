"""Ambiguous HTTP (A1-A12, A14, A15): refused with a fixed answer and a close, and nothing behind it is ever read as a request."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, SMUGGLED, Bed, Refusal, answers_in, post, request
from tests.fakes import scripts
from tests.fakes.relay import config_for
from tests.fakes.upstream import ScriptedUpstream

BODY = b'{"model":"attack"}'
GARBLED = Refusal(status=400, code="bad_request", outcome=None, closes=True)
BAD_CODING = Refusal(status=400, code="bad_transfer_encoding", closes=True)
BAD_HOST = Refusal(status=400, code="bad_host", closes=True)
BAD_VERSION = Refusal(status=400, code="bad_request", closes=True)
BAD_UPGRADE = Refusal(status=400, code="bad_upgrade", closes=True)
TOO_LARGE = Refusal(status=431, code="headers_too_large", outcome=None, closes=True)
CHUNKED_BODY = b"12\r\n" + BODY + b"\r\n0\r\n\r\n"


def length(value: bytes) -> bytes:
    return post(b"Content-Length: " + value, body=BODY)


def coding(line: bytes) -> bytes:
    return post(line, body=CHUNKED_BODY)


CASES: dict[str, tuple[bytes, Refusal]] = {
    "A1 length then chunked": (post(b"Content-Length: 18", b"Transfer-Encoding: chunked", body=CHUNKED_BODY), GARBLED),
    "A1 chunked then length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 18", body=CHUNKED_BODY), GARBLED),
    "A1 chunked and length 0": (post(b"Transfer-Encoding: chunked", b"Content-Length: 0", body=CHUNKED_BODY), GARBLED),
    "A2 doubled, same": (post(b"Content-Length: 18", b"Content-Length: 18", body=BODY), GARBLED),
    "A2 doubled, different": (post(b"Content-Length: 18", b"Content-Length: 0", body=BODY), GARBLED),
    "A2 list": (length(b"18, 18"), GARBLED),
    "A2 plus": (length(b"+18"), GARBLED),
    "A2 minus": (length(b"-18"), GARBLED),
    "A2 underscore": (length(b"1_8"), GARBLED),
    "A2 hexadecimal": (length(b"0x12"), GARBLED),
    "A2 empty": (length(b""), GARBLED),
    "A2 overflow": (length(b"1" * 40), GARBLED),
    "A2 fraction": (length(b"18.0"), GARBLED),
    "A2 inner space": (length(b"1 8"), GARBLED),
    "A3 misspelt": (coding(b"Transfer-Encoding: xchunked"), GARBLED),
    "A3 identity": (coding(b"Transfer-Encoding: identity"), GARBLED),
    "A3 chunked, identity": (coding(b"Transfer-Encoding: chunked, identity"), GARBLED),
    "A3 doubled": (coding(b"Transfer-Encoding: chunked, chunked"), GARBLED),
    "A3 two lines": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED_BODY), GARBLED),
    "A3 vertical tab": (coding(b"Transfer-Encoding: \x0bchunked"), GARBLED),
    "A3 space before colon": (coding(b"Transfer-Encoding : chunked"), GARBLED),
    "A3 quoted": (coding(b'Transfer-Encoding: "chunked"'), GARBLED),
    "A3 parameter": (coding(b"Transfer-Encoding: chunked;q=1"), GARBLED),
    "A4 gzip, chunked": (coding(b"Transfer-Encoding: gzip, chunked"), BAD_CODING),
    "A4 two lines": (post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=CHUNKED_BODY), GARBLED),
    "A5 chunked on 1.0": (
        request(b"POST /v1/chat/completions HTTP/1.0", b"Host: relay", b"Transfer-Encoding: chunked", body=CHUNKED_BODY),
        BAD_CODING,
    ),
    "A14 length among the trailers": (
        post(b"Transfer-Encoding: chunked", body=CHUNKED_BODY[:-2] + b"Content-Length: 3\r\n\r\n"),
        GARBLED,
    ),
    "A6 no version": (b"GET /v1/files\r\n\r\n", BAD_VERSION),
    "A6 version 0.9": (request(b"GET /v1/files HTTP/0.9", b"Host: relay"), BAD_VERSION),
    "A6 version 2.0": (request(b"GET /v1/files HTTP/2.0", b"Host: relay"), BAD_VERSION),
    "A6 version 1.2": (request(b"GET /v1/files HTTP/1.2", b"Host: relay"), GARBLED),
    "A6 no Host on 1.0": (request(b"GET /v1/files HTTP/1.0"), BAD_HOST),
    "A7 bare LF": (b"POST /v1/chat/completions HTTP/1.1\nHost: relay\nContent-Length: 18\n\n" + BODY, GARBLED),
    "A7 bare CR": (post(b"X-A: b\rContent-Length: 18", body=BODY), GARBLED),
    "A7 folded": (post(b"X-A: b\r\n c", b"Content-Length: 18", body=BODY), GARBLED),
    "A7 NUL": (post(b"X-A: b\0c", b"Content-Length: 18", body=BODY), GARBLED),
    "A7 no colon": (post(b"X-A", b"Content-Length: 18", body=BODY), GARBLED),
    "A7 no name": (post(b": b", b"Content-Length: 18", body=BODY), GARBLED),
    "A7 space in name": (post(b"X A: b", b"Content-Length: 18", body=BODY), GARBLED),
    "A7 negative chunk": (post(b"Transfer-Encoding: chunked", body=b"-1\r\n\r\n"), GARBLED),
    "A7 two requests for h2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", GARBLED),
    "A8 two Hosts": (request(b"GET /v1/files HTTP/1.1", b"Host: relay", b"Host: evil"), GARBLED),
    "A8 no Host": (request(b"GET /v1/files HTTP/1.1"), GARBLED),
    "A8 Host with a path": (request(b"GET /v1/files HTTP/1.1", b"Host: a/b?c"), BAD_HOST),
    "A8 Host with a user": (request(b"GET /v1/files HTTP/1.1", b"Host: user@relay"), BAD_HOST),
    "A8 Host with a list": (request(b"GET /v1/files HTTP/1.1", b"Host: relay, evil"), BAD_HOST),
    "A8 empty Host": (request(b"GET /v1/files HTTP/1.1", b"Host:"), BAD_HOST),
    "A9 absolute URL": (request(b"GET http://evil/v1/files HTTP/1.1", b"Host: relay"), GARBLED),
    "A9 absolute URL to another path": (request(b"GET http://evil/admin HTTP/1.1", b"Host: evil"), GARBLED),
    "A9 absolute https": (request(b"GET https://evil/v1/files HTTP/1.1", b"Host: relay"), GARBLED),
    "A9 asterisk": (request(b"OPTIONS * HTTP/1.1", b"Host: relay"), GARBLED),
    "A9 relative": (request(b"GET v1/files HTTP/1.1", b"Host: relay"), GARBLED),
    "A9 CONNECT": (request(b"CONNECT evil:443 HTTP/1.1", b"Host: evil:443"), GARBLED),
    "A9 TRACE": (request(b"TRACE /v1/files HTTP/1.1", b"Host: relay"), Refusal(status=405, code="method_not_allowed", closes=True)),
    "A10 websocket elsewhere": (post(b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 2"), BAD_UPGRADE),
    "A10 websocket with a body": (
        request(b"GET /v1/realtime HTTP/1.1", b"Host: a", b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 2", body=b"{}"),
        BAD_UPGRADE,
    ),
    "A10 h2c": (
        post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", b"Content-Length: 2"),
        BAD_UPGRADE,
    ),
    "A10 h2c on realtime": (request(b"GET /v1/realtime HTTP/1.1", b"Host: a", b"Connection: Upgrade", b"Upgrade: h2c"), BAD_UPGRADE),
    "A10 Upgrade not nominated": (request(b"GET /v1/files HTTP/1.1", b"Host: a", b"Upgrade: websocket"), BAD_UPGRADE),
    "A15 long path": (request(b"GET /v1/files/" + b"SECRETPATH" * 1000 + b" HTTP/1.1", b"Host: a"), TOO_LARGE),
    "A15 long query": (request(b"GET /v1/files?q=" + b"SECRETPATH" * 1000 + b" HTTP/1.1", b"Host: a"), TOO_LARGE),
    "A15 long header": (request(b"GET /v1/files HTTP/1.1", b"Host: a", b"X-Long: " + b"SECRETPATH" * 1000), TOO_LARGE),
    "A15 long header name": (request(b"GET /v1/files HTTP/1.1", b"Host: a", b"SECRETPATH" * 1000 + b": x"), TOO_LARGE),
    "A15 endless header": (b"GET /v1/files HTTP/1.1\r\nHost: a\r\nX-Long: " + b"SECRETPATH" * 4000, TOO_LARGE),
    "A15 many headers": (
        request(b"GET /v1/files HTTP/1.1", b"Host: a", *(b"X-%d: SECRETPATH" % number for number in range(500))),
        GARBLED,
    ),
    "A15 many bytes of headers": (
        request(b"GET /v1/files HTTP/1.1", b"Host: a", *(b"X-%d: %b" % (number, b"SECRETPATH" * 200) for number in range(20))),
        Refusal(status=431, code="headers_too_large", closes=True),
    ),
}


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    bed = Bed(await shared_relay_with(config_for(shared_upstream)), shared_upstream)
    yield bed
    await bed.settle_accounts()
    assert not shared_upstream.of("smuggled")


@pytest.mark.parametrize("name", CASES)
async def test_ambiguous_request_is_refused_and_nothing_behind_it_is_read(bed: Bed, name: str) -> None:
    data, wanted = CASES[name]
    answer = await bed.refuse(data, wanted)
    seen = bed.seen
    async with await bed.relay.connect() as client:
        await client.send(data + SMUGGLED)
        got, _ = await client.read_until_close(within=5)
    assert answers_in(got) == 1
    assert got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 %d " % wanted.status))
    assert bed.seen == seen
    assert b"SECRETPATH" not in answer.raw + got
    assert "SECRETPATH" not in bed.relay.stderr()


async def test_a8_host_decides_neither_route_nor_address_nor_what_the_upstream_is_told(bed: Bed) -> None:
    bed.upstream.route("host", scripts.json_answer(ANSWER))
    for host in ("evil.example", f"127.0.0.1:{bed.relay.port + 1}", "[::1]:80", "169.254.169.254"):
        answer, got = await bed.forwarded(
            CHAT, {"model": "host"}, [("Host", host), ("X-Forwarded-Host", "evil"), ("Forwarded", "host=evil")]
        )
        assert answer.status == 200
        assert got.all("host") == [f"127.0.0.1:{bed.upstream.port}".encode()]
        assert b"evil" not in got.head


async def test_a6_version_1_0_with_a_host_is_served(bed: Bed) -> None:
    bed.upstream.route("old", scripts.json_answer(ANSWER))
    async with await bed.relay.connect() as client:
        await client.post(CHAT, {"model": "old"}, version="HTTP/1.0")
        answer = await client.read_response()
    assert (answer.status, answer.json(), answer.header("connection")) == (200, ANSWER, b"close")


async def test_pipelined_requests_are_answered_in_order_and_each_is_sent_once(bed: Bed) -> None:
    """The honest counterpart of smuggling: as many requests arrive as were intended."""
    names = [f"pipelined-{number}" for number in range(20)]
    for name in names:
        bed.upstream.route(name, scripts.json_answer({**ANSWER, "id": name}))
    bodies = [b'{"model":"%b"}' % name.encode() for name in names]
    async with await bed.relay.connect() as client:
        await client.send(b"".join(post(b"Content-Length: %d" % len(body), body=body) for body in bodies))
        answers = [await client.read_response() for _ in names]
    assert [answer.json()["id"] for answer in answers] == names
    assert [len(bed.upstream.of(name)) for name in names] == [1] * len(names)


async def test_request_behind_a_refused_one_is_a_request_of_its_own_when_the_framing_is_sound(bed: Bed) -> None:
    """A refusal for what the body says leaves the connection's framing whole: what follows is the client's next request."""
    bed.upstream.route("after-refusal", scripts.json_answer(ANSWER))
    known = len(bed.upstream.requests)
    async with await bed.relay.connect() as client:
        await client.post(CHAT, b'{"model":')
        await client.post(CHAT, {"model": "after-refusal"})
        refused, served = await client.read_response(), await client.read_response()
    assert (refused.status, refused.error_code, served.status) == (400, "invalid_json", 200)
    assert [request.model for request in bed.upstream.requests[known:]] == ["after-refusal"]


async def test_a10_bytes_behind_an_upgrade_on_a_path_without_one_are_never_a_request(bed: Bed) -> None:
    for upgrade in (b"websocket", b"h2c", b"TLS/1.0", b"websocket, h2c"):
        data = post(b"Connection: Upgrade", b"Upgrade: " + upgrade, b"Content-Length: 18", body=BODY) + SMUGGLED * 3
        async with await bed.relay.connect() as client:
            await client.send(data)
            got, _ = await client.read_until_close(within=5)
        assert answers_in(got) == 1
    assert not bed.upstream.of("smuggled")
    await bed.still_serves()


async def test_a11_hop_by_hop_and_nominated_headers_stop_at_the_relay_on_the_way_up(bed: Bed) -> None:
    bed.upstream.route("hop-up", scripts.json_answer(ANSWER))
    hops = [
        ("Connection", "Authorization, X-Title, keep-alive"),
        ("Connection", "x-stainless-lang"),
        ("X-Title", "nominated"),
        ("X-Stainless-Lang", "nominated"),
        ("X-Stainless-OS", "kept"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Trailer", "X-T"),
        ("Proxy-Authorization", "Basic x"),
        ("Proxy-Connection", "keep-alive"),
        ("X-Relay-Tenant", "root"),
    ]
    _, got = await bed.forwarded(CHAT, {"model": "hop-up"}, hops)
    names = {name.lower() for name, _ in got.headers}
    own = {b"host", b"accept-encoding", b"authorization", b"content-type", b"content-length", b"traceparent"}
    assert names == own | {b"x-stainless-os"}
    assert got.all("authorization") == [b"Bearer sk-upstream"]


async def test_a11_hop_by_hop_and_nominated_headers_stop_at_the_relay_on_the_way_down(bed: Bed) -> None:
    hops = [
        ("Connection", "X-Secret, keep-alive"),
        ("X-Secret", "nominated"),
        ("X-Kept", "one"),
        ("X-Kept", "two"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Authentication-Info", "x"),
        ("Proxy-Connection", "keep-alive"),
        ("Trailer", "X-T"),
        ("TE", "trailers"),
        ("Alt-Svc", 'h3=":443"'),
        ("Strict-Transport-Security", "max-age=1"),
        ("Set-Cookie", "a=b"),
        ("Set-Cookie2", "a=b"),
    ]
    bed.upstream.route("hop-down", scripts.json_answer(ANSWER, 200, hops))
    answer, _ = await bed.forwarded(CHAT, {"model": "hop-down"})
    ours = {b"x-relay-request-id", b"x-relay-route", b"x-relay-upstream", b"x-relay-attempts", b"x-request-id"}
    assert {name.lower() for name, _ in answer.headers} - ours == {b"content-type", b"content-length", b"x-kept"}
    assert answer.all("x-kept") == [b"one", b"two"]


async def test_a12_framing_towards_the_upstream_is_built_anew(bed: Bed) -> None:
    bed.upstream.route("anew", scripts.json_answer(ANSWER))
    body = b'{"model":"anew"}'
    cases = [
        post(b"Transfer-Encoding: chunked", body=b"8\r\n" + body[:8] + b"\r\n8;x=y\r\n" + body[8:] + b"\r\n0\r\n\r\n"),
        post(b"content-length: 16", b"Expect: 100-continue", body=body),
        post(b"Content-Length: 0016", body=body),
    ]
    for data in cases:
        known = len(bed.upstream.requests)
        async with await bed.relay.connect() as client:
            await client.send(data)
            assert (await client.read_response()).status == 200
        (got,) = bed.upstream.requests[known:]
        assert (got.all("content-length"), got.all("transfer-encoding"), got.body) == ([b"16"], [], body)
        assert (len(got.all("host")), got.all("expect")) == (1, [])


async def test_a12_length_that_lies_is_never_passed_on(bed: Bed) -> None:
    """A client that announces more than it sends is a client that left: the upstream is not asked."""
    seen = bed.seen
    async with await bed.relay.connect() as client:
        await client.send(post(b"Content-Length: 50", body=BODY))
        client.half_close()
        got, _ = await client.read_until_close(within=5)
    assert answers_in(got) == 0
    assert bed.seen == seen
    await bed.still_serves()


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
async def test_a14_trailers_are_dropped(bed: Bed, path: str) -> None:
    bed.upstream.route("trailers", scripts.json_answer(ANSWER))
    bed.upstream.route("/v1/files", scripts.json_answer({"ok": True}))
    body = b'{"model":"trailers"}'
    known = len(bed.upstream.requests)
    trailers = b"Authorization: Bearer sk-trailer\r\nX-Title: trailer\r\n\r\n"
    lines = (b"Transfer-Encoding: chunked", b"Content-Type: application/octet-stream")
    async with await bed.relay.connect() as client:
        await client.send(post(*lines, body=b"14\r\n" + body + b"\r\n0\r\n" + trailers, path=path.encode()))
        assert (await client.read_response()).status == 200
        await client.post(CHAT, {"model": "still-serving"})
        assert (await client.read_response()).status == 200
    got, _ = bed.upstream.requests[known:]
    assert got.body == body
    assert b"railer" not in got.head
    assert got.all("authorization") == [b"Bearer sk-upstream"]


async def test_a15_headers_within_the_bounds_pass(bed: Bed) -> None:
    bed.upstream.route("roomy", scripts.json_answer(ANSWER))
    headers = [(f"X-Stainless-{number}", "v" * 400) for number in range(60)]
    _, got = await bed.forwarded(CHAT, {"model": "roomy"}, headers)
    assert [value for name, value in got.headers if name.lower().startswith(b"x-stainless-")] == [b"v" * 400] * 60


async def test_broken_bytes_at_every_cut_never_become_two_requests(bed: Bed) -> None:
    """TCP may split a request anywhere: what is refused whole is refused in pieces too, and no piece is read as a request."""
    data = post(b"Content-Length: 18", b"Transfer-Encoding: chunked", body=CHUNKED_BODY) + SMUGGLED

    async def cut(at: int) -> bytes:
        async with await bed.relay.connect() as client:
            await client.send(data[:at])
            await asyncio.sleep(0)
            if not client.transport.is_closing() and client.closed_how is None:
                await client.send(data[at:])
            got, _ = await client.read_until_close(within=5)
            return got

    for got in await asyncio.gather(*(cut(at) for at in range(1, len(data), 5))):
        assert answers_in(got) <= 1
        assert b" 200 " not in got
    assert not bed.upstream.of("smuggled")
