"""Faults of upstreams (F1 to F30), each on real sockets against a running `relay serve`."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.fault_bed import Bed, Connection, Fault, Seen, Want, made
from tests.fakes import events
from tests.fakes.certificates import Authority
from tests.fakes.client import RawClient, Response
from tests.fakes.ports import refusing_port, swallowing_port
from tests.fakes.scripts import (
    EVENT_STREAM,
    JSON,
    LAST_CHUNK,
    BodyFraming,
    Script,
    body,
    close,
    error_answer,
    hang,
    head,
    in_turn,
    json_answer,
    raw,
    reset,
    respond,
    sse,
)
from tests.fakes.upstream import ScriptedUpstream

FRAMINGS: tuple[BodyFraming, ...] = ("chunked", "length", "close")
START = [events.role(), events.content("Hel"), events.content("lo")]
SENT = b"".join(START)
WHOLE = b"".join(events.chat_stream("Hel", "lo"))
ANSWER: dict[str, object] = {"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "hello"}}]}
ANSWER_BYTES = json.dumps(ANSWER).encode()
LONG: dict[str, object] = {"timeouts": {"first_token": "4s", "between_tokens": "4s", "total": "8s"}}


def refused(status: int, code: str, result: str, connection: Connection, *, requests: int = 1) -> Want:
    """The relay's own answer before the commit."""
    return Want(
        outcome="upstream_failed",
        status=status,
        code=code,
        is_own_answer=True,
        results=(result,),
        connection=connection,
        requests=requests,
    )


def both(fault: Fault) -> list[Fault]:
    """The row asked for as a stream and not."""
    return [replace(fault, name=f"{fault.name}-stream"), replace(fault, name=f"{fault.name}-json", stream=False)]


def complete(sent: bytes, connection: Connection = "pooled") -> Want:
    return Want(outcome="complete", status=200, body=sent, connection=connection)


def cut(sent: bytes, code: str, *, event: bool, connection: Connection = "self", outcome: str = "upstream_cut", result: str = "") -> Want:
    """An end after the commit, without a terminal chunk."""
    return Want(
        outcome=outcome,
        status=200,
        code=code,
        end="cut",
        body=sent,
        has_error_event=event,
        results=(result or "stream_broken",),
        connection=connection,
    )


def connecting(ports: dict[str, int]) -> list[Fault]:
    """F1 to F4: no connection."""
    no_name = {"base_url": "http://nowhere.invalid/v1", "timeouts": {"connect": "5s"}}
    faults = [
        Fault(
            name="F1-refused",
            want=refused(502, "upstream_connect_error", "connect_error", "none", requests=0),
            upstream={"base_url": f"http://127.0.0.1:{ports['refusing']}/v1"},
        ),
        Fault(
            name="F2-black-hole",
            want=refused(504, "upstream_connect_timeout", "timeout_connect", "none", requests=0),
            upstream={"base_url": f"http://127.0.0.1:{ports['swallowing']}/v1"},
        ),
        Fault(name="F3-no-such-name", want=refused(502, "upstream_dns_error", "dns_error", "none", requests=0), upstream=no_name),
    ]
    return [row for fault in faults for row in both(fault)]


def secured(authority: Authority, tls: dict[str, ScriptedUpstream]) -> list[Fault]:
    """F4: certificates that are not acceptable; and that cuts inside TLS are cuts."""
    bad = refused(502, "upstream_tls_error", "tls_error", "none", requests=0)
    trusted = {"ca_file": str(authority.file)}
    refusals = [
        Fault(name="F4-wrong-host", want=bad, upstream={"base_url": tls["wrong"].url, **trusted}),
        Fault(name="F4-expired", want=bad, upstream={"base_url": tls["expired"].url, **trusted}),
        Fault(name="F4-unknown-authority", want=bad, upstream={"base_url": tls["good"].url}),
    ]
    return [row for fault in refusals for row in both(fault)]


