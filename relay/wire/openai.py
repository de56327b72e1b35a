"""The observer of an answer in the OpenAI formats: it reads a copy, fills the meter, and never stands in the bytes' way.

Until the first content every event is decoded whole. After it, an ordinary event (one more delta, no finish, no usage, no
error) is only counted, by one of two ways that must agree: the splitter for any bytes, and a fast path for a piece that is
exactly one event on its own lines. Both ask the same question of an event: does it fit a type whose interesting members can
only be null? msgspec answers while it skips the texts, in 0.25 us for 250 bytes, where each of the six or seven byte
searches that would be needed takes 0.1 to 0.2 us and a compiled pattern 1.7 us; and it alone notices broken JSON, odd
spacing, and a word that is only part of a text. Measured (CPython 3.11): fast path 0.75 us per event, of which 0.4 are the
frame's checks and the calls; splitter 1.3 us per event when several share a piece, 3 us for one cut in two.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Final, Literal

import msgspec

from relay.exchange import Operation, StreamMeter
from relay.wire.events import Weight, ends_media, finish_of, kind_of, weigh
from relay.wire.faults import event_error, parse_error
from relay.wire.sse import DONE, Event, EventSplitter
from relay.wire.usage import find_usage, model_of, read_answer

__all__ = ["EventObserver", "First", "error_event", "parse_error", "read_answer"]


class First(Enum):
    """What stands at the head of the answer so far."""

    NOTHING = "nothing"
    """Only comments and pings."""
    HELD = "held"
    """Only events that wait for the first meaningful one."""
    COMMIT = "commit"
    ERROR = "error"
    """The first meaningful event is an error: the meter's `error` says which."""


class _Choice(msgspec.Struct, gc=False):
    finish_reason: None = None


class _Delta(msgspec.Struct, gc=False):
    """A chat chunk that fits here is an ordinary one: what would make it interesting must be null or absent."""

    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: None = None
    error: None = None
    type: None = None
    x_groq: None = None


class _NoText(msgspec.Struct, gc=False):
    content: Literal[""] | None = None
    tool_calls: None = None
    function_call: None = None
    refusal: None = None


class _ThoughtChoice(msgspec.Struct, gc=False):
    delta: _NoText
    finish_reason: None = None


class _Thought(msgspec.Struct, gc=False):
    """A chat chunk that fits here is an ordinary one and has no part of the answer proper, so it goes on reasoning."""

    choices: Annotated[list[_ThoughtChoice], msgspec.Meta(min_length=1)]
    usage: None = None
    error: None = None
    type: None = None
    x_groq: None = None


class _TypedThought(msgspec.Struct, gc=False):
    """The same of the Responses API."""

    type: Literal["response.reasoning_text.delta", "response.reasoning_summary_text.delta"]
    error: None = None
    response: None = None


class _TypedDelta(msgspec.Struct, gc=False):
    """The same of the Responses API."""

    type: Literal[
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta",
        "response.audio.delta",
        "response.audio.transcript.delta",
    ]
    error: None = None
    response: None = None


Tests = tuple[Callable[[bytes], bool], Callable[[bytes], bool]]
"""Whether a piece of a stream is one event that need only be counted; and whether an event's payload is such."""

_decode: Final = msgspec.json.Decoder().decode
_LF: Final = 10

