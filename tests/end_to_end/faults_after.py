"""The table of upstream faults in the body of an answer: errors, cuts and stalls in mid-stream, odd and short answers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.end_to_end.fault_bed import QUICK, Connection, Fault, Seen, Want
from tests.end_to_end.fault_wants import ANSWER, ANSWER_BYTES, SENT, START, WHOLE, both, complete, cut, refused, stalled, twice
from tests.fakes import client, events
from tests.fakes.scripts import (
    EVENT_STREAM,
    JSON,
    LAST_CHUNK,
    BodyFraming,
    End,
    Script,
    body,
    head,
    in_turn,
    json_answer,
    raw,
    respond,
    sse,
)

Check = Callable[[Seen], None]
FRAMINGS: tuple[BodyFraming, ...] = ("chunked", "length", "close")
CHUNKED = head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")])


def error_later() -> list[Fault]:
    """F11: the upstream's own error event after content: its bytes, its end, and no second event."""
    chunks = [*START, events.error()]
    sent = b"".join(chunks)

    def want(end: client.End, connection: Connection, sent: bytes = sent) -> Want:
        return Want(
            outcome="upstream_error",
            status=200,
            code="upstream_error_in_stream",
            end=end,
            body=sent,
            results=("error_event",),
            connection=connection,
        )

    return [
        Fault(name="F11-clean", want=want("complete", "pooled"), script=sse(chunks)),
        Fault(name="F11-clean-length", want=want("complete", "pooled"), script=sse(chunks, framing="length")),
        Fault(name="F11-fin", want=want("cut", "self"), script=sse(chunks, end="fin")),
        Fault(name="F11-rst", want=want("cut", "self"), script=sse(chunks, end="rst")),
        Fault(name="F11-stall", want=want("cut", "closed"), script=sse(chunks, end="hang"), upstream=QUICK),
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
    half = [*START, b'data: {"choi']
    ticks = [events.role(), *[events.content("tick")] * 30]
    return [
        *faults,
        Fault(name="F16-stall", want=stalled(SENT), script=sse(START, end="hang"), upstream=QUICK),
        Fault(
            name="F16-stall-in-an-event",
            want=replace(stalled(SENT), body=b"".join(half), has_error_event=False),
            script=sse(half, end="hang"),
            upstream=QUICK,
        ),
        Fault(
            name="F16-total",
            want=replace(stalled(SENT), code="total_timeout", body=None, has_error_event=False, results=("timeout_total",)),
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


def ends_with_error(code: str) -> Check:
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
    unread_giant = complete(b"".join(giant), "free")
    bad = refused(502, "upstream_bad_response", "protocol_error", "free")
    empty = refused(502, "upstream_empty_response", "empty", "free")
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
        Fault(name="F30-large-event", want=unread_giant, script=sse(giant), also=counted_unreadable(1)),
        Fault(name="F30-large-event-in-pieces", want=unread_giant, script=in_pieces(giant), also=counted_unreadable(1)),
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


def counted_unreadable(count: int) -> Check:
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
    ends: tuple[tuple[End, str], ...] = (("fin", "upstream_truncated"), ("rst", "upstream_reset"))
    rows = []
    for framing in FRAMINGS:
        for end, code in ends:
            want = refused(502, code, "stream_broken", "self")
            rows.append(Fault(name=f"F18-{end}-{framing}", want=want, script=body([half], framing=framing, end=end)))
        rows.append(
            Fault(
                name=f"F18-whole-{framing}",
                want=complete(ANSWER_BYTES, "self" if framing == "close" else "pooled"),
                script=body([half, ANSWER_BYTES[20:]], framing=framing),
            )
        )
    rows = [replace(row, stream=False) for row in rows]
    for framing in FRAMINGS:
        for end, code in ends:
            # Slower than the hold, so that the beginning is with the client when the end comes.
            rows.append(
                Fault(
                    name=f"F18-{end}-after-commit-{framing}",
                    want=cut(ANSWER_BYTES[:30], code, event=False),
                    script=body([half, ANSWER_BYTES[20:30]], framing=framing, end=end, pause=2.3),
                    stream=False,
                )
            )
    return rows
