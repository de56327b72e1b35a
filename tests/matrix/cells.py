"""The cells of the fault matrix: what an upstream, or the client, does wrong, and what that has to lead to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from tests.fakes import events
from tests.fakes.certificates import Authority
from tests.fakes.scripts import JSON, Script, body, error_answer, hang, in_turn, json_answer, raw, respond, sse
from tests.fakes.upstream import Peer

CONNECT_QUICK = {"timeouts": {"connect": "500ms"}}
QUICK = {"timeouts": {"first_token": "1500ms", "between_tokens": "1s"}}
"""Only for the cells that are about a timeout: a busy machine makes no faults of its own."""
HOLD_SECONDS = 2.3
"""Longer than an answer without streaming is held: what comes after this pause comes after the commit."""

CALLER_KEY = "sk-callerCANARY+71/c40e=aa"
FIRST_KEY = "sk-firstCANARY+0b/93d1=7f"
SECOND_KEY = "sk-secondCANARY+e8/26a5=13"
PROMPT = "promptCANARY of somebody"
ANSWER = "answerCANARY"
"""Begins every text and every body of an upstream, the broken ones too."""
FIRST, SECOND = f"{ANSWER} from the first", f"{ANSWER} from the second"
"""What the targets say, so that nobody can take one's answer for the other's."""
ROLE = events.role()
START = [ROLE, events.content(f"{ANSWER} from "), events.content("the first")]
FINISH = events.chat_chunk(finish="stop")
WHOLE = [*START, FINISH, events.DONE]


def completion(text: str) -> dict[str, object]:
    """A chat completion that says `text`."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}


HALF = b'{"id":"chatcmpl-1","system_fingerprint":"%b","choices":[' % ANSWER.encode()


class Kind(Enum):
    """What a fault has to lead to."""

    MENDED = "before the commit: an error from a single target, a whole answer of the next one"
    BROKEN = "after the commit: an exception, and no other target"
    PASSED = "no fault of the answer: passed on as it is"
    CALLERS = "the caller's own mistake: passed on, and no other target"
    LEFT = "the client leaves: the upstream is closed, and no other target"


