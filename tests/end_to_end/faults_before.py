"""The table of upstream faults before the commit: connections, heads, refusals, errors in place of an answer."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from tests.end_to_end.fault_bed import QUICK, Connection, Fault, Seen, Want
from tests.end_to_end.fault_wants import SENT, START, WHOLE, both, complete, cut, refused, stalled, twice
from tests.fakes import events
from tests.fakes.certificates import Authority
from tests.fakes.scripts import EVENT_STREAM, End, body, close, error_answer, hang, head, in_turn, json_answer, raw, reset, respond, sse
from tests.fakes.upstream import ScriptedUpstream

Check = Callable[[Seen], None]
FAILING = (("F24", 429), ("F25", 500), ("F25", 502), ("F25", 504), ("F26", 503), ("F26", 529))


def connecting(ports: Mapping[str, int]) -> list[Fault]:
    """F1 to F4: no connection."""
    no_name = {"base_url": "http://nowhere.invalid/v1"}
    faults = [
        Fault(
            name="F1-refused",
            want=refused(502, "upstream_connect_error", "connect_error", "none", requests=0),
            upstream={"base_url": f"http://127.0.0.1:{ports['refusing']}/v1"},
        ),
        Fault(
            name="F2-black-hole",
            want=refused(504, "upstream_connect_timeout", "timeout_connect", "none", requests=0),
            upstream={"base_url": f"http://127.0.0.1:{ports['swallowing']}/v1", **QUICK},
        ),
        Fault(name="F3-no-such-name", want=refused(502, "upstream_dns_error", "dns_error", "none", requests=0), upstream=no_name),
    ]
    return [row for fault in faults for row in both(fault)]


def secured(authority: Authority, tls: Mapping[str, ScriptedUpstream]) -> list[Fault]:
    """F4: certificates that are not acceptable; and that cuts inside TLS are cuts."""
    bad = refused(502, "upstream_tls_error", "tls_error", "none", requests=0)
    trusted = {"ca_file": str(authority.file)}
    refusals = [
        Fault(name="F4-wrong-host", want=bad, upstream={"base_url": tls["wrong"].url, **trusted}),
        Fault(name="F4-expired", want=bad, upstream={"base_url": tls["expired"].url, **trusted}),
        Fault(name="F4-unknown-authority", want=bad, upstream={"base_url": tls["good"].url}),
    ]
    good = {"base_url": tls["good"].url, **trusted}
    half = b'data: {"choices":[{"del'
    return [
        *[row for fault in refusals for row in both(fault)],
        Fault(name="F4-good", want=complete(WHOLE), script=sse(events.chat_stream("Hel", "lo")), upstream=good),
        Fault(name="F12-tls", want=cut(SENT, "upstream_truncated", event=True), script=sse(START, end="fin"), upstream=good),
        Fault(name="F13-tls", want=cut(SENT, "upstream_reset", event=True), script=sse(START, end="rst"), upstream=good),
        Fault(name="F14-tls", want=cut(SENT, "upstream_truncated", event=True), script=sse(START, framing="close"), upstream=good),
        Fault(
            name="F15-tls", want=cut(SENT + half, "upstream_truncated", event=False), script=sse([*START, half], end="fin"), upstream=good
        ),
        Fault(name="F16-tls", want=stalled(SENT), script=sse(START, end="hang"), upstream={**good, **QUICK}),
    ]


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


def was_resent(count: int) -> Check:
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
        Fault(name="F7-silence", want=late, script=hang(), upstream=QUICK),
        Fault(name="F7-half-a-head", want=late, script=raw(b"HTTP/1.1 200 OK\r\nContent-", end="hang"), upstream=QUICK),
        Fault(name="F7-interim-only", want=late, script=raw(b"HTTP/1.1 100 Continue\r\n\r\n", end="hang"), upstream=QUICK),
    ]
    rows = [row for fault in rows for row in both(fault)]
    first_event = refused(504, "upstream_first_event_timeout", "timeout_first_token", "closed")
    return [
        *rows,
        Fault(name="F8-head-only", want=first_event, script=sse([], end="hang"), upstream=QUICK),
        Fault(name="F8-comments-only", want=first_event, script=comments, upstream=QUICK),
        Fault(name="F8-role-only", want=first_event, script=sse([events.role()], end="hang"), upstream=QUICK),
        Fault(
            name="F8-head-only-json",
            want=first_event,
            script=body([], end="hang"),
            upstream=QUICK,
            stream=False,
        ),
        Fault(
            name="F8-half-a-body-json",
            want=refused(504, "stream_idle_timeout", "timeout_idle", "closed"),
            script=body([b'{"id":'], end="hang"),
            upstream=QUICK,
            stream=False,
        ),
        Fault(
            name="F8-total",
            want=refused(504, "total_timeout", "timeout_total", "closed"),
            script=hang(),
            upstream={"timeouts": {"first_token": "4s", "total": "1500ms"}},
        ),
    ]


def error_in_200(status: int, connection: Connection) -> Want:
    """The status that the error stands for; one of 400 is the caller's own mistake."""
    outcome = "rejected" if status == 400 else "upstream_failed"
    return refused(status, "upstream_error_in_stream", "error_event", connection, outcome=outcome)


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
        Fault(name=f"F9-{name}", want=error_in_200(status, "closed"), script=sse(chunks, end="hang")) for name, status, chunks in rows
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
    faults += instead_of_a_whole_answer()
    broken: list[tuple[End, str]] = [("fin", "upstream_truncated"), ("rst", "upstream_reset"), ("clean", "upstream_truncated")]
    faults += [
        Fault(
            name=f"F10-role-then-{end}",
            want=refused(502, code, "stream_broken", "self" if end != "clean" else "pooled"),
            script=sse([events.role()], end=end),
        )
        for end, code in broken
    ]
    return faults