def stale() -> list[Fault]:
    """F5: a kept-alive connection that turns out dead."""
    good = sse(events.chat_stream("Hel", "lo"))
    resent = Want(
        outcome="complete",
        status=200,
        body=WHOLE,
        results=("success", "stream_broken", "success"),
        requests=3,
        outcomes={"complete": 2},
    )
    rows = [
        Fault(name=f"F5-{name}", want=resent, script=in_turn(good, end, good), talk=twice, also=was_resent(1))
        for name, end in (("fin", close()), ("rst", reset()))
    ]
    rows.append(
        Fault(
            name="F5-only-once",
            want=replace(
                refused(502, "upstream_reset", "", "self", requests=3),
                results=("success", "stream_broken", "stream_broken"),
                outcomes={"complete": 1, "upstream_failed": 1},
            ),
            script=in_turn(good, close(), close()),
            talk=twice,
            also=was_resent(1),
        )
    )
    for name, end, code in (
        ("fin", raw(b"HTTP/1.1 200 O", end="fin"), "upstream_truncated"),
        ("rst", raw(b"H", end="rst"), "upstream_reset"),
    ):
        rows.append(
            Fault(
                name=f"F5-some-bytes-{name}",
                want=replace(
                    refused(502, code, "", "self", requests=2),
                    results=("success", "stream_broken"),
                    outcomes={"complete": 1, "upstream_failed": 1},
                ),
                script=in_turn(good, end, good),
                talk=twice,
                also=was_resent(0),
            )
        )
    return rows


async def twice(bed: Bed, fault: Fault, client: RawClient) -> Response:
    """Send the request, take its answer, send it again on the same connection."""
    await client.exchange(fault.path, fault.body)
    await client.post(fault.path, fault.body, version=fault.version)
    return await client.read_response()


def was_resent(count: int) -> Any:
    def also(seen: Seen) -> None:
        assert seen.metrics.sum("relay_stale_connection_resends_total", upstream=seen.logs[-1]["upstream"]) == count
        assert [request.number_on_connection for request in seen.requests[:2]] == [0, 1]
        assert all(request.number_on_connection == 0 for request in seen.requests[2:]), "resent on a kept connection"
        assert len({request.body for request in seen.requests}) == 1

    return also


def before_the_answer() -> list[Fault]:
    """F6 to F8: a connection, and no answer."""
    comments = raw(head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]), *[b"9\r\n: ping\n\n\n\r\n"] * 20, end="hang", pause=0.2)
    late = refused(504, "upstream_timeout", "timeout_first_token", "closed")
    rows = [
        Fault(name="F6-rst", want=refused(502, "upstream_reset", "stream_broken", "self"), script=reset()),
        Fault(name="F6-fin", want=refused(502, "upstream_reset", "stream_broken", "self"), script=close()),
        Fault(
            name="F6-half-a-head",
            want=refused(502, "upstream_truncated", "stream_broken", "self"),
            script=raw(b"HTTP/1.1 200 OK\r\nContent-", end="fin"),
        ),
        Fault(name="F7-silence", want=late, script=hang()),
        Fault(name="F7-half-a-head", want=late, script=raw(b"HTTP/1.1 200 OK\r\nContent-", end="hang")),
        Fault(name="F7-interim-only", want=late, script=raw(b"HTTP/1.1 100 Continue\r\n\r\n", end="hang")),
    ]
    rows = [row for fault in rows for row in both(fault)]
    first_event = refused(504, "upstream_first_event_timeout", "timeout_first_token", "closed")
    return [
        *rows,
        Fault(name="F8-head-only", want=first_event, script=sse([], end="hang")),
        Fault(name="F8-comments-only", want=first_event, script=comments),
        Fault(name="F8-role-only", want=first_event, script=sse([events.role()], end="hang")),
        Fault(
            name="F8-head-only-json",
            want=refused(504, "stream_idle_timeout", "timeout_idle", "closed"),
            script=body([], end="hang"),
            stream=False,
        ),
        Fault(
            name="F8-half-a-body-json",
            want=refused(504, "stream_idle_timeout", "timeout_idle", "closed"),
            script=body([b'{"id":'], end="hang"),
            stream=False,
        ),
        Fault(
            name="F8-total",
            want=refused(504, "total_timeout", "timeout_total", "closed"),
            script=hang(),
            upstream={"timeouts": {"first_token": "4s", "total": "1500ms"}},
        ),
    ]


