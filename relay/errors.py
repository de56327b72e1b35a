"""The error tree, and the one table from an error to an HTTP status and an error body.

Library exceptions are translated at the edge (`transport/`); inside, only these travel. Nobody but `error_answer`
looks at what kind of error it is to choose a status; nobody but `policy.verdicts` to choose a fallback.

`message` is a fixed string per code: never an exception's text, a URL or the caller's bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, assert_never

import msgspec


class RelayError(Exception):
    """Anything that ends an exchange other than success."""


class ClientError(RelayError):
    """The caller's own fault: never falls back, never counts against a target. `code` is a key of `CLIENT_ERRORS`."""

    def __init__(
        self, code: str, *, param: str | None = None, message: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.param = param
        self.message = message
        self.headers = headers or {}


class Draining(RelayError):
    """The relay is shutting down and takes no new work."""


class Overloaded(RelayError):
    """The relay's own capacity is used up."""


class InternalError(RelayError):
    """A bug of ours."""


class UpstreamError(RelayError):
    """One attempt failed before anything reached the client, or a stream broke after."""


class ConnectFault(Enum):
    """Why no connection was made. The value is the error code."""

    REFUSED = "upstream_connect_error"
    TIMEOUT = "upstream_connect_timeout"
    DNS = "upstream_dns_error"
    TLS = "upstream_tls_error"
    FORBIDDEN = "upstream_address_forbidden"


class ConnectFailed(UpstreamError):
    """No connection: nothing was sent."""

    def __init__(self, fault: ConnectFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Phase(Enum):
    """Which wait ran out. The value is the error code."""

    FIRST_TOKEN = "upstream_timeout"
    FIRST_EVENT = "upstream_first_event_timeout"
    BETWEEN_TOKENS = "stream_idle_timeout"
    TOTAL = "total_timeout"
    CALLER = "caller_deadline"


class UpstreamTimeout(UpstreamError):
    """The upstream was silent for longer than the phase allows."""

    def __init__(self, phase: Phase, *, had_its_time: bool = False) -> None:
        """`had_its_time` tells, for the total, whether the upstream had most of it to itself."""
        super().__init__(phase.value)
        self.phase = phase
        self.had_its_time = had_its_time


class UpstreamRefused(UpstreamError):
    """The upstream answered with a status other than 2xx."""

    def __init__(
        self,
        status: int,
        *,
        type: str | None = None,
        code: str | None = None,
        message: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """`type`, `code` and `message` are the upstream's words, `retry_after` the wait in seconds that it asks for.

        A message may quote the request: it is there to be judged, never to be shown.
        """
        super().__init__(f"upstream answered {status}")
        self.status = status
        self.type = type
        self.code = code
        self.message = message
        self.retry_after = retry_after


class Malformation(Enum):
    """What was wrong with an answer. The value is the error code."""

    PROTOCOL = "upstream_protocol_error"
    BAD_RESPONSE = "upstream_bad_response"
    EMPTY = "upstream_empty_response"
    TOO_LARGE = "upstream_too_large"


class MalformedResponse(UpstreamError):
    """The upstream's answer is not usable HTTP, or not an answer."""

    def __init__(self, what: Malformation) -> None:
        super().__init__(what.value)
        self.what = what


class Break(Enum):
    """How a connection ended too early. The value is the error code."""

    TRUNCATED = "upstream_truncated"
    RESET = "upstream_reset"


class StreamBroken(UpstreamError):
    """The connection ended before the answer did. `anything` tells whether any byte of an answer had come."""

    def __init__(self, how: Break, *, anything: bool) -> None:
        super().__init__(how.value)
        self.how = how
        self.anything = anything


class ErrorEvent(UpstreamError):
    """A 200 that is an error, or whose first meaningful event is one. `status` is what the error maps to."""

    def __init__(self, status: int, *, kind: str, code: str | None, message: str | None = None) -> None:
        """A message may quote the request: it is there to be judged, never to be shown."""
        super().__init__("upstream_error_in_stream")
        self.status = status
        self.kind = kind
        self.code = code
        self.message = message
        self.is_replaced = False
        """Whether it is about a credential of the relay, which is no business of the caller's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """An error the relay makes itself: a status, the envelope's members, and extra headers."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] | None = None

    def body(self, attempts: Sequence[Mapping[str, str]] = ()) -> bytes:
        """Encode OpenAI's error envelope, one line of ASCII-safe JSON; `attempts`, where there were any, are told in it."""
        if not attempts:
            return encode_error(self.message, type=self.type, param=self.param, code=self.code)
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code, "attempts": attempts}
        return _json.encode({"error": told})


def encode_error(message: str, *, type: str, code: str | None, param: str | None = None) -> bytes:
    """Encode `{"error": {...}}` on one line; line breaks inside texts are escaped, so no event can be forged (A38)."""
    return _json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})