def instead_of_a_whole_answer() -> list[Fault]:
    """F9 without a stream, and what is no business of the caller's in either kind."""
    failed = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "error", "message": {"content": "Hel"}}]}
    starved = {"choices": [{"index": 0, "delta": {}, "finish_reason": "insufficient_system_resource"}]}
    in_choice = {"choices": [{"finish_reason": "stop", "message": {"content": ""}, "error": {"code": 429, "message": "m"}}]}
    response = {"id": "r", "object": "response", "status": "failed", "error": {"code": "server_error", "message": "m"}}
    bodies: list[tuple[str, int, object, str]] = [
        ("openrouter", 502, {"id": "x", "choices": [], "error": {"code": 502, "message": "Provider returned error"}}, ""),
        ("text", 502, {"error": "it went wrong"}, ""),
        ("list", 503, [{"error": {"code": 503, "message": "m"}}], ""),
        ("choice", 429, in_choice, ""),
        ("finish", 502, failed, ""),
        ("response", 500, response, "/v1/responses"),
        ("invalid", 400, {"error": {"message": "m", "type": "invalid_request_error"}}, ""),
    ]
    faults = [
        Fault(
            name=f"{'F9' if name != 'invalid' else 'F9-invalid'}-whole-{name}",
            want=error_in_200(status, "pooled"),
            script=json_answer(value),
            stream=False,
            path=path or "/v1/chat/completions",
        )
        for name, status, value, path in bodies
    ]
    starving = refused(503, "upstream_error_in_stream", "error_event", "closed")
    faults.append(Fault(name="F9-finish", want=starving, script=sse([events.role(), events.event(starved)], end="hang")))
    for name, status, told, code in (("401", 502, 401, "upstream_auth_error"), ("402", 503, 402, "upstream_quota")):
        error = {"error": {"message": "our own key", "code": told}}
        want = refused(status, code, "error_event", "free")
        faults += [
            Fault(name=f"F9-own-{name}", want=want, script=sse([events.event(error)], end="hang"), also=has_no(b"our own")),
            Fault(name=f"F9-own-{name}-whole", want=want, script=json_answer(error), stream=False, also=has_no(b"our own")),
        ]
    return faults


def refusals() -> list[Fault]:
    """F21 to F27: the upstream refuses."""
    rows = []
    # 409 is no fault of the caller's; nor is a 404 for a name that the route, not the caller, has chosen.
    ours = ("409", "404-mapped")
    for name in ("400", "404", "409", "413", "422", "404-mapped"):
        status = int(name[:3])
        want = Want(outcome="upstream_failed" if name in ours else "rejected", status=status, results=("http_4xx",))
        is_wildcard = name == "404"
        rows.append(Fault(name=f"F21-{name}", want=want, script=error_answer(status), is_wildcard=is_wildcard, also=is_their_error))
    for status in (401, 403):
        want = refused(502, "upstream_auth_error", f"http_{status}", "free")
        rows.append(Fault(name=f"F22-{status}", want=want, script=error_answer(status), also=has_no(b"scripted")))
        passed = Want(outcome="rejected", status=status, results=(f"http_{status}",))
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
        Fault(name="F23-402", want=refused(503, "upstream_quota", "http_402", "free"), script=error_answer(402), also=has_retry_after)
    )
    for number, status in FAILING:
        result = "http_429" if status == 429 else "http_5xx"
        want = Want(outcome="upstream_failed", status=status, results=(result,))
        rows.append(
            Fault(
                name=f"{number}-{status}",
                want=want,
                script=error_answer(status, headers=[("Retry-After", "7")]),
                also=is_their_error,
            )
        )
    for status in (301, 302, 303, 307, 308):
        moved = respond(status, [("Location", "/v1/elsewhere"), ("Content-Type", "text/plain")], b"moved to elsewhere")
        rows.append(
            Fault(name=f"F27-{status}", want=refused(502, "upstream_redirect", "redirect", "free"), script=moved, also=has_no(b"elsewhere"))
        )
    return [row for fault in rows for row in both(fault)]


def is_their_error(seen: Seen) -> None:
    assert seen.response is not None
    assert seen.response.json()["error"]["message"] == f"scripted {seen.response.status}"  # type: ignore[index]


def has_retry_after(seen: Seen) -> None:
    assert seen.response is not None and seen.response.header("retry-after") is not None


def has_no(word: bytes) -> Check:
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
        "status-999": b"HTTP/1.1 999 Odd\r\nContent-Length: 9\r\n\r\n{}",
        "status-0": b"HTTP/1.1 000 Odd\r\nContent-Length: 9\r\n\r\n{}",
        "switching": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "many-interims": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 40,
    }
    want = refused(502, "upstream_protocol_error", "protocol_error", "closed")
    return [row for name, data in heads.items() for row in both(Fault(name=f"F28-{name}", want=want, script=raw(data, end="hang")))]