def error_first() -> list[Fault]:
    """F9, F10: an error instead of an answer in a 200."""
    started = events.event({"type": "response.created", "response": {"id": "r"}}, name="response.created")
    failed = events.event(
        {"type": "response.failed", "response": {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "m"}}},
        name="response.failed",
    )
    flat = events.event({"type": "error", "code": "server_error", "message": "m", "param": None}, name="error")
    rows = [
        ("rate-limit", 429, [events.error("rate_limit_exceeded", type="requests")]),
        ("invalid", 400, [events.error(None, type="invalid_request_error")]),
        ("server", 500, [events.error("server_error")]),
        ("overloaded", 503, [events.error(None, type="overloaded_error")]),
        ("number", 504, [events.event({"error": {"message": "m", "code": 504}})]),
        ("unknown", 502, [events.event({"error": {"message": "m"}})]),
        ("text", 502, [events.event({"error": "it went wrong"})]),
        ("after-comment", 429, [b": hello\n\n", events.error("rate_limit_exceeded")]),
    ]
    faults = [
        Fault(name=f"F9-{name}", want=refused(status, "upstream_error_in_stream", "error_event", "closed"), script=sse(chunks, end="hang"))
        for name, status, chunks in rows
    ]
    faults += [
        Fault(
            name=f"F10-{name}",
            want=refused(status, "upstream_error_in_stream", "error_event", "closed"),
            script=sse(chunks, end="hang", pause=0.1),
            path=path,
        )
        for name, status, chunks, path in (
            ("role", 500, [events.role(), events.error()], "/v1/chat/completions"),
            ("comment-role", 429, [b": x\n\n", events.role(), events.error("rate_limit_exceeded")], "/v1/chat/completions"),
            ("created-failed", 429, [started, failed], "/v1/responses"),
            ("created-error", 500, [started, flat], "/v1/responses"),
        )
    ]
    broken = [("fin", "fin", "upstream_truncated"), ("rst", "rst", "upstream_reset"), ("clean", "clean", "upstream_truncated")]
    faults += [
        Fault(
            name=f"F10-role-then-{name}",
            want=refused(502, code, "stream_broken", "self" if name != "clean" else "pooled"),
            script=sse([events.role()], end=end),  # type: ignore[arg-type]
        )
        for name, end, code in broken
    ]
    return faults


def error_later() -> list[Fault]:
    """F11: the upstream's own error event after content: its bytes, its end, and no second event."""
    chunks = [*START, events.error()]
    sent = b"".join(chunks)

    def want(end: str, connection: Connection, sent: bytes = sent) -> Want:
        return Want(
            outcome="upstream_error",
            status=200,
            code="upstream_error_in_stream",
            end=end,  # type: ignore[arg-type]
            body=sent,
            results=("error_event",),
            connection=connection,
        )

    return [
        Fault(name="F11-clean", want=want("complete", "pooled"), script=sse(chunks)),
        Fault(name="F11-clean-length", want=want("complete", "pooled"), script=sse(chunks, framing="length")),
        Fault(name="F11-fin", want=want("cut", "self"), script=sse(chunks, end="fin")),
        Fault(name="F11-rst", want=want("cut", "self"), script=sse(chunks, end="rst")),
        Fault(name="F11-stall", want=want("cut", "closed"), script=sse(chunks, end="hang")),
        Fault(name="F11-then-done", want=want("complete", "pooled", sent + events.DONE), script=sse([*chunks, events.DONE])),
    ]


