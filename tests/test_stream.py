"""The body relays on the pure machine: every cut of a recorded stream, every way to end, and never a false success."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.errors import ErrorEvent, MalformedResponse, StreamBroken, UpstreamError
from relay.exchange import Operation, Outcome, StreamMeter
from relay.stream import BodyEnd, EventRelay, HoldBudget, OpaqueRelay, WholeRelay
from relay.stream.ends import COMMENT_BYTES, HOLD_BODY_BYTES, HOLD_EVENT_BYTES

TRANSCRIPTS = Path(__file__).parent / "transcripts"
CHAT = (TRANSCRIPTS / "openai-chat-stream-text.sse").read_bytes()
RESPONSES = (TRANSCRIPTS / "openai-responses-stream-text.sse").read_bytes()
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
ERROR = b'data: {"error":{"message":"no","type":"server_error"}}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class RecordingPort:
    """Writes down what a relay makes happen."""

    sent: bytes = b""
    is_open: bool = False
    holds: int = 0
    contents: int = 0
    terminals: int = 0
    failure: UpstreamError | None = None
    ends: list[tuple[Outcome, str | None, bool, bool]] = field(default_factory=list)

    def hold(self) -> None:
        self.holds += 1

    def open(self, first: bytes) -> bool:
        assert not self.is_open
        self.is_open = True
        self.sent += first
        return True

    def write(self, data: bytes) -> None:
        assert self.is_open
        self.sent += data

    def content_written(self) -> None:
        self.contents += 1

    def terminal(self) -> None:
        self.terminals += 1

    def failed(self, error: UpstreamError) -> None:
        assert not self.is_open
        assert self.failure is None
        self.failure = error

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None:
        assert self.is_open
        self.ends.append((outcome, code, is_clean, can_append))


def events(operation: Operation = Operation.CHAT, *, can_lack_done: bool = False) -> tuple[RecordingPort, EventRelay, StreamMeter]:
    port, meter = RecordingPort(), StreamMeter()
    return port, EventRelay(port, meter, operation, can_lack_done=can_lack_done), meter


def whole(*, is_json: bool = True, is_close_delimited: bool = False, budget: HoldBudget | None = None) -> tuple[RecordingPort, WholeRelay]:
    port = RecordingPort()
    relay = WholeRelay(
        port, StreamMeter(), budget or HoldBudget(), is_json=is_json, is_encoded=False, is_close_delimited=is_close_delimited
    )
    return port, relay


@pytest.mark.parametrize("how", list(BodyEnd), ids=lambda how: how.value)
@pytest.mark.parametrize(
    ("operation", "body", "proof"),
    [(Operation.CHAT, CHAT, CHAT.index(b"data: [DONE]\n") + 13), (Operation.RESPONSES, RESPONSES, len(RESPONSES))],
    ids=["chat", "responses"],
)
def test_a_stream_cut_at_any_byte_is_never_a_success_before_its_terminator(
    operation: Operation, body: bytes, proof: int, how: BodyEnd
) -> None:
    for cut in range(len(body) + 1):
        port, relay, _ = events(operation)
        if cut:
            relay.feed(body[:cut], 1.0)
        relay.finish(how)
        if port.failure is not None:
            assert not port.is_open and port.ends == []
            continue
        assert port.sent == body[:cut]
        ((outcome, _, is_clean, can_append),) = port.ends
        is_proven = cut >= proof
        assert (outcome is Outcome.COMPLETE) == is_proven, cut
        assert is_clean == is_proven, cut
        if not is_proven:
            assert outcome is Outcome.UPSTREAM_CUT
            assert can_append == (body[:cut].endswith(b"\n\n")), cut


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_pieces_of_any_size_reach_the_client_unchanged(size: int) -> None:
    port, relay, meter = events()
    for start in range(0, len(CHAT), size):
        relay.feed(CHAT[start : start + size], float(start))
    relay.finish(BodyEnd.WHOLE)
    assert port.sent == CHAT
    assert port.ends == [(Outcome.COMPLETE, None, True, False)]
    assert (port.contents, port.terminals) == (1, 1)
    assert meter.bytes_in == len(CHAT)


def test_role_only_events_are_held_until_content_comes() -> None:
    port, relay, _ = events()
    relay.feed(ROLE, 1.0)
    assert (port.is_open, port.holds) == (False, 1)
    relay.feed(TEXT, 2.0)
    assert port.sent == ROLE + TEXT


def test_comments_start_no_clock() -> None:
    port, relay, _ = events()
    relay.feed(b": keep-alive\n\n" * 100, 1.0)
    assert (port.is_open, port.holds, port.failure) == (False, 0, None)


def test_held_events_are_released_when_the_clock_runs_out() -> None:
    port, relay, _ = events()
    relay.feed(ROLE, 1.0)
    relay.release()
    assert port.sent == ROLE
    relay.release()
    relay.finish(BodyEnd.CUT)
    assert port.ends == [(Outcome.UPSTREAM_CUT, "upstream_truncated", False, True)]


def test_held_events_are_released_when_they_grow_too_large() -> None:
    port, relay, _ = events()
    relay.feed(ROLE * (HOLD_EVENT_BYTES // len(ROLE) + 1), 1.0)
    assert port.is_open


def test_a_flood_of_comments_is_not_an_answer() -> None:
    port, relay, _ = events()
    relay.feed(b": x\n\n" * (COMMENT_BYTES // 5 + 1), 1.0)
    assert isinstance(port.failure, MalformedResponse)
    relay.finish(BodyEnd.WHOLE)
    assert port.ends == []


@pytest.mark.parametrize("head", [b"", ROLE, b": hello\n\n" + ROLE], ids=["first", "after-role", "after-comment-and-role"])
def test_an_error_before_content_fails_the_attempt(head: bytes) -> None:
    port, relay, _ = events()
    relay.feed(head + ERROR, 1.0)
    assert isinstance(port.failure, ErrorEvent)
    assert not port.is_open


def test_an_error_after_content_passes_verbatim_and_keeps_the_upstreams_end() -> None:
    port, relay, _ = events()
    relay.feed(TEXT + ERROR, 1.0)
    relay.finish(BodyEnd.WHOLE)
    assert port.sent == TEXT + ERROR
    assert port.ends == [(Outcome.UPSTREAM_ERROR, "upstream_error_in_stream", True, False)]


def test_a_cut_after_an_error_event_gets_no_second_one() -> None:
    port, relay, _ = events()
    relay.feed(TEXT + ERROR, 1.0)
    relay.finish(BodyEnd.RESET)
    assert port.ends == [(Outcome.UPSTREAM_ERROR, "upstream_error_in_stream", False, False)]


def test_bytes_after_the_terminator_pass_and_change_nothing() -> None:
    port, relay, _ = events()
    relay.feed(TEXT + DONE, 1.0)
    relay.feed(b"data: more\n\n", 2.0)
    relay.finish(BodyEnd.RESET)
    assert port.sent == TEXT + DONE + b"data: more\n\n"
    assert port.ends == [(Outcome.COMPLETE, None, True, False)]


@pytest.mark.parametrize(("quirk", "outcome"), [(True, Outcome.COMPLETE), (False, Outcome.UPSTREAM_CUT)])
def test_a_finish_reason_ends_a_stream_only_for_upstreams_known_to_lack_done(quirk: bool, outcome: Outcome) -> None:
    port, relay, _ = events(can_lack_done=quirk)
    relay.feed(TEXT + b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', 1.0)
    relay.finish(BodyEnd.OPEN)
    assert port.ends[0][0] is outcome


def test_an_empty_stream_is_a_malformed_answer() -> None:
    port, relay, _ = events()
    relay.finish(BodyEnd.WHOLE)
    assert isinstance(port.failure, MalformedResponse)


def test_role_only_then_a_clean_end_is_a_truncation() -> None:
    port, relay, _ = events()
    relay.feed(ROLE, 1.0)
    relay.finish(BodyEnd.WHOLE)
    assert isinstance(port.failure, StreamBroken)


def test_our_own_cut_appends_an_event_only_at_a_boundary() -> None:
    for tail, can_append in ((b"", True), (b'data: {"cho', False)):
        port, relay, _ = events()
        relay.feed(TEXT + tail, 1.0)
        relay.cut(Outcome.UPSTREAM_STALLED, "stream_idle_timeout")
        relay.finish(BodyEnd.RESET)
        assert port.ends == [(Outcome.UPSTREAM_STALLED, "stream_idle_timeout", False, can_append)]


def test_a_whole_body_is_sent_when_it_is_all_there() -> None:
    port, relay = whole()
    relay.feed(b'{"id":', 1.0)
    relay.feed(b'"x"}', 2.0)
    assert not port.is_open
    relay.finish(BodyEnd.WHOLE)
    assert port.sent == b'{"id":"x"}'
    assert port.ends == [(Outcome.COMPLETE, None, True, False)]


@pytest.mark.parametrize("how", [BodyEnd.CUT, BodyEnd.RESET, BodyEnd.GARBAGE])
def test_a_broken_body_fails_while_it_is_held(how: BodyEnd) -> None:
    port, relay = whole()
    relay.feed(b'{"id":', 1.0)
    relay.finish(how)
    assert port.failure is not None and not port.is_open


def test_a_broken_body_is_cut_once_it_was_released() -> None:
    port, relay = whole()
    relay.feed(b'{"id":', 1.0)
    relay.release()
    relay.feed(b'"x', 2.0)
    relay.finish(BodyEnd.CUT)
    assert port.sent == b'{"id":"x'
    assert port.ends == [(Outcome.UPSTREAM_CUT, "upstream_truncated", False, False)]


def test_a_close_delimited_body_is_proven_by_parsing_it() -> None:
    for cut in range(1, 11):
        for released in (False, True):
            port, relay = whole(is_close_delimited=True)
            relay.feed(b'{"id":"x"}'[:cut], 1.0)
            if released:
                relay.release()
            relay.finish(BodyEnd.OPEN)
            is_good = bool(port.ends) and port.ends[0][0] is Outcome.COMPLETE
            assert is_good == (cut == 10), (cut, released)


def test_a_close_delimited_body_that_is_too_deep_to_be_read_is_not_proven() -> None:
    port, relay = whole(is_close_delimited=True)
    relay.feed(b"[" * 200_000 + b"]" * 200_000, 1.0)
    relay.finish(BodyEnd.OPEN)
    assert isinstance(port.failure, StreamBroken)
    assert not port.is_open


@pytest.mark.parametrize("body", [b"", b"   ", b"<html></html>", b"OK"])
def test_a_body_that_is_not_json_is_no_answer_of_a_json_endpoint(body: bytes) -> None:
    port, relay = whole()
    if body:
        relay.feed(body, 1.0)
    relay.finish(BodyEnd.WHOLE)
    assert isinstance(port.failure, MalformedResponse)


def test_a_large_body_is_released_before_its_end() -> None:
    port, relay = whole()
    relay.feed(b"[" + b" " * HOLD_BODY_BYTES, 1.0)
    assert port.is_open


def test_the_budget_of_held_bytes_is_returned_in_every_case() -> None:
    for finish in (BodyEnd.WHOLE, BodyEnd.CUT):
        for released in (False, True):
            budget = HoldBudget(100)
            port, relay = whole(budget=budget, is_close_delimited=True)
            relay.feed(b'{"a":1', 1.0)
            if released:
                relay.release()
            relay.feed(b"}", 1.0)
            relay.finish(finish)
            assert budget.take(100), (finish, released)
            assert port.ends or port.failure


def test_a_spent_budget_commits_at_once_and_loses_nothing() -> None:
    port, relay = whole(budget=HoldBudget(4))
    relay.feed(b'{"a"', 1.0)
    relay.feed(b":1}", 1.0)
    assert port.sent == b'{"a":1}'
    relay.finish(BodyEnd.WHOLE)
    assert port.ends == [(Outcome.COMPLETE, None, True, False)]


@pytest.mark.parametrize(
    ("how", "is_open_proof", "outcome"),
    [
        (BodyEnd.WHOLE, True, Outcome.COMPLETE),
        (BodyEnd.OPEN, True, Outcome.COMPLETE),
        (BodyEnd.OPEN, False, Outcome.UPSTREAM_CUT),
        (BodyEnd.CUT, True, Outcome.UPSTREAM_CUT),
        (BodyEnd.RESET, True, Outcome.UPSTREAM_CUT),
    ],
)
def test_opaque_bytes_pass_at_once_and_the_framing_tells_the_end(how: BodyEnd, is_open_proof: bool, outcome: Outcome) -> None:
    port = RecordingPort()
    relay = OpaqueRelay(port, StreamMeter(), is_open_proof=is_open_proof)
    relay.begin()
    assert port.is_open
    relay.feed(b"\x00\xff", 1.0)
    relay.finish(how)
    assert port.sent == b"\x00\xff"
    assert port.ends[0][0] is outcome


def test_a_stream_that_may_hold_several_results_is_not_ended_at_the_first() -> None:
    port, relay, _ = events(Operation.OTHER)
    relay.feed(b'data: {"type":"image_generation.completed","b64_json":"AA"}\n\n', 1.0)
    relay.feed(b'data: {"type":"image_generation.completed","b64_json":"AB"}\n\n', 9.0)
    assert port.terminals == 0
    relay.finish(BodyEnd.WHOLE)
    assert port.ends == [(Outcome.COMPLETE, None, True, False)]


def test_an_error_after_blank_lines_that_were_passed_is_no_success() -> None:
    body = b'{"error":{"code":502,"message":"Provider returned error"}}'
    port, relay = whole()
    relay.feed(b"\n\n", 1.0)
    relay.release()
    relay.feed(body, 9.0)
    relay.finish(BodyEnd.WHOLE)
    assert port.sent == b"\n\n" + body
    assert port.ends == [(Outcome.UPSTREAM_ERROR, "upstream_error_in_stream", True, False)]


def test_the_copy_of_a_committed_answer_is_bounded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.stream.bodies.HOLD_BODY_BYTES", 64)
    budget = HoldBudget(1000)
    port, relay = whole(budget=budget)
    relay.feed(b"{", 1.0)
    relay.release()
    assert not budget.take(1000)
    relay.feed(b" " * 64, 1.0)
    assert budget.take(1000)
    budget.give(1000)
    relay.feed(b"}", 1.0)
    relay.finish(BodyEnd.WHOLE)
    assert port.ends == [(Outcome.COMPLETE, None, True, False)]
    assert budget.take(1000)
