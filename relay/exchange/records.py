"""The records of one request: what came, what was tried, what was measured, how it ended.

Everything that travels between rooms is frozen, except `Exchange` and the `Attempt`s in it (mutated by `forward`
alone) and `StreamMeter` (a few stores per event, by the observer of one attempt).
Frozen records are msgspec structs: a frozen dataclass sets its fields one by one in Python, 6 us per request in all.
Instants (`_at`) are seconds of the loop's monotonic clock.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final

import msgspec

from relay.config.tree import Key, Route, Target, Upstream

Headers = tuple[tuple[bytes, bytes], ...]
"""Header lines as they stood on the wire, in order: (name, value), names in their own spelling."""
MAX_OVERHEARD: Final = 16 * 2**10
"""Bytes of a prompt or an answer that the log may hold: what a person reads of one, and little to keep for each request."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of `name` (lower case), or None."""
    length = len(name)
    for key, value in headers:
        if len(key) == length and key.lower() == name:
            return value
    return None


def header_values(headers: Headers, name: bytes) -> list[bytes]:
    """Return every value of `name` (lower case), in order."""
    length = len(name)
    return [value for key, value in headers if len(key) == length and key.lower() == name]


class Outcome(StrEnum):
    """How an exchange ended: a closed set, the same word in the log, the metrics and the trace."""

    COMPLETE = "complete"
    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    RATE_LIMITED = "rate_limited"
    REJECTED = "rejected"
    OVERLOADED = "overloaded"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_CUT = "upstream_cut"
    UPSTREAM_STALLED = "upstream_stalled"
    UPSTREAM_ERROR = "upstream_error"
    DRAINED = "drained"
    INTERNAL_ERROR = "internal_error"
    CLIENT_GONE = "client_gone"
    CLIENT_STALLED = "client_stalled"
    LIMIT_REACHED = "limit_reached"


GOOD: Final = frozenset({Outcome.COMPLETE})
BAD: Final = frozenset(
    {
        Outcome.OVERLOADED,
        Outcome.UPSTREAM_FAILED,
        Outcome.UPSTREAM_CUT,
        Outcome.UPSTREAM_STALLED,
        Outcome.UPSTREAM_ERROR,
        Outcome.DRAINED,
        Outcome.INTERNAL_ERROR,
    }
)
"""Outcomes that count against the service level; the rest of the set counts for neither side."""


class State(StrEnum):
    """Where an exchange is: the client has nothing yet until COMMITTED."""

    RECEIVED = "received"
    TRYING = "trying"
    COMMITTED = "committed"
    ENDED = "ended"


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.RECEIVED: frozenset({State.TRYING, State.ENDED}),
    State.TRYING: frozenset({State.COMMITTED, State.ENDED}),
    State.COMMITTED: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


class Operation(StrEnum):
    """What is asked for: a closed set for metrics, and the choice of how a body is read."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MODERATIONS = "moderations"
    MODELS = "models"
    REALTIME = "realtime"
    OTHER = "other"


JSON_OPERATIONS: Final = frozenset(
    {Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS, Operation.RESPONSES, Operation.MODERATIONS}
)
"""The endpoints whose request body is parsed and whose answer is JSON or events."""


class Framing(Enum):
    """How the end of an upstream's body is told (RFC 9112 section 6)."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"
    NONE = "none"