def broken_streams() -> list[Fault]:
    """F12 to F16: streams that stop before their terminator."""
    faults = []
    for framing in FRAMINGS:
        if framing != "close":
            faults.append(
                Fault(
                    name=f"F12-{framing}", want=cut(SENT, "upstream_truncated", event=True), script=sse(START, framing=framing, end="fin")
                )
            )
        faults.append(
            Fault(name=f"F13-{framing}", want=cut(SENT, "upstream_reset", event=True), script=sse(START, framing=framing, end="rst"))
        )
        connection: Connection = "self" if framing == "close" else "pooled"
        unfinished = cut(SENT, "upstream_truncated", event=True, connection=connection)
        faults.append(Fault(name=f"F14-{framing}", want=unfinished, script=sse(START, framing=framing)))
        finished = [*START, events.chat_chunk(finish="stop")]
        want = cut(b"".join(finished), "upstream_truncated", event=True, connection=connection)
        faults.append(Fault(name=f"F14-finish-reason-{framing}", want=want, script=sse(finished, framing=framing)))
        faults.append(
            Fault(
                name=f"F14-done-optional-{framing}",
                want=complete(b"".join(finished), connection),
                script=sse(finished, framing=framing),
                upstream={"done_optional": True},
            )
        )
        faults += half_events(framing)
    stalled = cut(SENT, "stream_idle_timeout", event=True, connection="closed", outcome="upstream_stalled", result="timeout_idle")
    half = [*START, b'data: {"choi']
    ticks = [events.role(), *[events.content("tick")] * 30]
    return [
        *faults,
        Fault(name="F16-stall", want=stalled, script=sse(START, end="hang")),
        Fault(
            name="F16-stall-in-an-event", want=replace(stalled, body=b"".join(half), has_error_event=False), script=sse(half, end="hang")
        ),
        Fault(
            name="F16-total",
            want=replace(stalled, code="total_timeout", body=None, has_error_event=False, results=("timeout_total",)),
            script=sse(ticks, end="hang", pause=0.2),
            upstream={"timeouts": {"total": "1500ms"}},
            also=ends_with_error("total_timeout"),
        ),
        Fault(
            name="F28-bad-chunk-after-good-ones",
            want=cut(SENT, "upstream_protocol_error", event=True, connection="closed"),
            script=raw(
                head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]), b"%x\r\n%b\r\n" % (len(SENT), SENT), b"zz\r\n", end="hang"
            ),
        ),
        Fault(
            name="F28-bad-chunk-in-the-same-read",
            want=cut(SENT, "upstream_protocol_error", event=True, connection="closed"),
            script=raw(
                head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]) + b"%x\r\n%b\r\nzz\r\n" % (len(SENT), SENT), end="hang"
            ),
        ),
    ]


def half_events(framing: BodyFraming) -> list[Fault]:
    """F15: no event is glued to half of one."""
    in_event = [*START, b'data: {"choices":[{"delta":{"conte']
    in_character = [*START, 'data: {"choices":[{"delta":{"content":"ä'.encode()[:-1]]
    after_line = [*START, b'data: {"choices":[]}\n']
    rows = []
    for name, chunks in (("event", in_event), ("character", in_character), ("line", after_line)):
        sent = b"".join(chunks)
        want = cut(sent, "upstream_truncated", event=False)
        rows.append(Fault(name=f"F15-{name}-{framing}", want=want, script=sse(chunks, framing=framing, end="fin")))
    want = cut(b"".join(in_event), "upstream_reset", event=False)
    return [*rows, Fault(name=f"F15-rst-{framing}", want=want, script=sse(in_event, framing=framing, end="rst"))]


def ends_with_error(code: str) -> Any:
    def also(seen: Seen) -> None:
        assert seen.response is not None
        *_, last = seen.response.data
        assert json.loads(last)["error"]["code"] == code
        assert not seen.response.has_done

    return also


def old_clients() -> list[Fault]:
    """The same for clients of HTTP/1.0, to which only a reset can tell that something is missing."""
    rows = [
        fault for fault in broken_streams() if fault.name in ("F12-chunked", "F13-chunked", "F14-chunked", "F15-event-chunked", "F16-stall")
    ]
    half = body([ANSWER_BYTES[:20]], headers=[*JSON], framing="close", end="rst")
    faults = [
        replace(
            row,
            name=f"{row.name}-http10",
            version="HTTP/1.0",
            want=replace(row.want, end="rst", body=None, has_error_event=False),
            also=is_start,
        )
        for row in rows
    ]
    return [
        *faults,
        Fault(name="F12-whole-http10", want=complete(WHOLE), script=sse(events.chat_stream("Hel", "lo")), version="HTTP/1.0"),
        Fault(
            name="F18-http10",
            want=refused(502, "upstream_reset", "stream_broken", "self"),
            script=half,
            stream=False,
            version="HTTP/1.0",
        ),
    ]


def is_start(seen: Seen) -> None:
    """What a reset leaves of the bytes is a beginning of the answer, with nothing after it."""
    assert seen.response is not None
    assert SENT.startswith(seen.response.body[: len(SENT)])
    assert b"error" not in seen.response.body