_RESPONSE_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class EventObserver:
    """Observes one event stream."""

    __slots__ = ("_is_chunked", "_is_delta", "_is_easy", "_is_one_delta", "_meter", "_operation", "_splitter", "first")

    def __init__(self, meter: StreamMeter, operation: Operation) -> None:
        """Fill `meter`; `operation` says which terminal the stream ends with."""
        self._meter = meter
        self._operation = operation
        self._splitter = EventSplitter()
        self._is_chunked = operation in (Operation.CHAT, Operation.COMPLETIONS)
        self._is_one_delta, self._is_delta = _ORDINARY.get(operation, _NONE)
        self._is_easy = False
        """Whether content has come, no end has, and the splitter stands between two events: the fast path's condition."""
        self.first = First.NOTHING
        """When the first held event was read."""

    @property
    def at_boundary(self) -> bool:
        """Tell whether an event may be appended here without gluing it to a part of another."""
        return self._splitter.at_boundary

    def feed(self, data: bytes, now: float) -> None:
        """Read the next bytes, which came at `now`. Never raises."""
        if self._is_easy and self._is_one_delta(data):
            meter = self._meter
            meter.content_events += 1
            meter.last_content_at = now
        else:
            self._feed_any(data, now)

    def _feed_any(self, data: bytes, now: float) -> None:
        splitter = self._splitter
        meter = self._meter
        for event in splitter.feed(data):
            if meter.terminal_at is None:
                self._observe(event, now)
        self._is_easy = meter.first_content_at is not None and meter.terminal_at is None and splitter.is_fresh

    def _observe(self, event: Event, now: float) -> None:
        meter = self._meter
        name, data = event
        if event is DONE:
            self._commit(now)
            if self._operation is not Operation.RESPONSES:
                meter.terminal_at = now
        elif data is None:
            meter.oversized_events += 1
            self._take(name, None, now)
        elif meter.first_content_at is not None and (not name or name.startswith(b"response.")) and self._is_delta(data):
            meter.content_events += 1
            meter.last_content_at = now
        elif data:
            self._decode(name, data, now)

    def _decode(self, name: bytes, data: bytes, now: float) -> None:
        try:
            payload = _decode(data)
        except (ValueError, RecursionError):
            self._meter.malformed_events += 1
            payload = None
        self._take(name, payload, now)

    def _take(self, name: bytes, payload: object, now: float) -> None:
        meter = self._meter
        kind = kind_of(name, payload)
        error = event_error("error" if name == b"error" else kind, payload)
        if error is not None:
            meter.error = meter.error or error
            if self.first in (First.NOTHING, First.HELD):
                self.first = First.ERROR
        self._weigh(kind, payload, now, is_error=error is not None)
        if isinstance(payload, dict):
            self._note(payload)
        if self._is_terminal(kind):
            meter.terminal_at = now

    def _weigh(self, kind: str, payload: object, now: float, *, is_error: bool) -> None:
        weight = weigh(kind, payload)
        meter = self._meter
        if weight is Weight.PING and not is_error:
            return
        if meter.first_event_at is None:
            meter.first_event_at = now
        if is_error:
            return
        if weight is Weight.HELD:
            if self.first is First.NOTHING:
                self.first = First.HELD
            return
        self._commit(now)
        if weight is not Weight.OTHER:
            self._count_content(now, is_reasoning=weight is Weight.REASONING)

    def _commit(self, now: float) -> None:
        if self._meter.first_event_at is None:
            self._meter.first_event_at = now
        if self.first is not First.ERROR:
            self.first = First.COMMIT

    def _count_content(self, now: float, *, is_reasoning: bool) -> None:
        meter = self._meter
        meter.content_events += 1
        meter.last_content_at = now
        if meter.first_content_at is None:
            meter.first_content_at = now
        if is_reasoning:
            if meter.first_reasoning_at is None:
                meter.first_reasoning_at = now
            if meter.first_text_at is None:
                # Until the first of the answer proper, so that it is seen: what is no thought is decoded whole.
                self._is_one_delta, self._is_delta = _THOUGHTS.get(self._operation, _NONE)
        elif meter.first_text_at is None:
            meter.first_text_at = now
            self._is_one_delta, self._is_delta = _ORDINARY.get(self._operation, _NONE)

    def _note(self, payload: dict[str, Any]) -> None:
        meter = self._meter
        meter.usage = find_usage(payload) or meter.usage
        meter.finish_reason = finish_of(payload) or meter.finish_reason
        response = payload.get("response")
        if meter.response_model is None:
            meter.response_model = model_of(payload if response is None else response)
        if isinstance(response, dict):
            identity, status = response.get("id"), response.get("status")
            if isinstance(identity, str):
                meter.response_id = identity
            if isinstance(status, str) and status not in ("queued", "in_progress"):
                meter.finish_reason = status

    def _is_terminal(self, kind: str) -> bool:
        if self._is_chunked:
            return False
        if kind in _RESPONSE_ENDS:
            return True
        return self._operation is not Operation.RESPONSES and (kind == "message_stop" or ends_media(kind))


def _chunk_tests(shape: type) -> Tests:
    decode: Callable[[bytes], object] = msgspec.json.Decoder(shape).decode

    def is_one(data: bytes) -> bool:
        """Tell whether the piece is `data: {...}`, a blank line and nothing else, and the event one of `shape`."""
        if data.find(b"\n") != len(data) - 2 or not data.startswith(b"data:") or data[-1] != _LF or data.find(b"\r") >= 0:
            return False
        try:
            decode(data[5:])  # both line ends are white space to it
        except (ValueError, RecursionError):
            return False
        return True

    return is_one, _test(decode)


def _typed_tests(shape: type) -> Tests:
    decode: Callable[[bytes], object] = msgspec.json.Decoder(shape).decode

    def is_one(data: bytes) -> bool:
        """Tell whether the piece is `event: response.NAME`, `data: {...}`, a blank line and nothing else, and the event one of `shape`."""
        if not data.startswith(b"event: response."):
            return False
        start = data.find(b"\n") + 1
        if data.find(b"\n", start) != len(data) - 2 or not data.startswith(b"data:", start) or data[-1] != _LF or data.find(b"\r") >= 0:
            return False
        try:
            decode(data[start + 5 :])
        except (ValueError, RecursionError):
            return False
        return True

    return is_one, _test(decode)


def _test(decode: Callable[[bytes], object]) -> Callable[[bytes], bool]:
    def is_delta(data: bytes) -> bool:
        try:
            decode(data)
        except (ValueError, RecursionError):
            return False  # a finish, usage, an error, broken JSON or an unusual shape: the full decode tells
        return True

    return is_delta


def _never(data: bytes) -> bool:
    return False


_NONE: Final[Tests] = (_never, _never)
_ORDINARY: Final[Mapping[Operation, Tests]] = {
    Operation.CHAT: _chunk_tests(_Delta),
    Operation.COMPLETIONS: _chunk_tests(_Delta),
    Operation.RESPONSES: _typed_tests(_TypedDelta),
}
_THOUGHTS: Final[Mapping[Operation, Tests]] = {
    Operation.CHAT: _chunk_tests(_Thought),
    Operation.RESPONSES: _typed_tests(_TypedThought),
}


def error_event(operation: Operation, envelope: bytes) -> bytes:
    """Frame an error envelope (`{"error":{...}}`) as one event, on one line whatever texts it holds (A38).

    The Responses API gets `event: error` with a nested error, which both official SDKs raise; the flat shape is raised by one.
    """
    line = envelope.translate(None, b"\r\n")
    if operation is Operation.RESPONSES:
        return b'event: error\ndata: {"type":"error",' + line.lstrip()[1:] + b"\n\n"
    return b"data: " + line + b"\n\n"
