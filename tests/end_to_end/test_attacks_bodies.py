"""Hostile request bodies (A16-A24, A34): refused before an upstream hears of them."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, Refusal, post
from tests.fakes import scripts
from tests.fakes.upstream import ScriptedUpstream

MAX_BODY = 10 * 2**20
MIB = 2**20
ENDPOINTS = [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations"]

JSON = Refusal(status=400, code="invalid_json")
BODY = Refusal(status=400, code="invalid_body")
TWICE = Refusal(status=400, code="duplicate_key")
VALUE = Refusal(status=400, code="invalid_value")
UNKNOWN = Refusal(status=404, code="model_not_found")
TOO_LARGE = Refusal(status=413, code="request_too_large", closes=True)
ENCODED = Refusal(status=415, code="unsupported_encoding")
CHUNKED = b"Transfer-Encoding: chunked"


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return b'{"model":"known","x":%b%b}' % (opening * depth, closing * depth)


def model(value: object) -> bytes:
    return json.dumps({"model": value}).encode()


REFUSED: dict[str, tuple[bytes, Refusal]] = {
    "no body": (b"", JSON),
    "not JSON": (b"model=known", JSON),
    "cut": (b'{"model":"known"', JSON),
    "two values": (b'{"model":"known"}{"model":"known"}', JSON),
    "single quotes": (b"{'model':'known'}", JSON),
    "trailing comma": (b'{"model":"known",}', JSON),
    "comment": (b'{"model":"known"/**/}', JSON),
    "array": (b'[{"model":"known"}]', BODY),
    "string": (b'"known"', BODY),
    "null": (b"null", BODY),
    "A18 keys": (b'{"model":"known"' + b"".join(b',"k%d":1' % number for number in range(700_000)) + b"}", BODY),
    "A19 65 deep": (nested(65), JSON),
    "A19 1,000 deep": (nested(1000), JSON),
    "A19 1,000,000 deep": (nested(1_000_000), JSON),
    "A19 objects": (nested(100_000, b'{"a":', b"}"), JSON),
    "A19 never closed": (b"[" * MIB, BODY),
    "A19 objects never closed": (b'{"a":' * MIB, JSON),
    "A20 NaN": (b'{"model":"known","temperature":NaN}', JSON),
    "A20 Infinity": (b'{"model":"known","temperature":Infinity}', JSON),
    "A20 -Infinity": (b'{"model":"known","temperature":-Infinity}', JSON),
    "A20 1e999": (b'{"model":"known","temperature":1e999}', VALUE),
    "A20 20 digits": (b'{"model":"known","seed":12345678901234567890}', VALUE),
    "A20 5,000 digits": (b'{"model":"known","seed":' + b"9" * 5000 + b"}", VALUE),
    "A20 leading zero": (b'{"model":"known","seed":01}', JSON),
    "A21 model twice": (b'{"model":"known","model":"wild/dear"}', TWICE),
    "A21 model twice, escaped": (b'{"model":"known","mod\\u0065l":"wild/dear"}', TWICE),
    "A21 messages twice": (b'{"model":"known","messages":[],"messages":[]}', TWICE),
    "A21 in stream_options": (b'{"model":"known","stream_options":{"include_usage":true,"include_usage":false}}', TWICE),
    "A22 Model beside model": (b'{"model":"known","Model":"wild/dear"}', TWICE),
    "A22 MODEL beside model": (b'{"MODEL":"wild/dear","model":"known"}', TWICE),
    "A22 Model alone": (b'{"Model":"known"}', TWICE),
    "A22 Stream alone": (b'{"model":"known","Stream":true}', TWICE),
    "A22 fullwidth": ('{"model":"known","ｍodel":"wild/dear"}'.encode(), TWICE),
    "A22 long s": ('{"model":"known","ſtream":true}'.encode(), TWICE),
    "A22 Kelvin sign": ('{"model":"known","k":1,"\u212a":2}'.encode(), TWICE),
    "A22 in stream_options": (b'{"model":"known","stream_options":{"include_usage":true,"Include_Usage":false}}', TWICE),
    "A23 UTF-16": ('{"model":"known"}'.encode("utf-16"), JSON),
    "A23 UTF-16 without mark": ('{"model":"known"}'.encode("utf-16-le"), JSON),
    "A23 UTF-32": ('{"model":"known"}'.encode("utf-32"), JSON),
    "A23 byte order mark": (b'\xef\xbb\xbf{"model":"known"}', JSON),
    "A23 broken UTF-8": (b'{"model":"known","x":"\xff"}', JSON),
    "A23 overlong UTF-8": (b'{"model":"known","x":"\xc0\xaf"}', JSON),
    "A23 surrogate in UTF-8": (b'{"model":"known","x":"\xed\xa0\x80"}', JSON),
    "A23 lone surrogate in model": (b'{"model":"known\\ud800"}', VALUE),
    "A23 NUL in model": (b'{"model":"known\\u0000"}', VALUE),
    "A23 bare control character": (b'{"model":"known","x":"a\nb"}', JSON),
    "A24 number": (model(7), VALUE),
    "A24 null": (model(None), VALUE),
    "A24 list": (model(["known"]), VALUE),
    "A24 object": (model({"id": "known"}), VALUE),
    "A24 true": (model(True), VALUE),
    "A24 a megabyte": (model("k" * MIB), VALUE),
    "A24 257 bytes": (model("wild/" + "k" * 252), VALUE),
    "A24 line break": (model("known\nmore"), VALUE),
    "A24 escape code": (model("known\x1b[31m"), VALUE),
    "A24 C1 control": (model("known\x85"), VALUE),
    "A24 path": (model("../admin"), UNKNOWN),
    "A24 URL": (model("http://evil/v1"), UNKNOWN),
    "A24 other case": (model("KNOWN"), UNKNOWN),
    "A24 space behind": (model("known "), UNKNOWN),
    "A24 empty": (model(""), UNKNOWN),
    "A24 look-alike": (model("knоwn"), UNKNOWN),
    "A24 markup": (model("<script>alert(1)</script>"), UNKNOWN),
    "A24 none": (b"{}", Refusal(status=404, code="no_default_route")),
    "stream is no switch": (b'{"model":"known","stream":"yes"}', VALUE),
}

PASSED: dict[str, bytes] = {
    "A18 strings in a list": b'{"model":"known","x":[' + b'"",' * (2 * MIB) + b"0]}",
    "A18 brackets in a string": b'{"model":"known","x":"' + b"[{" * (4 * MIB) + b'"}',
    "A18 backslashes": b'{"model":"known","x":"' + b"\\\\" * (4 * MIB) + b'"}',
    "A18 not ASCII": b'{"model":"known","x":"' + "é".encode() * (4 * MIB) + b'"}',
    "A19 63 below the top": nested(63),
    "A20 numbers deeper down": b'{"model":"known","x":[1e999,123456789012345678901234567890]}',
    "A20 19 digits": b'{"model":"known","seed":-1234567890123456789}',
    "A21 twice deeper down": b'{"model":"known","tools":[{"x":1,"x":2,"X":3}]}',
    "A22 twice in a schema": b'{"model":"known","metadata":{"Model":1,"model":2,"MODEL":3}}',
    "A23 lone surrogate elsewhere": b'{"model":"known","messages":[{"content":"\\ud800"}]}',
    "A23 pair of surrogates": b'{"model":"known","messages":[{"content":"\\ud83d\\ude00"}]}',
    "A24 escaped name": b'{"mod\\u0065l":"kn\\u006fwn"}',
    "spaces": b' \t\r\n{ "model" :\n"known" , "messages":[ ] }\n\n',
}


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    routes = {"known": "mine/known", "still-serving": "mine/still-serving", "stream": "mine/stream", "wild/*": "mine/*"}
    upstreams = {"mine": {"base_url": shared_upstream.url, "api_key": "sk-upstream"}}
    config = {"server": {"max_body": f"{MAX_BODY}B"}, "upstreams": upstreams, "routes": routes, "keys": {"alice": {"key": "sk-alice"}}}
    shared_upstream.answers(scripts.json_answer(ANSWER))
    bed = Bed(await shared_relay_with(config), shared_upstream, headers=AUTH)
    yield bed
    await bed.settle_accounts()


AUTH = (("Authorization", "Bearer sk-alice"),)
KEY = b"Authorization: Bearer sk-alice"


@pytest.mark.parametrize("name", REFUSED)
async def test_body_is_refused_before_an_upstream_hears_of_it(bed: Bed, name: str) -> None:
    body, wanted = REFUSED[name]
    answer = await bed.refuse(post(KEY, b"Content-Length: %d" % len(body), b"Content-Type: application/json", body=body), wanted)
    assert len(answer.body) < 400, "the answer repeats the request"
    assert not [word for word in (b"evil", b"admin", b"script") if word in answer.body]
    if len(body) < 2**17:
        answers = await asyncio.gather(*(bed.send(path, body, AUTH) for path in ENDPOINTS))
        assert [(other.status, other.error_code) for other in answers] == [(wanted.status, wanted.code)] * len(ENDPOINTS)


@pytest.mark.parametrize("name", PASSED)
async def test_odd_body_that_is_sound_reaches_the_upstream_byte_for_byte(bed: Bed, name: str) -> None:
    answer, got = await bed.forwarded(CHAT, PASSED[name], AUTH)
    assert (answer.status, got.body == PASSED[name]) == (200, True)


async def test_a24_name_matched_by_a_wildcard_is_data_to_the_upstream_alone(bed: Bed) -> None:
    for rest in ("../admin", "http://evil/v1", "%2e%2e/x", "a b"):
        bed.upstream.route(rest, scripts.json_answer(ANSWER))
        _, got = await bed.forwarded(CHAT, {"model": f"wild/{rest}"}, AUTH)
        assert (got.target, got.json()["model"]) == (CHAT.encode(), rest)


# A16: too much.


async def test_a16_announced_body_over_the_limit_is_refused_before_it_is_sent(bed: Bed) -> None:
    await bed.refuse(post(KEY, b"Content-Length: %d" % (MAX_BODY + 1), body=b""), TOO_LARGE)
    for path in ENDPOINTS:
        async with await bed.relay.connect() as client:
            await client.send(post(KEY, b"Content-Length: %d" % (MAX_BODY + 1), body=b"", path=path.encode()))
            bed.check(await client.read_response(), TOO_LARGE)


async def test_a16_chunked_body_over_the_limit_is_refused_while_it_comes(bed: Bed) -> None:
    memory = bed.relay.process.memory_info().rss
    seen = bed.seen
    async with await bed.relay.connect() as client:
        await client.send(post(KEY, CHUNKED, body=b""))
        for _ in range(MAX_BODY // MIB + 1):
            await client.send_chunk(b" " * MIB)
        answer = await client.read_response()
        await client.read_until_close(within=5)
    bed.check(answer, TOO_LARGE)
    assert bed.seen == seen
    assert bed.relay.process.memory_info().rss - memory < 4 * MAX_BODY
    await bed.check_log(answer, TOO_LARGE)
    await bed.still_serves()


async def test_a16_body_of_exactly_the_limit_passes(bed: Bed) -> None:
    start, end = b'{"model":"known","x":"', b'"}'
    body = start + b"y" * (MAX_BODY - len(start) - len(end)) + end
    _, got = await bed.forwarded(CHAT, body, AUTH)
    assert got.body == body


async def test_a16_other_paths_have_no_limit_and_nothing_is_held(bed: Bed) -> None:
    body = b"\0" * (3 * MAX_BODY)
    memory = bed.relay.process.memory_info().rss
    answer, got = await bed.forwarded("/v1/files?model=known", body, [*AUTH, ("Content-Type", "application/octet-stream")])
    assert (answer.status, len(got.body)) == (200, len(body))
    assert bed.relay.process.memory_info().rss - memory < MAX_BODY


# A17: encodings.


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x-unknown"])
async def test_a17_encoded_json_is_refused_unread(bed: Bed, path: str, encoding: str) -> None:
    bomb = gzip.compress(b"[" * (64 * MIB), 1) if encoding == "gzip" and path == CHAT else gzip.compress(b'{"model":"known"}')
    seen = bed.seen
    answer = await bed.send(path, bomb, [*AUTH, ("Content-Encoding", encoding)])
    bed.check(answer, ENCODED)
    assert bed.seen == seen
    await bed.check_log(answer, ENCODED)


async def test_a17_identity_is_no_encoding(bed: Bed) -> None:
    _, got = await bed.forwarded(CHAT, {"model": "known"}, [*AUTH, ("Content-Encoding", "identity")])
    assert got.json() == {"model": "known"}


async def test_a17_encoded_bodies_of_other_paths_pass_untouched_with_their_label(bed: Bed) -> None:
    """Not decompressed, not peeked into, and never labelled as what they are not."""
    bomb = gzip.compress(json.dumps({"model": "wild/other"}).encode() + b" " * (16 * MIB))
    for media in ("application/json", "application/octet-stream"):
        headers = [*AUTH, ("Content-Type", media), ("Content-Encoding", "gzip")]
        _, got = await bed.forwarded("/v1/files?model=known", bomb, headers)
        assert (got.body, got.header("content-encoding"), got.header("content-length")) == (bomb, b"gzip", b"%d" % len(bomb))


# A34: Expect.


EXPECT = b"Expect: 100-continue"


BEFORE_THE_BODY: dict[tuple[bytes, ...], Refusal] = {
    (): Refusal(status=401, code="missing_key", outcome="unauthorized", closes=True),
    (b"Authorization: Bearer sk-wrong",): Refusal(status=401, code="invalid_api_key", outcome="unauthorized", closes=True),
    (KEY,): TOO_LARGE,
    (KEY, b"Content-Encoding: gzip"): Refusal(status=415, code="unsupported_encoding", closes=True),
}


async def test_a34_refusal_comes_instead_of_100_continue(bed: Bed) -> None:
    async def refused(lines: tuple[bytes, ...], wanted: Refusal) -> None:
        async with await bed.relay.connect() as client:
            await client.send(post(*lines, EXPECT, b"Content-Length: 104857600", body=b""))
            answer = await client.read_response()
            await client.read_until_close(within=5)
        bed.check(answer, wanted)
        assert answer.interim == []
        await bed.check_log(answer, wanted)

    seen = bed.seen
    await asyncio.gather(*(refused(lines, wanted) for lines, wanted in BEFORE_THE_BODY.items()))
    assert bed.seen == seen
    await bed.still_serves()


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
async def test_a34_upload_is_not_taken_after_a_refusal(bed: Bed, path: str) -> None:
    """A client that sends all the same is cut after a second, and nothing of it is held."""
    size = 512 * MIB
    memory = bed.relay.process.memory_info().rss
    seen = bed.seen
    started_at = time.monotonic()
    async with await bed.relay.connect() as client:
        await client.send(post(EXPECT, b"Content-Length: %d" % size, path=path.encode(), body=b""))
        answer = await client.read_response()
        with pytest.raises((ConnectionError, TimeoutError)):
            while True:
                await client.send(b"\0" * 2**16, within=10)
                await asyncio.sleep(0.001)
    bed.check(answer, Refusal(status=401, code="missing_key", outcome="unauthorized", closes=True))
    assert time.monotonic() - started_at < 10
    assert bed.seen == seen
    assert bed.relay.process.memory_info().rss - memory < 16 * MIB
    await bed.still_serves()


async def test_a34_100_continue_comes_once_when_the_body_is_wanted(bed: Bed) -> None:
    body = b'{"model":"known"}'
    for path in (CHAT, "/v1/files"):
        async with await bed.relay.connect() as client:
            await client.send(post(KEY, EXPECT, b"Content-Type: application/json", b"Content-Length: 17", path=path.encode(), body=b""))
            await client.read_until(b"100 Continue\r\n\r\n")
            await client.send(body)
            answer = await client.read_response()
        assert (answer.status, [head.status for head in answer.interim]) == (200, [100])


async def test_a34_other_expectations_are_refused(bed: Bed) -> None:
    await bed.refuse(post(KEY, b"Expect: 200-maybe", b"Content-Length: 2"), Refusal(status=417, code="expectation_failed", closes=True))