def odd_answers() -> list[Fault]:
    """F17, F19, F20, F29, F30: answers of another kind than expected."""
    malformed = [*START, b"data: {not json}\n\n", b"data: \xff\xfe\n\n", events.content("!"), events.DONE]
    large = b"data: " + b"x" * (2 * 2**20) + b"\n\n"
    giant = [*START, large, events.DONE]
    bad = refused(502, "upstream_bad_response", "protocol_error", "pooled")
    empty = refused(502, "upstream_empty_response", "empty", "pooled")
    html = [("Content-Type", "text/html")]
    no_answer = [
        Fault(name="F19-html", want=bad, script=respond(200, html, b"<html>hello</html>")),
        Fault(name="F19-204", want=bad, script=raw(head(204))),
        Fault(name="F19-empty", want=empty, script=respond(200, JSON, b"")),
        Fault(name="F19-text", want=bad, script=respond(200, JSON, b"I am no JSON")),
        Fault(name="F19-blank", want=empty, script=respond(200, JSON, b"  \n ")),
    ]
    return [
        Fault(name="F17-malformed-event", want=complete(b"".join(malformed)), script=sse(malformed), also=counted_unreadable(2)),
        *[row for fault in no_answer for row in both(fault)],
        Fault(name="F19-no-events", want=empty, script=sse([])),
        Fault(name="F19-comments-only", want=empty, script=sse([b": hello\n\n"])),
        Fault(name="F20-json-for-a-stream", want=complete(ANSWER_BYTES), script=json_answer(ANSWER), also=is_json),
        Fault(
            name="F20-json-chunked-for-a-stream",
            want=complete(ANSWER_BYTES),
            script=body([ANSWER_BYTES[:9], ANSWER_BYTES[9:]]),
            also=is_json,
        ),
        Fault(name="F20-stream-for-json", want=complete(WHOLE), script=sse(events.chat_stream("Hel", "lo")), stream=False, also=is_events),
        Fault(
            name="F29-trailing-bytes",
            want=replace(complete(ANSWER_BYTES), requests=2, results=("success",) * 2, outcomes={"complete": 2}),
            script=in_turn(trailing(b"HTTP/1.1 200 OK\r\n"), json_answer(ANSWER)),
            stream=False,
            talk=twice,
            also=used_two_connections,
        ),
        Fault(
            name="F29-garbage-behind",
            want=replace(complete(ANSWER_BYTES), requests=2, results=("success",) * 2, outcomes={"complete": 2}),
            script=in_turn(trailing(b"\x00garbage"), json_answer(ANSWER)),
            stream=False,
            talk=twice,
            also=used_two_connections,
        ),
        Fault(
            name="F29-a-second-answer",
            want=replace(complete(ANSWER_BYTES), requests=2, results=("success",) * 2, outcomes={"complete": 2}),
            script=in_turn(trailing(head(200, [("Content-Length", "3")]) + b"{}\n"), json_answer(ANSWER)),
            stream=False,
            talk=twice,
            also=used_two_connections,
        ),
        Fault(
            name="F29-behind-the-last-chunk",
            want=replace(complete(WHOLE), requests=2, results=("success",) * 2, outcomes={"complete": 2}),
            script=in_turn(
                raw(
                    head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")])
                    + b"%x\r\n%b\r\n" % (len(WHOLE), WHOLE)
                    + LAST_CHUNK
                    + b"more"
                ),
                sse(events.chat_stream("Hel", "lo")),
            ),
            talk=twice,
            also=used_two_connections,
        ),
        Fault(name="F30-large-event", want=complete(b"".join(giant), "free"), script=sse(giant)),
        Fault(name="F30-large-event-in-pieces", want=complete(b"".join(giant), "free"), script=in_pieces(giant)),
    ]


def in_pieces(chunks: Sequence[bytes], size: int = 50_000) -> Script:
    data = b"".join(chunks)
    return sse([data[start : start + size] for start in range(0, len(data), size)])


def trailing(more: bytes) -> Script:
    answer = head(200, [*JSON, ("Content-Length", str(len(ANSWER_BYTES)))]) + ANSWER_BYTES
    return raw(answer + more)


