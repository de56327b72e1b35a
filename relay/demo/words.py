"""What a prompt asks of the demo upstream, and the records of its answers: steps in time, and how they end."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

WISHES: Final = (
    "`fail: 429` answers with that status, `cut after 5` breaks the connection after five tokens, `stall after 3` falls silent, "
    "`error after 4` sends an error event, `slow 2s` delays the first token, `say: TEXT` repeats TEXT, "
    "and with tools `use the tool` calls one"
)
DEFAULT_TEXT: Final = (
    "This answer is simulated: it comes from the demo upstream inside the relay, not from a language model. Its way to you is real: "
    f"it streams through the relay like the answer of any other upstream. Put a phrase into your message to see what happens: {WISHES}."
)
REASONING_TEXT: Final = "This reasoning is simulated. No model thinks here; the message was searched for phrases that ask for a fault."

JSON: Final = "application/json"
MAX_DELAY_SECONDS: Final = 600.0
MAX_SAY: Final = 16_384
MAX_SEARCHED: Final = 65_536
"""Characters at the end of the last message that are searched for wishes."""

_SAY: Final = re.compile(r"\bsay:[ \t]*(.+)", re.IGNORECASE)
_FAIL: Final = re.compile(r"\bfail:\s*([45]\d\d)\b", re.IGNORECASE)
_FAULT: Final = re.compile(r"\b(cut|stall|error) after (\d{1,6})\b", re.IGNORECASE)
_SLOW: Final = re.compile(r"\bslow (\d{1,4}(?:\.\d{1,3})?)\s*(ms|s)\b", re.IGNORECASE)
_USE_TOOL: Final = re.compile(r"\buse the tool\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A simulated model's pace: seconds to the first token, tokens a second after it."""

    id: str
    first_token_seconds: float
    tokens_per_second: float
    is_reasoner: bool = False


MODELS: Final[Mapping[str, Model]] = {
    "demo": Model(id="demo", first_token_seconds=0.25, tokens_per_second=40),
    "demo-fast": Model(id="demo-fast", first_token_seconds=0, tokens_per_second=200),
    "demo-reasoner": Model(id="demo-reasoner", first_token_seconds=0.25, tokens_per_second=40, is_reasoner=True),
}


class Ending(Enum):
    """What stands after the last step: the proper end of the body, a connection closed before it, or silence."""

    CLEAN = "clean"
    CUT = "cut"
    STALL = "stall"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Bytes to write, `after` seconds from the step before."""

    after: float
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One whole answer. `length` is the Content-Length, None for a chunked body."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("Content-Type", JSON),)
    steps: tuple[Step, ...]
    length: int | None = None
    ending: Ending = Ending.CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the prompt asks for."""

    fail: int | None = None
    fault: str | None = None
    fault_after: int = 0
    first_token_seconds: float | None = None
    say: str | None = None
    use_tool: bool = False


def read_wishes(prompt: str) -> Wishes:
    """Find the phrases that ask for something; what stands after `say:` is no phrase."""
    prompt = prompt[-MAX_SEARCHED:]
    said = _SAY.search(prompt)
    rest = prompt if said is None else prompt[: said.start()] + prompt[said.end() :]
    fail, fault, slow = _FAIL.search(rest), _FAULT.search(rest), _SLOW.search(rest)
    return Wishes(
        fail=int(fail[1]) if fail else None,
        fault=fault[1].lower() if fault else None,
        fault_after=int(fault[2]) if fault else 0,
        first_token_seconds=min(float(slow[1]) / (1000 if slow[2].lower() == "ms" else 1), MAX_DELAY_SECONDS) if slow else None,
        say=said[1].strip()[:MAX_SAY] if said else None,
        use_tool=_USE_TOOL.search(rest) is not None,
    )


def last_prompt(request: Mapping[str, Any]) -> str:
    """Return the last thing the user said, in whichever of the request shapes."""
    for name in ("messages", "input", "prompt"):
        value = request.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            said = [item for item in value if isinstance(item, str) or (isinstance(item, dict) and item.get("role") == "user")]
            return _text(said[-1]) if said else ""
    return ""


def _text(value: object) -> str:
    """All text in a message, a part or a list of parts."""
    match value:
        case str():
            return value
        case list():
            return " ".join(filter(None, map(_text, value)))
        case {"content": content}:
            return _text(content)
        case {"text": str(text)}:
            return text
        case _:
            return ""


def count_tokens(text: str) -> int:
    """Estimate: four characters a token, at least one."""
    return max(1, math.ceil(len(text) / 4))


def count_prompt_tokens(request: Mapping[str, Any]) -> int:
    """Estimate the tokens of all text in a request."""
    return count_tokens(" ".join(_text(request.get(name)) for name in ("messages", "input", "prompt", "instructions")))