Shape = Literal["stream", "json"]
Moment = Literal["connecting", "sent", "first", "second"]
"""When the client leaves: while the relay connects, when the request is with the upstream, after a first chunk, at the second target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row: the scripts of its upstream, by the shape of the request; a shape that is not there has no such fault."""

    name: str
    kind: Kind
    scripts: Mapping[Shape, Script | None]
    """None: nobody listens."""
    upstream: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its upstream beside the usual ones."""
    leaves: Moment | None = None
    is_slow: bool = False
    """Whether the client reads slowly."""
    is_responses: bool = False
    """Whether the Responses API is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One fault in one shape, with one target or two."""

    number: int
    fault: Fault
    shape: Shape
    has_fallback: bool

    @property
    def name(self) -> str:
        """For people and for test ids."""
        return f"{self.fault.name}, {self.shape}, {'fallback' if self.has_fallback else 'single'}"

    @property
    def slug(self) -> str:
        """The name of its route, of its upstream, and of the model there."""
        return f"cell-{self.number}"


def cells_of(faults: Sequence[Fault]) -> list[Cell]:
    """Every cell of the matrix, row by row."""
    wanted = [(fault, shape, has_fallback) for fault in faults for shape in fault.scripts for has_fallback in (False, True)]
    kept = [cell for cell in wanted if cell[2] or cell[0].leaves != "second"]
    return [Cell(number=number, fault=fault, shape=shape, has_fallback=more) for number, (fault, shape, more) in enumerate(kept)]


def _both(name: str, kind: Kind, script: Script | None, **more: Any) -> Fault:
    return Fault(name=name, kind=kind, scripts={"stream": script, "json": script}, **more)


def _each(name: str, kind: Kind, stream: Script, json: Script, **more: Any) -> Fault:
    return Fault(name=name, kind=kind, scripts={"stream": stream, "json": json}, **more)


def _stream(name: str, kind: Kind, script: Script, **more: Any) -> Fault:
    return Fault(name=name, kind=kind, scripts={"stream": script}, **more)


def connecting(ports: Mapping[str, int], authority: Authority, tls_url: str) -> list[Fault]:
    """No connection."""
    nowhere = {"base_url": f"http://127.0.0.1:{ports['swallowing']}/v1"}
    return [
        _both("connection refused", Kind.MENDED, None, upstream={"base_url": f"http://127.0.0.1:{ports['refusing']}/v1"}),
        _both("connect timeout", Kind.MENDED, None, upstream={**nowhere, **CONNECT_QUICK}),
        _both("TLS failure", Kind.MENDED, None, upstream={"base_url": tls_url, "ca_file": str(authority.file)}),
        _both("DNS failure", Kind.MENDED, None, upstream={"base_url": "http://nowhere.invalid/v1"}),
        _both("client leaves while connecting", Kind.LEFT, None, upstream=nowhere, leaves="connecting"),
    ]


def refusals() -> list[Fault]:
    """An error status in place of an answer."""
    spent = error_answer(429, code="insufficient_quota", type="insufficient_quota")
    throttled = [("Retry-After", "7")]
    moved = respond(307, [("Location", "/v1/elsewhere"), ("Content-Type", "text/plain")], ANSWER.encode())
    return [
        _both("400", Kind.CALLERS, error_answer(400, type="invalid_request_error")),
        _both("401", Kind.MENDED, error_answer(401)),
        _both("402", Kind.MENDED, error_answer(402)),
        _both("insufficient_quota", Kind.MENDED, spent),
        _both("403", Kind.MENDED, error_answer(403)),
        _both("404 model", Kind.MENDED, error_answer(404, code="model_not_found", type="invalid_request_error")),
        _both("429 with Retry-After", Kind.MENDED, error_answer(429, code="rate_limit_exceeded", headers=throttled)),
        _both("429 without Retry-After", Kind.MENDED, error_answer(429, code="rate_limit_exceeded")),
        _both("500", Kind.MENDED, error_answer(500)),
        _both("503", Kind.MENDED, error_answer(503)),
        _both("529", Kind.MENDED, error_answer(529)),
        _both("redirect", Kind.MENDED, moved),
    ]


def no_answer() -> list[Fault]:
    """A 200 that is none, or nothing at all."""
    html = respond(200, [("Content-Type", "text/html")], f"<html>{ANSWER}</html>".encode())
    error = events.error("rate_limit_exceeded")
    created = events.event({"type": "response.created", "sequence_number": 0, "response": {"id": "r"}}, name="response.created")
    failed = {"id": "r", "status": "failed", "error": {"code": "server_error", "message": "m"}}
    failure = events.event({"type": "response.failed", "sequence_number": 1, "response": failed}, name="response.failed")
    return [
        _both("HTML 200", Kind.MENDED, html),
        _each("empty 200", Kind.MENDED, sse([]), respond(200, JSON, b"")),
        _both("hang before headers", Kind.MENDED, hang(), upstream=QUICK),
        _each("headers, then silence", Kind.MENDED, sse([], end="hang"), body([], end="hang"), upstream=QUICK),
        _stream("role only, then silence", Kind.MENDED, sse([ROLE], end="hang"), upstream=QUICK),
        _stream("error as first event", Kind.MENDED, sse([error])),
        _stream("error after a role", Kind.MENDED, sse([ROLE, events.error()])),
        _stream("error after lifecycle events", Kind.MENDED, sse([created, failure]), is_responses=True),
        _stream("comment flood, then silence", Kind.MENDED, flood(silence=True), upstream=QUICK),
        _each("connection closed at once", Kind.MENDED, raw(end="fin"), raw(end="fin")),
    ]


def broken_answers() -> list[Fault]:
    """An answer that stops, or goes wrong."""
    half, more = HALF, b'{"index":0,'
    late = {"pause": HOLD_SECONDS}
    text = json_answer(completion(FIRST))
    large = [ROLE, events.content(FIRST + "x" * (2 * 2**20)), FINISH, events.DONE]
    unreadable = [*START, f"data: {{not json {ANSWER}}}\n\n".encode(), FINISH, events.DONE]
    return [
        Fault(name="cut within the hold", kind=Kind.MENDED, scripts={"stream": sse([ROLE], end="fin"), "json": body([half], end="fin")}),
        Fault(name="stall within the hold", kind=Kind.MENDED, scripts={"json": body([half], end="hang")}, upstream=QUICK),
        _each("cut after n", Kind.BROKEN, sse(START, end="fin"), body([half, more], end="fin", **late)),
        _each("reset after n", Kind.BROKEN, sse(START, end="rst"), body([half, more], end="rst", **late)),
        _stream("cut inside an event", Kind.BROKEN, sse([*START, b'data: {"%b' % ANSWER.encode()], end="fin")),
        _stream("stall after n", Kind.BROKEN, sse(START, end="hang"), upstream=QUICK),
        Fault(
            name="stall after the hold",
            kind=Kind.BROKEN,
            scripts={"json": body([half, more], end="hang", **late)},
            upstream={"timeouts": {"between_tokens": "4s"}},
        ),
        _stream("error event after n", Kind.BROKEN, sse([*START, events.error()])),
        _stream("no [DONE]", Kind.BROKEN, sse([*START, FINISH])),
        _each("malformed event", Kind.PASSED, sse(unreadable), text_of_no_json()),
        _stream("duplicate [DONE]", Kind.PASSED, sse([*WHOLE, events.DONE])),
        _each("giant event", Kind.PASSED, sse(large), json_answer(completion(FIRST + "x" * (9 * 2**20)))),
        _stream("comment flood", Kind.PASSED, flood(silence=False)),
        _each("no fault", Kind.PASSED, sse(WHOLE), text),
    ]


def text_of_no_json() -> Script:
    """An object that is none: nobody parses a body whose length says that it is whole."""
    return respond(200, JSON, f'{{"id": "{ANSWER}", not json}}'.encode())


def flood(*, silence: bool) -> Script:
    """Comments without number, below what the relay holds of them, then an answer or nothing."""
    comments = [f": {ANSWER}\n\n".encode()] * 500
    return sse([*comments, *([] if silence else WHOLE)], end="hang" if silence else "clean")


def of_clients() -> list[Fault]:
    """The client reads slowly, or leaves."""
    slow = [ROLE, events.content(FIRST), *[events.content("x" * 20_000)] * 100, FINISH, events.DONE]
    large = json_answer(completion(FIRST + "x" * (2 * 2**20)))
    left: list[tuple[str, Moment, Script, Script | None]] = [
        ("waiting for headers", "sent", hang(), hang()),
        ("waiting for an event", "sent", sse([], end="hang"), body([HALF], end="hang")),
        ("role only", "sent", sse([ROLE], end="hang"), None),
        ("streaming", "first", sse(START, end="hang"), None),
        ("at the second target", "second", error_answer(503), error_answer(503)),
    ]
    faults = [
        Fault(
            name=f"client leaves, {name}",
            kind=Kind.LEFT,
            leaves=moment,
            scripts={"stream": stream} if json is None else {"stream": stream, "json": json},
        )
        for name, moment, stream, json in left
    ]
    return [_each("slow reader", Kind.PASSED, sse(slow), large, is_slow=True), *faults]


def second_target(is_hanging: bool) -> Script:
    """What the second target says, whatever it is asked; or nothing."""
    chat, whole = sse(events.chat_stream(f"{ANSWER} from ", "the second")), json_answer(completion(SECOND))
    done = {"id": "r", "object": "response", "status": "completed", "output": []}
    responses = sse([events.event({"type": "response.completed", "sequence_number": 0, "response": done}, name="response.completed")])

    async def script(peer: Peer) -> None:
        stream = responses if peer.request.path == "/v1/responses" else chat
        await (stream if peer.request.json().get("stream") else whole)(peer)

    return hang() if is_hanging else in_turn(script)
