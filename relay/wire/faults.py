"""Errors in upstreams' own words, in a body or in an event of a stream, and the HTTP status that an event stands for.

Nothing is the same everywhere: `error` is an object, a string or a list, or its members stand at top level; `code` is a word,
a number or a number in a string. A number that is an HTTP status is believed first, then words in `code`, then in `type`.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from relay.exchange import EventError

_DEFAULT_STATUS: Final = 502
_MAX_MESSAGE: Final = 2000
"""More characters than any vendor's own words; what follows is a quotation."""

# Parts of a word, spelled without separators; the first that fits decides, so the special ones come first.
_STATUS_OF: Final = (
    ("quota", 429),
    ("ratelimit", 429),
    ("toomanyrequests", 429),
    ("throttling", 429),
    ("slowdown", 429),
    ("limitrequests", 429),
    ("limitburstrate", 429),
    ("resourceexhausted", 429),
    ("creditbalance", 429),
    ("spendlimit", 429),
    ("usagelimit", 429),
    ("overload", 503),
    ("unavailable", 503),
    ("capacity", 503),
    ("timeout", 504),
    ("apikey", 401),
    ("authentication", 401),
    ("unauthorized", 401),
    ("permission", 403),
    ("accessdenied", 403),
    ("forbidden", 403),
    ("notfound", 404),
    ("contextlength", 400),
    ("contextsize", 400),
    ("content", 400),
    ("inspection", 400),
    ("invalid", 400),
    ("badrequest", 400),
    ("server", 500),
    ("internal", 500),
    ("apierror", 500),
)
TOO_LONG: Final = (
    "maximum context length",
    "prompt is too long",
    "context length of the model",
    "model's context length",
    "exceeded model token limit",
)
"""In lower case, what tells of a prompt that is too long where an error is nothing but its message: a caller's own mistake."""
_FAILED_ENDS: Final = {"error": 502, "abort": 502, "network_error": 502, "insufficient_system_resource": 503}
"""Finish reasons that mean a failure (OpenRouter and Mistral, SGLang, Zhipu, DeepSeek), and the status that each stands for."""
_SEPARATORS: Final = str.maketrans("", "", "_-. ")


def error_envelope(body: bytes) -> bytes | None:
    """Return an error body of the usual shape (`{"error": ...}`) on one line, so that it can be an event; None for anything else."""
    try:
        payload = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    return msgspec.json.encode(payload) if isinstance(payload, dict) and payload.get("error") else None


def event_error(kind: str, payload: object) -> EventError | None:
    """Return the error that an event, or a whole answer, is; None when it is none. `kind` is its type, or the name of its `event:` line."""
    top = payload if isinstance(payload, dict) else {}
    if kind == "response.failed":
        response = top.get("response")
        return _of(_detail(response.get("error"), {}) if isinstance(response, dict) else {})
    if top.get("error"):
        return _of(_detail(top["error"], top))
    if kind == "error":
        return _of({name: value for name, value in top.items() if (name, value) != ("type", "error")})
    return _failed_choice(top.get("choices"))


def _failed_choice(choices: object) -> EventError | None:
    match choices:
        case [{"error": {} as error}, *_] if error:
            return _of(error)
        case [{"finish_reason": str(reason)}, *_] if reason in _FAILED_ENDS:
            return EventError(status=_FAILED_ENDS[reason], type=None, code=reason)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorWords:
    """What an error body says of itself. The message may quote the request."""

    type: str | None = None
    code: str | None = None
    message: str | None = None


def parse_error(body: bytes) -> ErrorWords:
    """Return type, code and message out of an upstream's error body, whatever its shape. Never raises."""
    try:
        payload = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return ErrorWords()
    if isinstance(payload, list) and payload:
        payload = payload[0]
    if not isinstance(payload, dict):
        return ErrorWords()
    detail = _detail(payload["error"], payload) if payload.get("error") else payload
    return ErrorWords(type=_word(detail.get("type")), code=_word(detail.get("code")), message=_message(detail))


def _detail(error: object, top: dict[str, Any]) -> dict[str, Any]:
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        return error
    # A bare text: what else there is stands beside it (xAI).
    return {"code": top.get("code"), "status": top.get("status"), "message": error}


def _of(detail: dict[str, Any]) -> EventError:
    return EventError(status=_status(detail), type=_word(detail.get("type")), code=_word(detail.get("code")), message=_message(detail))


def _message(detail: dict[str, Any]) -> str | None:
    # FastAPI's servers call it `detail`, Ollama's own and llama.cpp's have the error itself for it.
    for name in ("message", "detail", "msg"):
        text = detail.get(name)
        if isinstance(text, str) and text:
            return text[:_MAX_MESSAGE]
    return None


def _word(value: object) -> str | None:
    if isinstance(value, str):
        return value[:128] or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else None


def _status(detail: dict[str, Any]) -> int:
    for name in ("code", "status_code", "status"):
        word = _word(detail.get(name))
        if word is not None and len(word) == 3 and word.isascii() and word.isdigit() and 400 <= int(word) <= 599:
            return int(word)
    for name in ("code", "type", "status"):
        word = (_word(detail.get(name)) or "").lower()
        if name == "type" and word in ("requests", "tokens"):
            return 429
        plain = word.translate(_SEPARATORS)
        for part, status in _STATUS_OF:
            if part in plain:
                return status
    text = (_message(detail) or "").lower()
    return 400 if any(phrase in text for phrase in TOO_LONG) else _DEFAULT_STATUS