_json: Final = msgspec.json.Encoder()
_BAD_REQUEST: Final = "invalid_request_error"
_LIMITED: Final = "rate_limit_error"

CLIENT_ERRORS: Final[Mapping[str, tuple[int, str, str]]] = {
    "invalid_json": (400, _BAD_REQUEST, "The request body is not valid JSON (strict UTF-8, no NaN or Infinity, nested at most 64 deep)."),
    "invalid_body": (400, _BAD_REQUEST, "The request body must be a JSON object."),
    "duplicate_key": (400, _BAD_REQUEST, "A member of the request body appears twice, or in two spellings that differ only in case."),
    "invalid_value": (400, _BAD_REQUEST, "A member of the request body has a value of the wrong kind."),
    "bad_request": (400, _BAD_REQUEST, "The request could not be understood as HTTP."),
    "bad_transfer_encoding": (400, _BAD_REQUEST, "The only Transfer-Encoding accepted is `chunked`, on HTTP/1.1."),
    "bad_host": (400, _BAD_REQUEST, "The request needs exactly one valid Host header."),
    "bad_path": (400, _BAD_REQUEST, "The request path holds a sequence that is not accepted."),
    "bad_upgrade": (400, _BAD_REQUEST, "Upgrade is accepted for WebSocket on GET /v1/realtime only."),
    "ambiguous_credentials": (400, _BAD_REQUEST, "The request carries two different credentials; send one."),
    "amplified_body": (400, _BAD_REQUEST, "The request body is far larger on the wire than its content; send larger chunks."),
    "missing_key": (401, "authentication_error", "No API key: send `Authorization: Bearer <key>`."),
    "invalid_api_key": (401, "authentication_error", "Unknown API key."),
    "route_not_allowed": (403, "permission_error", "This key may not use this model."),
    "not_local": (403, "permission_error", "This is for tools on the relay's own machine: not through a proxy, nor from a web page."),
    "unknown_target": (404, _BAD_REQUEST, "No route has a target of this name."),
    "not_found": (404, _BAD_REQUEST, "There is no such path here; the API lives under /v1, such as /v1/chat/completions."),
    "unknown_id": (404, _BAD_REQUEST, "No object with this id."),
    "model_not_found": (404, _BAD_REQUEST, "No route for this model; GET /v1/models lists what this key may use."),
    "no_default_route": (404, _BAD_REQUEST, 'The request names no model and there is no "*" route.'),
    "method_not_allowed": (405, _BAD_REQUEST, "This method is not allowed here."),
    "request_timeout": (408, "timeout_error", "The request body stopped arriving."),
    "too_many_failures": (429, "authentication_error", "Too many requests with unknown API keys from this address; try again later."),
    "rate_limit_rpm": (429, _LIMITED, "Limit reached: requests per minute."),
    "rate_limit_tpm": (429, _LIMITED, "Limit reached: tokens per minute."),
    "concurrency_limited": (429, _LIMITED, "Limit reached: requests at once."),
    "budget_exhausted": (429, _LIMITED, "Limit reached: the budget of this day or month."),
    "request_too_large": (413, _BAD_REQUEST, "The request body is larger than this relay accepts."),
    "unsupported_encoding": (415, _BAD_REQUEST, "Send the request body without a Content-Encoding."),
    "expectation_failed": (417, _BAD_REQUEST, "The only Expect accepted is `100-continue`."),
    "headers_too_large": (431, _BAD_REQUEST, "The request's headers are larger than this relay accepts."),
}
"""code -> (status, type, message)."""

LIMIT_CODES: Final = frozenset(code for code, (_, type_, _) in CLIENT_ERRORS.items() if type_ == _LIMITED)
"""Codes of requests that the caller's limits refused."""