def used_two_connections(seen: Seen) -> None:
    assert [request.number_on_connection for request in seen.requests] == [0, 0]
    assert seen.requests[0].closed_how in ("fin", "rst"), "a connection that cannot be trusted was kept"


def counted_unreadable(count: int) -> Any:
    def also(seen: Seen) -> None:
        assert seen.metrics.sum("relay_malformed_events_total", upstream=seen.logs[-1]["upstream"]) == count

    return also


def is_json(seen: Seen) -> None:
    assert seen.response is not None and seen.response.header("content-type") == b"application/json"


def is_events(seen: Seen) -> None:
    assert seen.response is not None and seen.response.header("content-type") == EVENT_STREAM[0][1].encode()
    assert seen.response.framing == "chunked"


def short_bodies() -> list[Fault]:
    """F18: JSON answers that end too early, before and after the commit."""
    half = ANSWER_BYTES[:20]
    rows = []
    for framing in FRAMINGS:
        truncated = refused(502, "upstream_truncated", "stream_broken", "self")
        rows.append(Fault(name=f"F18-fin-{framing}", want=truncated, script=body([half], framing=framing, end="fin")))
        broken = refused(502, "upstream_reset", "stream_broken", "self")
        rows.append(Fault(name=f"F18-rst-{framing}", want=broken, script=body([half], framing=framing, end="rst")))
        rows.append(
            Fault(
                name=f"F18-whole-{framing}",
                want=complete(ANSWER_BYTES, "self" if framing == "close" else "pooled"),
                script=body([half, ANSWER_BYTES[20:]], framing=framing),
            )
        )
    rows = [replace(row, stream=False) for row in rows]
    for framing in FRAMINGS:
        for end, code in (("fin", "upstream_truncated"), ("rst", "upstream_reset")):
            # Slower than the hold, so that the beginning is with the client when the end comes.
            rows.append(
                Fault(
                    name=f"F18-{end}-after-commit-{framing}",
                    want=cut(ANSWER_BYTES[:30], code, event=False),
                    script=body(
                        [half, b"", ANSWER_BYTES[20:30]] if framing != "chunked" else [half, ANSWER_BYTES[20:30]],
                        framing=framing,
                        end=end,
                        pause=2.3,
                    ),  # type: ignore[arg-type]
                    upstream=LONG,
                    stream=False,
                )
            )
    return rows


def refusals() -> list[Fault]:
    """F21 to F27: the upstream refuses."""
    rows = []
    for status in (400, 404, 409, 413, 422):
        want = Want(outcome="rejected" if status != 409 else "upstream_failed", status=status, results=("http_4xx",), body=None)
        rows.append(Fault(name=f"F21-{status}", want=want, script=error_answer(status), also=is_their_error))
    for status in (401, 403):
        want = refused(502, "upstream_auth_error", f"http_{status}", "pooled")
        rows.append(Fault(name=f"F22-{status}", want=want, script=error_answer(status), also=has_no(b"scripted")))
        passed = Want(outcome="rejected", status=status, results=(f"http_{status}",), body=None)
        rows.append(
            Fault(
                name=f"F22-{status}-passthrough",
                want=passed,
                script=error_answer(status),
                upstream={"api_key": "passthrough"},
                headers=(("Authorization", "Bearer sk-the-callers-own"),),
                also=is_their_error,
            )
        )
    rows.append(
        Fault(name="F23-402", want=refused(503, "upstream_quota", "http_402", "pooled"), script=error_answer(402), also=has_retry_after)
    )
    for status, result in (
        (429, "http_429"),
        (500, "http_5xx"),
        (502, "http_5xx"),
        (503, "http_5xx"),
        (504, "http_5xx"),
        (529, "http_5xx"),
    ):
        want = Want(outcome="upstream_failed", status=status, results=(result,), body=None)
        rows.append(
            Fault(
                name=f"F{24 if status == 429 else 26 if status in (503, 529) else 25}-{status}",
                want=want,
                script=error_answer(status, headers=[("Retry-After", "7")]),
                also=is_their_error,
            )
        )
    for status in (301, 302, 303, 307, 308):
        moved = respond(status, [("Location", "/v1/elsewhere"), ("Content-Type", "text/plain")], b"moved to elsewhere")
        rows.append(
            Fault(
                name=f"F27-{status}", want=refused(502, "upstream_redirect", "redirect", "pooled"), script=moved, also=has_no(b"elsewhere")
            )
        )
    return [row for fault in rows for row in both(fault)]


