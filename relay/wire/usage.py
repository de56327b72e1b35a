"""Token counts and finish reasons as upstreams report them, in every shape that OpenAI-style servers use.

Counts are cumulative wherever they come more than once, so the last report is the one. Where `total_tokens` exceeds the sum
of the others, the rest is reasoning that the upstream left out of its output count (xAI, Gemini) but bills as output.
"""

from typing import Any, Final

import msgspec

from relay.exchange import Usage


class _Choice(msgspec.Struct, gc=False):
    finish_reason: Any = None
    usage: Any = None


class _Answer(msgspec.Struct, gc=False):
    """The members of a whole answer that matter here; the rest (texts, vectors) is skipped, not built."""

    id: Any = None
    object: Any = None
    status: Any = None
    usage: Any = None
    x_groq: Any = None
    choices: list[_Choice] | None = None


_decode_answer: Final = msgspec.json.Decoder(_Answer).decode


def read_usage(body: bytes) -> tuple[Usage | None, str | None]:
    """Return usage and finish reason (a Responses object's status) of a whole JSON answer. Never raises."""
    answer = _answer(body)
    if answer is None:
        return None, None
    choice = answer.choices[0] if answer.choices else _Choice()
    usage = usage_of(answer.usage) or _nested(answer.x_groq) or usage_of(choice.usage)
    finish = answer.status if answer.object == "response" else choice.finish_reason
    return usage, finish if isinstance(finish, str) else None


def read_id(body: bytes) -> str | None:
    """Return the top-level `id` of a whole JSON answer when it is a string. Never raises."""
    answer = _answer(body)
    return answer.id if answer is not None and isinstance(answer.id, str) else None


def _answer(body: bytes) -> _Answer | None:
    try:
        return _decode_answer(body)
    except (ValueError, RecursionError):
        return None  # what an answer holds is observed, not required


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
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53:
            return count
    return None
