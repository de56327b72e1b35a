"""Hostile upstreams (A26-A28, A38-A41): nothing is followed, kept, unpacked or believed, and what passes, passes as it came."""

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, Refusal
from tests.end_to_end.recorded import stream_bytes
from tests.fakes import events, scripts
from tests.fakes.relay import ROOT
from tests.fakes.upstream import ScriptedUpstream

MIB = 2**20
BODY = json.dumps(ANSWER).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
PROTOCOL = Refusal(status=502, code="upstream_protocol_error", outcome="upstream_failed")
REDIRECT = Refusal(status=502, code="upstream_redirect", outcome="upstream_failed")
FORBIDDEN = Refusal(status=502, code="upstream_address_forbidden", outcome="upstream_failed")


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    base_url = f"http://localhost:{shared_upstream.port}/v1"  # a name: cookies of IP addresses are kept by nobody anyway
    upstreams = {"mine": {"base_url": base_url, "api_key": "sk-upstream"}}
    config = {"upstreams": upstreams, "routes": {"*": "mine/*", "smile: ☺": "mine/smile"}}
    bed = Bed(await shared_relay_with(config), shared_upstream)
    yield bed
    await bed.settle_accounts()


async def fails(bed: Bed, model: str, wanted: Refusal, *, stream: bool = False, attempts: int = 1) -> None:
    """Assert that a request for `model` ends in the relay's own error, made of fixed text."""
    answer = await bed.send(CHAT, {"model": model, "stream": stream})
    bed.check(answer, wanted)
    line = await bed.line(answer)
    assert (line["outcome"], line["error_code"], line["attempts"]) == (wanted.outcome, wanted.code, attempts)
    assert b"evil" not in answer.raw
    await bed.still_serves()


# A26: redirects.


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize("stream", [False, True])
async def test_a26_redirect_is_never_followed_and_its_address_not_shown(bed: Bed, status: int, stream: bool) -> None:
    async with ScriptedUpstream() as elsewhere:
        location = [("Location", f"{elsewhere.url}/evil"), ("Refresh", f"0; url={elsewhere.url}/evil")]
        bed.upstream.route(f"redirect-{status}", scripts.respond(status, location, b'{"evil": true}'))
        known = len(bed.upstream.requests)
        await fails(bed, f"redirect-{status}", REDIRECT, stream=stream)
        assert len([request for request in bed.upstream.requests[known:] if request.model != "still-serving"]) == 1
        assert elsewhere.connection_count == 0


async def test_a26_redirect_of_another_path_or_of_a_list_of_models_is_not_followed_either(bed: Bed) -> None:
    async with ScriptedUpstream() as elsewhere:
        redirect = scripts.respond(307, [("Location", f"{elsewhere.url}/evil")])
        for path in ("/v1/files", "/v1/models"):
            bed.upstream.route(path, redirect)
        bed.check(await bed.send("/v1/files", None, method="GET"), REDIRECT)
        bed.check(await bed.send("/v1/files", b"upload", [("Content-Type", "text/plain")]), REDIRECT)
        assert (await bed.send("/v1/models", None, method="GET")).status == 200
        assert elsewhere.connection_count == 0


# A27: addresses. Names of digits and dots resolve without a resolver, and look like public names.

FORBIDDEN_HOSTS = {
    "name of metadata": "0xa9.0xfea9fe",
    "metadata in NAT64": "[64:ff9b::a9fe:a9fe]",
    "name of loopback": "127.1",
    "hexadecimal name of loopback": "0x7f.0x1",
    "name of a private address": "10.1",
    "name of another private address": "192.168.257",
    "name of nowhere": "0.1",
}
LITERALS = ["169.254.169.254", "169.254.1.1", "[fe80::1]", "[::ffff:169.254.169.254]", "224.0.0.1", "0.0.0.0", "[::]"]


