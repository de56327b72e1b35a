"""Token counts and finish reasons as upstreams report them, in every shape that OpenAI-style servers use.

Counts are cumulative wherever they come more than once, so the last report is the one. Where `total_tokens` exceeds the sum
of the others, the rest is reasoning that the upstream left out of its output count (xAI, Gemini) but bills as output.
"""

from typing import Any, Final

import msgspec

from relay.exchange import MAX_TOKENS, EventError, Usage
from relay.wire.events import kind_of
from relay.wire.faults import event_error


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a whole JSON answer says of itself."""

    usage: Usage | None = None
    finish_reason: str | None = None
    """A Responses object's status."""
    id: str | None = None
    model: str | None = None
    """What the upstream calls the model that answered."""
    error: EventError | None = None
    """What it is instead of an answer, in spite of its status."""


class _Choice(msgspec.Struct, gc=False):
    finish_reason: Any = None
    error: Any = None
    usage: Any = None


class _Answer(msgspec.Struct, gc=False):
    """The members of a whole answer that matter here; the rest (texts, vectors) is skipped, not built."""

    id: Any = None
    model: Any = None
    object: Any = None
    status: Any = None
    error: Any = None
    usage: Any = None
    x_groq: Any = None
    choices: list[_Choice] | None = None


_decode_answer: Final = msgspec.json.Decoder(_Answer).decode


def read_answer(body: bytes) -> Answer:
    """Read a whole JSON answer of one of the endpoints that generate. Never raises: what it holds is observed, not required."""
    try:
        answer = _decode_answer(body)
    except (ValueError, RecursionError):
        return Answer(error=_error_of(body))
    choice = answer.choices[0] if answer.choices else _NO_CHOICE
    usage = usage_of(answer.usage) or _nested(answer.x_groq) or usage_of(choice.usage)
    finish = answer.status if answer.object == "response" else choice.finish_reason
    has_failed = answer.error or choice.error or finish not in _GOOD_ENDS
    return Answer(
        usage=usage,
        finish_reason=finish if isinstance(finish, str) else None,
        id=answer.id if isinstance(answer.id, str) else None,
        model=answer.model if isinstance(answer.model, str) else None,
        error=_error_of(body) if has_failed else None,
    )


_NO_CHOICE: Final = _Choice()
_GOOD_ENDS: Final = (None, "stop", "length", "tool_calls", "completed")
"""The usual ones, which spare an answer a second look."""


def _error_of(body: bytes) -> EventError | None:
    try:
        payload = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(payload, list) and payload:
        payload = payload[0]
    return event_error(kind_of(b"", payload), payload)


def model_of(payload: object) -> str | None:
    """Return what one event, or the object in it, calls the model that answers."""
    model = payload.get("model") if isinstance(payload, dict) else None
    return model if isinstance(model, str) else None


def find_usage(payload: dict[str, Any]) -> Usage | None:
    """Return the usage of one event: its own, Groq's, a Responses object's, or its first choice's (old Moonshot)."""
    usage = usage_of(payload.get("usage")) or _nested(payload.get("x_groq")) or _nested(payload.get("response"))
    if usage is None:
        match payload.get("choices"):
            case [dict() as choice, *_]:
                return usage_of(choice.get("usage"))
    return usage


def _nested(value: object) -> Usage | None:
    return usage_of(value.get("usage")) if isinstance(value, dict) else None


def usage_of(value: object) -> Usage | None:
    """Read one usage object; None when it is none, or counts nothing that is known."""
    if not isinstance(value, dict):
        return None
    taken = _count(value, "prompt_tokens", "input_tokens")
    given = _count(value, "completion_tokens", "output_tokens")
    total = _count(value, "total_tokens")
    if taken is None and given is None and total is None:
        return None
    input_, output = taken or 0, given or 0
    if total is not None and total > input_ + output:
        input_, output = (total, 0) if taken is None and given is None else (input_, total - input_)
    cached = _count(_details(value, "prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    if cached is None:
        cached = _count(value, "prompt_cache_hit_tokens", "cached_tokens")
    reasoning = _count(_details(value, "completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    return Usage(input=input_, output=output, cached=cached or 0, reasoning=reasoning or 0)


def _details(value: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        details = value.get(name)
        if isinstance(details, dict):
            return details
    return {}


def _count(value: dict[str, Any], *names: str) -> int | None:
    for name in names:
        count = value.get(name)
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_TOKENS:
            return count
    return None