def is_their_error(seen: Seen) -> None:
    assert seen.response is not None
    assert seen.response.json()["error"]["message"] == f"scripted {seen.response.status}"  # type: ignore[index]


def has_retry_after(seen: Seen) -> None:
    assert seen.response is not None and seen.response.header("retry-after") is not None


def has_no(word: bytes) -> Any:
    def also(seen: Seen) -> None:
        assert seen.response is not None and word not in seen.response.raw

    return also


def bad_http() -> list[Fault]:
    """F28: heads that are no valid HTTP, or far too large."""
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    heads = {
        "long-line": ok + b"X: " + b"x" * 9000 + b"\r\nContent-Length: 2\r\n\r\n{}",
        "many-headers": ok + b"".join(b"X-%d: 1\r\n" % number for number in range(200)) + b"Content-Length: 2\r\n\r\n{}",
        "endless-head": ok + b"".join(b"X-%d: %b\r\n" % (number, b"x" * 4000) for number in range(40)),
        "endless-status-line": b"HTTP/1.1 200 " + b"O" * 200_000,
        "length-and-chunked": ok + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "two-lengths": ok + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "bad-length": ok + b"Content-Length: 2x\r\n\r\n{}",
        "negative-length": ok + b"Content-Length: -2\r\n\r\n{}",
        "nul": ok + b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
        "no-colon": ok + b"nonsense\r\nContent-Length: 2\r\n\r\n{}",
        "folded": ok + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
        "bare-lf": ok.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}",
        "not-http": b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n",
        "http2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
        "status-999": b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\n{}",
        "status-0": b"HTTP/1.1 000 Odd\r\nContent-Length: 2\r\n\r\n{}",
        "switching": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "many-interims": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 40,
    }
    want = refused(502, "upstream_protocol_error", "protocol_error", "closed")
    return [row for name, data in heads.items() for row in both(Fault(name=f"F28-{name}", want=want, script=raw(data, end="hang")))]


def rows_of(ports: dict[str, int], authority: Authority, tls: dict[str, ScriptedUpstream]) -> list[Fault]:
    """The whole table."""
    return [
        *connecting(ports),
        *secured(authority, tls),
        *stale(),
        *before_the_answer(),
        *error_first(),
        *error_later(),
        *broken_streams(),
        *old_clients(),
        *odd_answers(),
        *short_bodies(),
        *refusals(),
        *bad_http(),
    ]


class _Nowhere(dict[str, Any]):
    """Stands in for what exists only at run time, so that the table's names are known before."""

    def __missing__(self, name: str) -> Any:
        return _Place()


class _Place:
    url = "https://localhost:1/v1"
    file = "authority.pem"


NAMES = [fault.name for fault in rows_of(_Nowhere(), _Place(), _Nowhere())]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, authority: Authority) -> AsyncIterator[dict[str, tuple[Bed, Fault]]]:
    """Every row, run."""
    async with AsyncExitStack() as stack:
        contexts = {"good": authority.server(), "wrong": authority.server("other.example"), "expired": authority.server(expired=True)}
        tls = {name: await stack.enter_async_context(ScriptedUpstream(context)) for name, context in contexts.items()}
        ports = {"refusing": stack.enter_context(refusing_port()), "swallowing": stack.enter_context(swallowing_port())}
        faults = rows_of(ports, authority, tls)
        bed = await stack.enter_async_context(made(faults, shared_relay_with))
        yield {fault.name: (bed, fault) for fault in faults}
        assert not any(upstream.requests for upstream in tls.values()), "a request was sent to a server that could not prove its name"


@pytest.mark.parametrize("name", NAMES)
async def test_fault(name: str, bed: dict[str, tuple[Bed, Fault]]) -> None:
    where, fault = bed[name]
    where.check(fault)


async def test_every_request_is_counted_once(bed: dict[str, tuple[Bed, Fault]]) -> None:
    where = next(iter(bed.values()))[0]
    started = sum(sum(fault.want.outcomes.values()) or 1 for _, fault in bed.values())
    assert (await where.relay.settled()).sum("relay_requests_total") == started