class JsonBody(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay acts on in a strictly parsed request body. Spans are byte offsets into `raw`."""

    raw: bytes
    model: str | None
    model_span: tuple[int, int] | None
    """Where the JSON value of `model` stands, quotes included; None when the body has no such member."""
    insert_at: int
    """Offset just after the opening brace, where a missing `model` can be put."""
    is_empty: bool
    """Whether the object has no member at all."""
    stream: bool
    include_usage: bool
    """Whether `stream_options` asks for usage."""
    store: bool
    background: bool
    previous_response_id: str | None
    options_span: tuple[int, int] | None = None
    """Where the JSON value of a `stream_options` stands that does not ask for usage."""
    answer_tokens: int | None = None
    """The most tokens that all answers together may have, when the request says so."""
    answers: int = 1
    """How many answers it asks for: `n`."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """The distributed trace that a request is part of (W3C Trace Context)."""

    id: str
    """32 hexadecimal digits; a request that brought none begins a trace whose id is its own."""
    parent: str | None = None
    """The caller's span, 16 hexadecimal digits; None when the trace begins here."""
    is_sampled: bool = False
    """Whether its spans are recorded: the caller says so, or the relay when the trace begins here."""
    state: bytes | None = None
    """The caller's `tracestate`, for the upstream."""


class ClientRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a client, head and (for the parsed endpoints) body."""

    id: str
    method: str
    path: str
    """Path as it stood on the wire, percent-encoding untouched, without the query."""
    query: str | None
    """Query as it stood on the wire, without the question mark; None when there was none."""
    headers: Headers
    operation: Operation
    received_at: float
    client_ip: str
    body: JsonBody | None = None
    opaque_body: bytes | None = None
    """A body that was read whole but not parsed; None when it is parsed, absent, or streamed."""
    model: str | None = None
    """The name the client asks for: from the body, else from `?model=` on opaque paths."""
    key: Key | None = None
    is_stream: bool = False
    trace: Trace | None = None
    """None for requests that the relay makes on its own account."""

    @property
    def is_head(self) -> bool:
        """Tell whether the answer must have no body."""
        return self.method == "HEAD"


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What goes onto an upstream's connection: the whole head as bytes, and the body when it is at hand."""

    upstream: Upstream
    method: str
    head: bytes
    """Request line and headers, the empty line included."""
    body: bytes
    """Body bytes; empty for none, and for an upload that is streamed."""
    span: str | None = None
    """This call's place in the request's trace, 16 hexadecimal digits."""
    is_upload: bool = False
    """Whether the body is streamed from the client instead (then `body` is empty and the request is sent once)."""


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """An upstream's response head. The reason phrase is dropped on purpose (A40)."""

    status: int
    headers: Headers
    framing: Framing
    content_length: int | None
    content_type: bytes
    """Media type in lower case without parameters; empty when the upstream named none."""
    is_encoded: bool
    """Whether a Content-Encoding other than identity covers the body."""
    received_at: float

    @property
    def is_event_stream(self) -> bool:
        """Tell whether the body is server-sent events that can be read."""
        return self.content_type == b"text/event-stream"


MAX_TOKENS: Final = 2**31
"""A thousand times what any model reads or writes at once. Accounts are 64-bit sums, of money in billionths: whatever a request asks
for, and whatever an upstream reports, must not make one overflow."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens as the upstream reported them; `cached` is part of `input`, `reasoning` part of `output`."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0


class UsageSource(StrEnum):
    """How tokens are known: told by the upstream, told because the answer was read to its end for it, or guessed."""

    REPORTED = "reported"
    DRAINED = "drained"
    ESTIMATED = "estimated"


class EventError(msgspec.Struct, frozen=True, kw_only=True):
    """An error event of an upstream. `status` is what an HTTP status would have been."""

    status: int
    type: str | None
    code: str | None
    message: str | None = None
    """May quote the request: there to be judged, never to be shown."""


@dataclass(slots=True)
class StreamMeter:
    """Marks of one attempt's answer. Plain stores: read once, when the exchange is over."""

    first_event_at: float | None = None
    first_reasoning_at: float | None = None
    first_content_at: float | None = None
    """First text, reasoning or tool-call event."""
    first_text_at: float | None = None
    """First event of the answer proper: text or a tool call. None while only reasoning has come."""
    last_content_at: float = 0.0
    content_events: int = 0
    flowed_tokens: int = 0
    """Tokens of the answer as they were counted while it flowed; 0 where nobody counted."""
    terminal_at: float | None = None
    """When the protocol's own terminator was read."""
    finish_reason: str | None = None
    usage: Usage | None = None
    error: EventError | None = None
    response_id: str | None = None
    response_model: str | None = None
    """What the upstream calls the model that answered."""
    malformed_events: int = 0
    oversized_events: int = 0
    bytes_in: int = 0
    last_byte_at: float = 0.0
    silences: list[tuple[float, float]] = field(default_factory=list)
    """From one content to the next where that took longer than STALL_SECONDS."""


class AttemptResult(StrEnum):
    """How one attempt ended: the `result` label of relay_upstream_attempts_total."""

    SUCCESS = "success"
    CONNECT_ERROR = "connect_error"
    DNS_ERROR = "dns_error"
    TLS_ERROR = "tls_error"
    TIMEOUT_CONNECT = "timeout_connect"
    TIMEOUT_FIRST_TOKEN = "timeout_first_token"
    TIMEOUT_IDLE = "timeout_idle"
    TIMEOUT_TOTAL = "timeout_total"
    HTTP_401 = "http_401"
    HTTP_402 = "http_402"
    HTTP_403 = "http_403"
    HTTP_429 = "http_429"
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    REDIRECT = "redirect"
    PROTOCOL_ERROR = "protocol_error"
    STREAM_BROKEN = "stream_broken"
    ERROR_EVENT = "error_event"
    EMPTY = "empty"
    CANCELLED = "cancelled"


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One try at one target."""

    target: Target
    started_at: float
    sent_at: float | None = None
    """When the first request byte went out; None while nothing was sent, and then the attempt does not count."""
    head: ResponseHead | None = None
    meter: StreamMeter = field(default_factory=StreamMeter)
    result: AttemptResult | None = None
    error_code: str | None = None
    is_resend: bool = False
    span: str | None = None
    """Its place in the request's trace."""
    hedge_won: bool | None = None
    """Of a backup beside a slow attempt, whether its content came first; None for every other attempt."""
    body_ended_at: float | None = None
    """When the upstream's bytes stopped."""
    is_beaten: bool = False
    """Whether it was given up because another attempt beside it was the answer."""
    lost: Usage | None = None
    """What it is taken to have used, being beaten: the prompt, and what had come of the answer."""
    lost_cost: int = 0
    """What that cost, in billionths of a US dollar."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One client request and all that came of it: the only record that changes while the request lives."""

    request: ClientRequest
    state: State = State.RECEIVED
    route: Route | None = None
    attempts: list[Attempt] = field(default_factory=list)
    """In the order they began, but the one that answers last."""
    status: int | None = None
    outcome: Outcome | None = None
    error_code: str | None = None
    admitted_at: float | None = None
    """When it was let through to the upstreams: its route is known and whatever it had to wait for is there."""
    queued_seconds: float = 0.0
    """How long it waited for a place."""
    first_content_written_at: float | None = None
    bytes_out: int = 0
    backpressure_seconds: float = 0.0
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """When the client took nothing, the short times left out."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """Headers that tell the caller's SDK whether another try is worth it, when every target has failed."""
    limit_headers: tuple[tuple[bytes, bytes], ...] = ()
    """How the caller's own limits stand; they take the place of an upstream's of the same names."""
    prompt_tokens: int | None = None
    """Those of its prompt as guessed by its bytes; None while nobody has asked (`policy.estimates`)."""
    usage: Usage | None = None
    """What the exchange used, as it was settled."""
    usage_source: UsageSource | None = None
    cost: int = 0
    """What it cost, in billionths of a US dollar; 0 where no price is known."""
    refused_by: str | None = None
    """Which kind of limit refused it: rpm, route_tpm, key_route_budget and so on."""
    adds_usage: bool = False
    """Whether upstreams are asked for usage that the client did not ask for, and it is kept from the client."""
    debit: Callable[[int], bool] | None = None
    """Counts that so many tokens of the answer have flowed and tells whether the limits still hold; None where none are counted."""
    answer_bound: int | None = None
    """The most tokens that each answer may have by what is left of the caller's limits; None where the request's own word stands."""
    is_drained: bool = False
    """Whether its answer was read on after its client had left."""
    is_begun_early: bool = False
    """Whether the client has a response head and comments of ours, and no byte of an upstream."""
    overheard: bytearray | None = None
    """The first MAX_OVERHEARD bytes that reach the client, where somebody asked for them when the route was known."""
    is_rewritten: str | None = None
    """Why the bytes are not the upstream's own, or None when they are."""

    def move(self, state: State) -> None:
        """Enter `state`; raises ValueError when the table has no such step."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"no step from {self.state} to {state}")
        self.state = state

    def attempts_told(self) -> list[dict[str, str]]:
        """Return what a caller is told of attempts that failed: names of the configuration and results, no more."""
        return [{"target": attempt.target.name, "reason": attempt.result or AttemptResult.CANCELLED} for attempt in self.attempts]
