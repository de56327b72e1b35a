"""What one decoded event of an OpenAI-style stream is: something to hold, something to pass, content, or an end.

Payloads of the different APIs cannot be mistaken for each other (`choices` on one side, `type` on the other), so one reading
serves them all; which terminal counts is the observer's question.
"""

from enum import Enum
from typing import Any, Final


class Weight(Enum):
    """What an event says about the answer."""

    PING = "ping"
    HELD = "held"
    """Role-only and empty deltas, lifecycle: an error may still follow that the client should get as a status."""
    OTHER = "other"
    CONTENT = "content"
    REASONING = "reasoning"


LIFECYCLE: Final = frozenset({"response.created", "response.queued", "response.in_progress", "message_start"})
_STARTS: Final = {"content_block_start": "content_block", "response.output_item.added": "item"}
"""Events that a part of an answer begins with, and the member that says what it will be."""
_CALLS: Final = ("tool_use", "_call")
_PINGS: Final = frozenset({"ping", "keepalive"})
_CONTENT_ENDS: Final = (".delta", "_delta", ".partial_image")
_MEDIA: Final = ("transcript.text.", "speech.audio.", "image_generation.", "image_edit.")
_MEDIA_ENDS: Final = (".done", ".completed")
_REASONING: Final = frozenset({"reasoning", "reasoning_content", "reasoning_details"})


def kind_of(name: bytes, payload: object) -> str:
    """Return an event's type: from its payload, else from its `event:` line; empty for chat chunks."""
    if isinstance(payload, dict):
        kind = payload.get("type")
        if isinstance(kind, str):
            return kind
    return name.decode("utf-8", "replace")


def weigh(kind: str, payload: object) -> Weight:
    """Tell what an event that is no error is worth. An undecodable payload is None: then its kind decides."""
    if isinstance(payload, dict) and "choices" in payload:
        return _weigh_chunk(payload)
    if kind in _PINGS:
        return Weight.PING
    if kind in LIFECYCLE:
        return Weight.HELD
    if kind in _STARTS:
        return _weigh_start(kind, payload)
    if kind.endswith(_CONTENT_ENDS) and kind != "message_delta":
        return Weight.REASONING if "reasoning" in kind or _is_thought(payload) else Weight.CONTENT
    return Weight.OTHER


def ends_media(kind: str) -> bool:
    """Tell whether an event ends a stream of audio, transcript or images."""
    return kind.startswith(_MEDIA) and kind.endswith(_MEDIA_ENDS)


def finish_of(payload: dict[str, Any]) -> str | None:
    """Return the last finish reason among an event's choices."""
    reason = None
    for choice in _choices(payload):
        value = choice.get("finish_reason")
        if isinstance(value, str):
            reason = value
    return reason


def _choices(payload: dict[str, Any]) -> list[dict[str, Any]]:
    choices = payload.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _weigh_start(kind: str, payload: object) -> Weight:
    """Weigh the start of a part: that of a call says which tool is called, that of a text nothing yet."""
    part = payload.get(_STARTS[kind]) if isinstance(payload, dict) else None
    what = part.get("type") if isinstance(part, dict) else None
    if isinstance(what, str) and what.endswith(_CALLS):
        return Weight.CONTENT
    return Weight.HELD if kind == "content_block_start" and what == "text" else Weight.OTHER


def _is_thought(payload: object) -> bool:
    """Tell whether a delta of Anthropic's carries thinking."""
    delta = payload.get("delta") if isinstance(payload, dict) else None
    return isinstance(delta, dict) and delta.get("type") in ("thinking_delta", "signature_delta")


def _weigh_chunk(payload: dict[str, Any]) -> Weight:
    if not payload["choices"]:
        return Weight.OTHER if payload.get("usage") else Weight.HELD
    choices = _choices(payload)
    if not choices:
        return Weight.OTHER
    found = {_weigh_choice(choice) for choice in choices}
    for weight in (Weight.CONTENT, Weight.REASONING, Weight.OTHER):
        if weight in found:
            return weight
    return Weight.HELD


def _weigh_choice(choice: dict[str, Any]) -> Weight:
    delta = choice.get("delta")
    if choice.get("text"):
        return Weight.CONTENT
    if isinstance(delta, dict):
        filled = {name for name, value in delta.items() if value and name != "role"}
        if filled & _REASONING and "content" not in filled:
            return Weight.REASONING
        if filled:
            return Weight.REASONING if _is_thinking(delta.get("content")) else Weight.CONTENT
    elif delta:
        return Weight.OTHER
    return Weight.OTHER if choice.get("finish_reason") or choice.get("message") else Weight.HELD


def _is_thinking(content: object) -> bool:
    """Mistral sends reasoning as a list of typed parts in `content`."""
    return isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "thinking" for part in content)