LIMIT_REACHED: Final = "limit_reached"
"""Code of the error event that ends a stream which a limit of the caller's stopped."""
_UPSTREAM_MESSAGES: Final[Mapping[str, str]] = {
    "upstream_connect_error": "The upstream could not be reached.",
    "upstream_connect_timeout": "The upstream did not accept a connection in time.",
    "upstream_dns_error": "The upstream's name could not be resolved.",
    "upstream_tls_error": "The upstream's TLS certificate or handshake was not acceptable.",
    "upstream_address_forbidden": "The upstream's name resolves to an address that is not allowed.",
    "upstream_timeout": "The upstream did not answer in time.",
    "upstream_first_event_timeout": "The upstream began to answer but sent no event in time.",
    "stream_idle_timeout": "The upstream stopped sending in the middle of its answer.",
    "total_timeout": "The answer took longer than this relay allows in all.",
    "caller_deadline": "No answer came in the time that the caller waits for one.",
    "upstream_protocol_error": "The upstream's answer is not valid HTTP.",
    "upstream_bad_response": "The upstream's answer is not of the kind that was asked for.",
    "upstream_empty_response": "The upstream's answer was empty.",
    "upstream_too_large": "The upstream's answer is larger than this relay accepts.",
    "upstream_truncated": "The upstream's answer ended before it was complete.",
    "upstream_reset": "The upstream closed the connection before it answered.",
    "upstream_auth_error": "The upstream does not accept this relay's credential.",
    "upstream_quota": "This relay's account at the upstream has no quota left.",
    "upstream_redirect": "The upstream answered with a redirect, which is never followed.",
    "upstream_error_in_stream": "The upstream reported an error instead of an answer.",
    LIMIT_REACHED: "A limit of tokens of this API key is reached; the answer is incomplete.",
    "server_shutting_down": "The relay is shutting down; the answer is incomplete.",
    "internal_error": "The relay failed; the answer is incomplete.",
}


def upstream_message(code: str) -> str:
    """Return the fixed text for one of the relay's own upstream codes."""
    return _UPSTREAM_MESSAGES[code]


def break_error(code: str) -> bytes:
    """Return the error that ends an answer which broke off in the middle, for one of the relay's own codes."""
    return encode_error(upstream_message(code), type=_LIMITED if code == LIMIT_REACHED else "upstream_error", code=code)


def upstream_answer(status: int, code: str, headers: Mapping[str, str] | None = None) -> ErrorAnswer:
    """Build an answer of type `upstream_error` for one of the relay's own codes."""
    return ErrorAnswer(status=status, type="upstream_error", code=code, message=_UPSTREAM_MESSAGES[code], headers=headers)


def error_answer(error: RelayError) -> ErrorAnswer:
    """Return what the client is told about `error`: the only place where a kind of error becomes a status."""
    match error:
        case ClientError():
            status, type_, message = CLIENT_ERRORS[error.code]
            return ErrorAnswer(
                status=status, type=type_, code=error.code, message=error.message or message, param=error.param, headers=error.headers
            )
        case Draining():
            return ErrorAnswer(
                status=503,
                type="overloaded_error",
                code="server_shutting_down",
                message="The relay is shutting down.",
                headers={"retry-after": "1"},
            )
        case Overloaded():
            return ErrorAnswer(
                status=503,
                type="overloaded_error",
                code="overloaded",
                message="The relay is at its capacity; try again shortly.",
                headers={"retry-after": "1"},
            )
        case UpstreamError():
            return _upstream_answer(error)
        case _:
            return ErrorAnswer(
                status=500, type="server_error", code="internal_error", message="The relay failed; this is a bug of its own."
            )


def _upstream_answer(error: UpstreamError) -> ErrorAnswer:
    match error:
        case ConnectFailed(fault=fault):
            return upstream_answer(504 if fault is ConnectFault.TIMEOUT else 502, fault.value)
        case UpstreamTimeout(phase=phase):
            return upstream_answer(504, phase.value)
        case MalformedResponse(what=what):
            return upstream_answer(502, what.value)
        case StreamBroken(how=how):
            return upstream_answer(502, how.value)
        case ErrorEvent(status=status, is_replaced=is_replaced):
            if is_replaced:
                return _refusal_answer(status)
            return upstream_answer(status, "upstream_error_in_stream")
        case UpstreamRefused(status=status):
            return _refusal_answer(status)
        case _:
            assert_never(error)  # type: ignore[arg-type]  # UpstreamError has no other subclass; mypy has no sealed classes


def _refusal_answer(status: int) -> ErrorAnswer:
    """Answer for the refusals that are never passed on as they came."""
    if status in (401, 403):
        return upstream_answer(502, "upstream_auth_error")
    if status == 402:
        return upstream_answer(503, "upstream_quota", {"retry-after": "60"})
    if 300 <= status < 400:
        return upstream_answer(502, "upstream_redirect")
    return upstream_answer(502, "upstream_bad_response")
