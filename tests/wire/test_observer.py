import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.exchange import EventError, Operation, StreamMeter, Usage
from relay.wire.openai import EventObserver, First
from relay.wire.sse import DONE, EventSplitter
from tests.wire.transcripts import EXPECTED, STREAMS, byte_by_byte, cut_at, observe, operation, stream

SMALL_STREAMS = [name for name in STREAMS if len(stream(name)) < 10_000]


def state(pieces: list[bytes], operation: Operation) -> tuple[Any, ...]:
    observer, meter = observe(pieces, operation)
    return asdict(meter), observer.first, observer.at_boundary


def chunk(delta: dict[str, Any] | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "choices": [choice], **more}).encode() + b"\n\n"


def typed(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


ROLE = chunk({"role": "assistant", "content": "", "refusal": None})
TEXT = chunk({"content": "Hi"})
FAULT = b'data: {"error":{"message":"m","type":"server_error","code":null}}\n\n'
CREATED = typed("response.created", response={"id": "resp_1", "status": "in_progress", "error": None})
DELTA = typed("response.output_text.delta", delta="x")


@pytest.mark.parametrize("name", STREAMS)
def test_a_transcript_gives_the_marks_known_for_it(name: str) -> None:
    expected = EXPECTED[name]
    _, meter = observe([stream(name)], operation(name))
    assert meter.finish_reason == expected["finish"]
    assert (meter.terminal_at is not None) is expected["ends"]
    assert (meter.error.status if meter.error else None) == expected["error"]
    if expected["usage"] is None:
        assert meter.usage is None
    else:
        assert meter.usage is not None
        found = [meter.usage.input, meter.usage.output, meter.usage.cached, meter.usage.reasoning]
        assert all(known is None or known == value for known, value in zip(expected["usage"], found, strict=True))
    assert (meter.first_reasoning_at is not None) is (expected["reasoning"] is not None and not name.startswith("dashscope-native"))
    assert meter.malformed_events == meter.oversized_events == 0


@pytest.mark.parametrize("name", [name for name in STREAMS if EXPECTED[name]["text"] is not None])
def test_a_transcript_holds_the_text_known_for_it(name: str) -> None:
    text = ""
    for event in EventSplitter().feed(stream(name)):
        if event is DONE:
            break
        payload = json.loads(event.data or b"null")
        for choice in payload.get("choices") or []:
            content = choice.get("text") or choice.get("delta", {}).get("content")
            text += content if isinstance(content, str) else ""
        if payload.get("type") in ("response.output_text.delta", "transcript.text.delta"):
            text += payload["delta"]
    assert text.replace("A" * 200_000, "A x 200000") == EXPECTED[name]["text"]


@pytest.mark.parametrize("name", SMALL_STREAMS)
def test_a_transcript_gives_the_same_marks_under_every_cut(name: str) -> None:
    data = stream(name)
    whole = state([data], operation(name))
    assert state(byte_by_byte(data), operation(name)) == whole
    for cut in range(len(data)):
        assert state([data[:cut], data[cut:]], operation(name)) == whole, cut


@pytest.mark.parametrize("name", SMALL_STREAMS)
def test_event_by_event_gives_the_same_marks_as_byte_by_byte_after_every_event(name: str) -> None:
    data, kind = stream(name), operation(name)
    fast_meter, slow_meter = StreamMeter(), StreamMeter()
    fast, slow = EventObserver(fast_meter, kind), EventObserver(slow_meter, kind)
    for piece in data.split(b"\n\n"):
        fast.feed(piece + b"\n\n", 1.0)
        for byte in byte_by_byte(piece + b"\n\n"):
            slow.feed(byte, 1.0)
        assert (asdict(fast_meter), fast.first, fast.at_boundary) == (asdict(slow_meter), slow.first, slow.at_boundary)


def test_edge_large_event_reads_the_same_in_any_piece_size() -> None:
    data = stream("edge-large-event.sse")
    whole = state([data], Operation.CHAT)
    for size in (997, 16_384, 65_536, 131_072):
        assert state([data[i : i + size] for i in range(0, len(data), size)], Operation.CHAT) == whole


PARTS = st.sampled_from(
    [
        ROLE,
        TEXT,
        FAULT,
        CREATED,
        DELTA,
        chunk(finish="stop"),
        chunk({"content": "x"}, usage=None),
        b": note\n\n",
        b"data: [DONE]\n\n",
        chunk({"content": "x"}, error=None),
        chunk({"content": '[DONE] "error" finish_reason'}),
        chunk({"content": "x"}, error={"code": 429}),
        b'data: {"choices":[]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
        b"data: {broken}\n\n",
        b'data: {"choices":[{"delta":{"content":"x"},"finish_reason" : "stop"}]}\n\n',
        b'data: {"choices":null}\n\n',
        b"data: 5\n\n",
        b"data:\n\n",
        b'data: {"choices":[{"delta":{"content":"x"}}],\rdata: "a":1}\n\n',
        b'data: {"choices":[{"delta":{"content":"x"}}],\r"a":1}\n\n',
        b'data: {"choices":[{"delta":{"content":"x"}}]}\n\r',
        b'data: {"choices":[{"delta":{"content":"x"}}]}\n ',
        b"event: error\n",
        b"event: ping\n",
        b"event: response.output_text.delta\n",
        b"data: ",
        b"\n",
        b"\r",
        b"\r\n",
        b"id: 1\n",
        typed("response.completed", response={"id": "r"}),
        typed("response.output_text.delta", delta="x", error="e"),
        typed("response.other.delta", delta="x"),
        typed("error", code="server_error"),
        typed("speech.audio.delta"),
        typed("speech.audio.done"),
        typed("message_start"),
        b"data: " + b"[" * 3000 + b"\n\n",
        b"\xef\xbb\xbf",
        b"data: \xff{}\n\n",
    ]
)


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.one_of(PARTS, st.binary(max_size=20)), max_size=14),
    st.lists(st.integers(min_value=0), max_size=6),
    st.sampled_from([Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES, Operation.OTHER]),
)
def test_any_stream_in_any_cuts_gives_the_same_marks_and_never_raises(parts: list[bytes], cuts: list[int], kind: Operation) -> None:
    data = b"".join(parts)
    slow = state(byte_by_byte(data), kind)
    assert state(parts, kind) == slow
    assert state([data], kind) == slow
    assert state(cut_at(data, cuts), kind) == slow