@pytest.mark.parametrize("host", LITERALS)
def test_a27_forbidden_address_that_the_configuration_spells_out_is_refused_with_it(tmp_path: Path, host: str) -> None:
    file = tmp_path / "relay.yaml"
    upstream = f"base_url: 'http://{host}/v1', api_key: sk-never-shown, allow_private: true"
    file.write_text(f"upstreams:\n  mine: {{{upstream}}}\nroutes: {{'*': mine/*}}\n")
    done = subprocess.run([sys.executable, "-m", "relay", "check", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (78, "")
    assert ":2:" in done.stderr
    assert "upstreams.mine.base_url: this address is never called" in done.stderr
    assert "sk-never-shown" not in done.stderr


@pytest.fixture(scope="module")
async def guarded(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    upstreams: dict[str, Any] = {"mine": {"base_url": shared_upstream.url, "api_key": "sk-upstream"}}
    for number, host in enumerate(FORBIDDEN_HOSTS.values()):
        upstreams[f"u{number}"] = {"base_url": f"http://{host}:{shared_upstream.port}/v1", "api_key": "sk-evil"}
    upstreams["allowed"] = {"base_url": f"http://127.1:{shared_upstream.port}/v1", "api_key": "sk-allowed", "allow_private": "true"}
    for number in (0, 1):
        upstreams[f"still-forbidden-{number}"] = {**upstreams[f"u{number}"], "allow_private": "true"}
    routes = {f"{name}/*": f"{name}/*" for name in upstreams} | {"still-serving": "mine/still-serving"}
    bed = Bed(await shared_relay_with({"upstreams": upstreams, "routes": routes}), shared_upstream)
    yield bed
    await bed.settle_accounts()


@pytest.mark.parametrize("number", range(len(FORBIDDEN_HOSTS)), ids=list(FORBIDDEN_HOSTS))
async def test_a27_forbidden_address_is_never_called(guarded: Bed, number: int) -> None:
    seen = guarded.seen
    answer = await guarded.send(CHAT, {"model": f"u{number}/x"})
    guarded.check(answer, FORBIDDEN)
    assert guarded.seen == seen
    line = await guarded.line(answer)
    assert (line["outcome"], line["error_code"], line["phase"]) == ("upstream_failed", FORBIDDEN.code, "connect")
    await guarded.still_serves()


async def test_a27_private_address_behind_a_name_needs_a_word_and_link_local_is_refused_all_the_same(guarded: Bed) -> None:
    guarded.upstream.route("private", scripts.json_answer(ANSWER))
    answer, got = await guarded.forwarded(CHAT, {"model": "allowed/private"})
    assert (answer.status, got.header("authorization")) == (200, b"Bearer sk-allowed")
    for number in (0, 1):
        guarded.check(await guarded.send(CHAT, {"model": f"still-forbidden-{number}/x"}), FORBIDDEN)


# A28: cookies.


async def test_a28_cookie_of_one_client_is_kept_by_nobody_and_passed_to_nobody(bed: Bed) -> None:
    cookies = [("Set-Cookie", "session=first; Path=/"), ("Set-Cookie", "other=1; Max-Age=99999999999"), ("Set-Cookie2", "x=y")]
    bed.upstream.route("cookie", scripts.json_answer(ANSWER, headers=cookies))
    bed.upstream.route("cookie-stream", scripts.sse(events.chat_stream("hi"), headers=[*scripts.EVENT_STREAM, *cookies]))
    bed.upstream.route("/v1/files", scripts.json_answer({"data": []}, headers=cookies))
    for model in ("cookie", "cookie-stream", "cookie"):
        answer, got = await bed.forwarded(CHAT, {"model": model, "stream": model.endswith("stream")}, [("Cookie", "mine=1")])
        assert (answer.all("set-cookie"), answer.all("set-cookie2"), got.all("cookie")) == ([], [], [])
    answer, got = await bed.forwarded("/v1/files", None, [("Cookie", "mine=1")], method="GET")
    assert (answer.all("set-cookie"), got.all("cookie")) == ([], [])


# A38: nobody can forge an event.


async def test_a38_error_event_of_the_relay_is_one_event_and_nothing_follows_it(bed: Bed) -> None:
    sent = [events.role(), events.content("one")]
    bed.upstream.route("forged", scripts.sse(sent, end="fin"))
    answer = await bed.send(CHAT, {"model": "forged", "stream": True, "user": "\n\ndata: [DONE]\n\n"})
    assert (answer.end, answer.has_done) == ("cut", False)
    assert answer.body.startswith(b"".join(sent))
    last = answer.body[len(b"".join(sent)) :]
    assert (last.count(b"\n"), last[-2:]) == (2, b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_truncated"


@pytest.mark.parametrize(
    "text", ["\n\ndata: [DONE]\n\n", "\r\rdata: [DONE]\r\r", "\u2028data: [DONE]", '"}}\n\ndata: [DONE]\n\n', "\x00\x85"]
)
async def test_a38_text_of_an_upstreams_error_forges_nothing(bed: Bed, text: str) -> None:
    bed.upstream.route("error-first", scripts.sse([events.error(text, type=text, message=text)]))
    first = await bed.send(CHAT, {"model": "error-first", "stream": True})
    assert (first.status, first.end, first.has_done) == (502, "complete", False)
    assert set(first.json()["error"]) == {"message", "type", "param", "code", "attempts"}  # type: ignore[call-overload]

    sent = [events.role(), events.content("one"), events.error(text, type=text, message=text)]
    bed.upstream.route("error-later", scripts.sse(sent))
    later = await bed.send(CHAT, {"model": "error-later", "stream": True})
    assert (later.body, later.has_done) == (b"".join(sent), False)


async def test_a38_names_that_no_header_can_hold_are_made_to_fit(bed: Bed) -> None:
    bed.upstream.route("smile", scripts.json_answer(ANSWER))
    answer, _ = await bed.forwarded(CHAT, {"model": "smile: ☺"})
    assert answer.header("x-relay-route") == b"smile:????"


# A39: odd events.

ODD_EVENTS = ["crlf", "cr-only", "bom", "comments", "nospace-data", "multiline-data", "id-then-comment", "retry-only", "large-event"]


@pytest.mark.parametrize("name", ODD_EVENTS)
@pytest.mark.parametrize("size", [7, 100_000])
async def test_a39_odd_events_are_read_as_the_standard_says_and_passed_as_they_came(bed: Bed, name: str, size: int) -> None:
    data = stream_bytes(f"edge-{name}.sse")
    size = max(size, len(data) // 500)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    bed.upstream.route(f"odd-{name}", scripts.sse(pieces))
    answer = await bed.send(CHAT, {"model": f"odd-{name}", "stream": True})
    assert (answer.status, answer.body == data, answer.end) == (200, True, "complete")
    assert (await bed.line(answer))["outcome"] == "complete"


async def test_a39_line_of_two_megabytes_passes(bed: Bed) -> None:
    sent = [events.role(), events.content("x" * (2 * MIB)), events.DONE]
    bed.upstream.route("line", scripts.sse(sent))
    answer = await bed.send(CHAT, {"model": "line", "stream": True})
    assert (answer.body == b"".join(sent), answer.end) == (True, "complete")


# A40: odd heads.

BAD_HEADS: Mapping[str, bytes] = {
    "status 999": b"HTTP/1.1 999 Odd\r\n" + LENGTH + b"\r\n" + BODY,
    "status 600": b"HTTP/1.1 600 Odd\r\n" + LENGTH + b"\r\n" + BODY,
    "status 099": b"HTTP/1.1 099 Odd\r\n" + LENGTH + b"\r\n" + BODY,
    "status 0": b"HTTP/1.1 000 Odd\r\n" + LENGTH + b"\r\n" + BODY,
    "status of four digits": b"HTTP/1.1 2000 Odd\r\n" + LENGTH + b"\r\n" + BODY,
    "status with a sign": b"HTTP/1.1 +20 Odd\r\n" + LENGTH + b"\r\n" + BODY,
    "no status": b"HTTP/1.1 \r\n" + LENGTH + b"\r\n" + BODY,
    "101 that nobody asked for": b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nevil",
    "101 without Upgrade": b"HTTP/1.1 101 Switching\r\n\r\nevil",
    "1xx flood": b"HTTP/1.1 103 Early\r\nLink: evil\r\n\r\n" * 100 + b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "bare LF": b"HTTP/1.1 200 OK\n" + LENGTH.replace(b"\r", b"") + b"\n" + BODY,
    "folded header": b"HTTP/1.1 200 OK\r\nX-A: a\r\n evil\r\n" + LENGTH + b"\r\n" + BODY,
    "NUL in a header": b"HTTP/1.1 200 OK\r\nX-A: a\0evil\r\n" + LENGTH + b"\r\n" + BODY,
    "control in a header": b"HTTP/1.1 200 OK\r\nX-A: a\x01evil\r\n" + LENGTH + b"\r\n" + BODY,
    "bare CR in a header": b"HTTP/1.1 200 OK\r\nX-A: a\revil: b\r\n" + LENGTH + b"\r\n" + BODY,
    "space in a name": b"HTTP/1.1 200 OK\r\nX A: evil\r\n" + LENGTH + b"\r\n" + BODY,
    "no colon": b"HTTP/1.1 200 OK\r\nevil\r\n" + LENGTH + b"\r\n" + BODY,
    "another protocol": b"SSH-2.0-OpenSSH_9.2 evil\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "version 0.9": b"<html>evil</html>\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + BODY,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + LENGTH + b"\r\n" + BODY,
    "length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n" + BODY,
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + BODY,
    "length of no number": b"HTTP/1.1 200 OK\r\nContent-Length: evil\r\n\r\n" + BODY,
    "endless header": b"HTTP/1.1 200 OK\r\nX-A: " + b"evil" * 50_000,
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: evil\r\n" * 10_000,
    "long header": b"HTTP/1.1 200 OK\r\nX-A: " + b"evil" * 5000 + b"\r\n" + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_a40_head_that_is_no_http_is_never_passed_on(bed: Bed, name: str) -> None:
    model = f"head {name}"
    bed.upstream.route(model, scripts.raw(BAD_HEADS[name], end="hang"))
    await fails(bed, model, PROTOCOL)
    assert await bed.upstream.wait_closed(bed.upstream.of(model)[-1]) in ("fin", "rst")


@pytest.mark.parametrize(
    "line", [b"200 O\x01K<script>", b"200 OK\x1b[31m", b"200 " + b"<script>" * 100, b"200", b"200 ", "200 Großartig".encode("latin-1")]
)
async def test_a40_reason_phrase_is_never_passed_on(bed: Bed, line: bytes) -> None:
    head = b"HTTP/1.1 " + line + b"\r\nContent-Type: application/json\r\n" + LENGTH + b"\r\n"
    bed.upstream.route("reason", scripts.raw(head + BODY))
    answer = await bed.send(CHAT, {"model": "reason"})
    assert (answer.status, answer.head.reason) in ((200, b"OK"), (502, b"Bad Gateway"))
    assert b"script" not in answer.raw


async def test_a40_interim_answers_are_taken_in_small_numbers_and_leave_nothing_behind(bed: Bed) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: <evil>\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    interim = interim.replace(b"Content-Length: 3\r\n", b"")
    bed.upstream.route(
        "interim", scripts.raw(interim * 3 + b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + LENGTH + b"\r\n" + BODY)
    )
    answer = await bed.send(CHAT, {"model": "interim"})
    assert (answer.status, answer.json(), answer.interim, answer.header("link")) == (200, ANSWER, [], None)


@pytest.mark.parametrize("status", [226, 299, 418, 451, 499, 511, 529, 599])
async def test_a40_rare_status_is_passed_with_a_harmless_reason(bed: Bed, status: int) -> None:
    bed.upstream.route(f"rare-{status}", scripts.json_answer(ANSWER, status))
    answer = await bed.send(CHAT, {"model": f"rare-{status}"})
    assert (answer.status, answer.json()) == (status, ANSWER)
    assert b"Scripted" not in answer.head.reason


# A41: encoded answers.

BOMB = gzip.compress(b"\0" * (64 * MIB))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("media", ["application/json", "text/event-stream"])
async def test_a41_encoded_answer_passes_as_it_came_and_is_never_unpacked(bed: Bed, media: str, stream: bool) -> None:
    model = f"bomb {media} {stream}"
    headers = [("Content-Type", media), ("Content-Encoding", "gzip")]
    bed.upstream.route(model, scripts.body([BOMB[: len(BOMB) // 2], BOMB[len(BOMB) // 2 :]], headers=headers))
    memory = bed.relay.process.memory_info().rss
    answer, got = await bed.forwarded(CHAT, {"model": model, "stream": stream}, [("Accept-Encoding", "gzip, br")])
    assert (answer.body == BOMB, answer.header("content-encoding"), answer.end) == (True, b"gzip", "complete")
    assert got.all("accept-encoding") == [b"identity"]
    assert bed.relay.process.memory_info().rss - memory < 8 * MIB
    await bed.still_serves()


# A malformed body.


@pytest.mark.parametrize(
    "garbage", [b"zz\r\nevil\r\n", b"-5\r\nevil\r\n", b"5\r\nevilevilevil\r\n", b"fffffffffffffffffff\r\nevil", b"\r\n\r\n"]
)
async def test_malformed_chunk_after_good_ones_ends_the_stream_at_once_with_the_good_ones_delivered(bed: Bed, garbage: bytes) -> None:
    """A conventional relay leaves the client hanging here: its parser reports the error to nobody."""
    good = [events.role(), events.content("one"), events.content("two")]
    model = f"garbage {garbage!r}"
    head = scripts.head(200, [*scripts.EVENT_STREAM, ("Transfer-Encoding", "chunked")])
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in good)
    bed.upstream.route(model, scripts.raw(head + chunks + garbage, end="hang"))
    async with asyncio.timeout(10):
        answer = await bed.send(CHAT, {"model": model, "stream": True})
    assert (answer.status, answer.end, answer.has_done) == (200, "cut", False)
    assert answer.body.startswith(b"".join(good))
    assert (await bed.line(answer))["outcome"] == "upstream_cut"
    assert await bed.upstream.wait_closed(bed.upstream.of(model)[-1]) in ("fin", "rst")
    await bed.still_serves()


async def test_answer_smuggled_behind_another_is_given_to_nobody(bed: Bed) -> None:
    """Bytes behind the announced end of an answer must not become the answer to the next client's request."""
    forged = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    honest = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + LENGTH + b"\r\n" + BODY
    bed.upstream.route("poisoned", scripts.raw(honest + forged))
    bed.upstream.route("poisoned-late", scripts.raw(honest, forged, pause=0.05))
    for model in ("poisoned", "poisoned-late"):
        for _ in range(3):
            assert (await bed.send(CHAT, {"model": model})).json() == ANSWER
            await asyncio.sleep(0.1)
            await bed.still_serves()