@pytest.mark.parametrize("kind", [Operation.CHAT, Operation.RESPONSES])
def test_the_fast_path_is_taken_for_an_ordinary_delta(kind: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    event = TEXT if kind is Operation.CHAT else DELTA
    observer, meter = observe([event], kind)

    def refuse(self: EventSplitter, data: bytes) -> list[Any]:
        raise AssertionError("the splitter was asked")

    monkeypatch.setattr(EventSplitter, "feed", refuse)
    observer.feed(event, 2.0)
    assert (meter.content_events, meter.last_content_at, meter.first_content_at) == (2, 2.0, 1.0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", First.NOTHING),
        (b": OPENROUTER PROCESSING\n\n", First.NOTHING),
        (b"event: ping\n\n", First.NOTHING),
        (b'event: ping\ndata: {"type": "ping"}\n\n', First.NOTHING),
        (b"retry: 3000\n\n", First.NOTHING),
        (ROLE, First.HELD),
        (ROLE[:-1], First.NOTHING),
        (chunk({}), First.HELD),
        (chunk({"role": "assistant", "content": None, "reasoning_content": ""}), First.HELD),
        (b'data: {"choices":[],"prompt_filter_results":[{}],"id":""}\n\n', First.HELD),
        (b'data: {"choices":[],"usage":null}\n\n', First.HELD),
        (b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n', First.COMMIT),
        (CREATED + typed("response.queued") + typed("response.in_progress"), First.HELD),
        (typed("message_start", message={"id": "m"}), First.HELD),
        (typed("content_block_start", content_block={"type": "text", "text": ""}), First.HELD),
        (typed("content_block_start", content_block={"type": "tool_use"}), First.COMMIT),
        (typed("response.output_item.added"), First.COMMIT),
        (typed("response.output_item.added", item={"type": "function_call"}), First.COMMIT),
        (TEXT, First.COMMIT),
        (chunk({"reasoning_content": "Hm"}), First.COMMIT),
        (chunk({"reasoning": "Hm", "content": ""}), First.COMMIT),
        (chunk({"tool_calls": [{"index": 0}], "content": None}), First.COMMIT),
        (chunk({"refusal": "No"}), First.COMMIT),
        (chunk({"audio": {"data": "x"}}), First.COMMIT),
        (chunk(finish="stop"), First.COMMIT),
        (b"data: [DONE]\n", First.COMMIT),
        (b"data: not json\n\n", First.COMMIT),
        (b'data: {"unknown": 1}\n\n', First.COMMIT),
        (b"data: [1]\n\n", First.COMMIT),
        (b"event: news\ndata: {}\n\n", First.COMMIT),
        (FAULT, First.ERROR),
        (ROLE + FAULT, First.ERROR),
        (CREATED + typed("error", code="server_error", message="m"), First.ERROR),
        (CREATED + typed("response.failed", response={"error": {"code": "server_error"}}), First.ERROR),
        (b"event: error\ndata: not json\n\n", First.ERROR),
        (b'data: {"choices":[],"error":{"code":502}}\n\n', First.ERROR),
        (b'data: {"error":"boom"}\n\n', First.ERROR),
        (FAULT + TEXT, First.ERROR),
        (TEXT + FAULT, First.COMMIT),
        (b'error: {"code":400}\n\n', First.NOTHING),
        (chunk({"content": "x"}, error=None), First.COMMIT),
        (b"data: " + b"x" * (2**20 + 1) + b"\n\n", First.COMMIT),
    ],
)
def test_what_stands_at_the_head_decides_about_the_commit(data: bytes, expected: First) -> None:
    kind = Operation.RESPONSES if b"response." in data else Operation.CHAT
    assert observe([data], kind)[0].first is expected


def test_comments_and_pings_are_nothing_yet_and_a_role_is_held() -> None:
    observer = EventObserver(StreamMeter(), Operation.CHAT)
    seen = []
    for now, piece in enumerate([b": note\n\n", b"event: ping\ndata: {}\n\n", ROLE, ROLE]):
        observer.feed(piece, float(now))
        seen.append(observer.first)
    assert seen == [First.NOTHING, First.NOTHING, First.HELD, First.HELD]


def test_marks_are_taken_at_the_instant_of_their_piece() -> None:
    meter = StreamMeter()
    observer = EventObserver(meter, Operation.CHAT)
    pieces = [
        b": note\n\n",
        ROLE,
        chunk({"reasoning_content": "a"}),
        TEXT,
        TEXT[:9],
        TEXT[9:],
        chunk(finish="stop"),
        b"data: [DONE]\n",
        b"\n",
    ]
    for now, piece in enumerate(pieces):
        observer.feed(piece, float(now))
    assert (meter.first_event_at, meter.first_reasoning_at, meter.first_content_at, meter.last_content_at) == (1.0, 2.0, 2.0, 5.0)
    assert (meter.content_events, meter.finish_reason, meter.terminal_at) == (3, "stop", 7.0)


def test_f11_an_error_after_content_is_told_beside_the_content() -> None:
    observer, meter = observe([TEXT + FAULT], Operation.CHAT)
    assert observer.first is First.COMMIT
    assert meter.error == EventError(status=500, type="server_error", code=None, message="m")
    assert meter.terminal_at is None


def test_f17_broken_json_is_counted_before_and_after_the_first_content() -> None:
    _, meter = observe(
        [b"data: {broken}\n\n", TEXT, b'data: {"choices":[{"delta":{"content":"x"}\n\n', TEXT, b"data: {broken}\n\n"], Operation.CHAT
    )
    assert (meter.malformed_events, meter.content_events) == (3, 2)


def test_the_first_of_two_errors_is_kept() -> None:
    _, meter = observe([stream("openai-responses-stream-quota-error-in-200.sse")], Operation.RESPONSES)
    assert meter.error is not None
    assert (meter.error.status, meter.error.type, meter.error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert meter.finish_reason == "failed"
    assert meter.response_id == "resp_0ecff685e411ca7b0069e0"


def test_usage_is_the_last_one_reported_and_null_takes_nothing_back() -> None:
    first = chunk({"content": "x"}, usage={"prompt_tokens": 5, "completion_tokens": 1})
    last = chunk({"content": "x"}, usage={"prompt_tokens": 5, "completion_tokens": 2})
    _, meter = observe([TEXT, first, last, b'data: {"choices":[],"usage":null,"moderation":{}}\n\n'], Operation.CHAT)
    assert meter.usage == Usage(input=5, output=2)
    assert meter.content_events == 3


@pytest.mark.parametrize(
    ("kind", "data", "ends"),
    [
        (Operation.CHAT, b"data: [DONE]\n", True),
        (Operation.CHAT, b"data: [DONE]\r", True),
        (Operation.CHAT, b"data: [DONE]", False),
        (Operation.COMPLETIONS, b"data:[DONE]\n", True),
        (Operation.CHAT, typed("response.completed"), False),
        (Operation.RESPONSES, b"data: [DONE]\n\n", False),
        (Operation.RESPONSES, typed("response.completed", response={"id": "r"}), True),
        (Operation.RESPONSES, typed("response.incomplete", response={"id": "r"}), True),
        (Operation.RESPONSES, typed("response.failed", response={"id": "r"}), True),
        (Operation.RESPONSES, typed("response.completed", response={"id": "r"})[:-1], False),
        (Operation.RESPONSES, typed("response.output_text.done"), False),
        (Operation.RESPONSES, b'data: {"type":"response.completed"}\n\n', True),
        (Operation.RESPONSES, b"event: response.completed\ndata: " + b"x" * (2**20 + 1) + b"\n\n", True),
        (Operation.OTHER, typed("response.output_text.done"), False),
        (Operation.OTHER, typed("thread.message.completed"), False),
        (Operation.OTHER, typed("response.completed"), True),
        (Operation.OTHER, typed("message_stop"), True),
        (Operation.OTHER, typed("transcript.text.done"), True),
        (Operation.OTHER, typed("image_edit.completed"), True),
        (Operation.OTHER, b"data: [DONE]\n", True),
    ],
)
def test_each_operation_has_its_own_terminal(kind: Operation, data: bytes, ends: bool) -> None:
    assert (observe([data], kind)[1].terminal_at is not None) is ends


def test_nothing_is_marked_after_the_terminal() -> None:
    _, meter = observe([TEXT, b"data: [DONE]\n\n", TEXT, FAULT, chunk(finish="length")], Operation.CHAT)
    assert (meter.content_events, meter.error, meter.finish_reason) == (1, None, None)


def test_f30_an_oversized_event_is_counted_and_the_stream_goes_on() -> None:
    giant = b'data: {"choices":[{"delta":{"content":"' + b"x" * 2**20 + b'"}}]}\n\n'
    _, meter = observe([TEXT, giant[:70_000], giant[70_000:], TEXT], Operation.CHAT)
    assert (meter.oversized_events, meter.content_events, meter.malformed_events) == (1, 2, 0)


def thought(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":null,"reasoning_content":"%s"},"finish_reason":null}]}\n\n' % text.encode()


@pytest.mark.parametrize(
    "answer",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"hi","reasoning_content":null},"finish_reason":null}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"f"}}]},"finish_reason":null}]}\n\n',
    ],
)
@pytest.mark.parametrize("is_split", [False, True])
def test_reasoning_ends_with_the_first_of_the_answer_proper(answer: bytes, is_split: bool) -> None:
    meter = StreamMeter()
    observer = EventObserver(meter, Operation.CHAT)

    def feed(piece: bytes, now: float) -> None:
        for part in (piece[:20], piece[20:]) if is_split else (piece,):
            observer.feed(part, now)

    for number in range(5):
        feed(thought(f"{number}"), float(number))
        assert (meter.first_reasoning_at, meter.first_text_at) == (0.0, None)
    feed(answer, 7.0)
    feed(thought("again"), 8.0)
    feed(answer, 9.0)
    assert (meter.first_reasoning_at, meter.first_text_at, meter.content_events) == (0.0, 7.0, 8)


def test_reasoning_of_the_responses_api_ends_with_its_text() -> None:
    meter = StreamMeter()
    observer = EventObserver(meter, Operation.RESPONSES)
    kinds = ["response.reasoning_summary_text.delta", "response.reasoning_summary_text.delta", "response.output_text.delta"]
    for number, kind in enumerate(kinds):
        observer.feed(b'event: %b\ndata: {"type":"%b","delta":"x"}\n\n' % (kind.encode(), kind.encode()), float(number))
        assert meter.first_text_at == (2.0 if number == 2 else None)
    assert meter.content_events == 3
