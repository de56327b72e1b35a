"""Generations of the demo upstream, laid out in time: at a model's pace, broken where the prompt asks for it.

A fault counts tokens: reasoning, text and the pieces of a tool call's arguments alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from relay.demo.answers import error_reply
from relay.demo.words import DEFAULT_TEXT, MODELS, REASONING_TEXT, Ending, Model, Reply, Step, Wishes, count_prompt_tokens, count_tokens

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
_PIECE: Final = re.compile(r"\s*\S{1,12}|\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A generation: what to say, at which pace, broken where."""

    id: str
    created: int
    model: Model
    wishes: Wishes
    request: Mapping[str, Any]
    reasoning: tuple[str, ...]
    pieces: tuple[str, ...]
    finish: str
    prompt_tokens: int

    @property
    def output_tokens(self) -> int:
        """Tokens of text and reasoning."""
        return count_tokens("".join(self.pieces)) + self.reasoning_tokens

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning alone."""
        return count_tokens("".join(self.reasoning)) if self.reasoning else 0

    @property
    def is_stream(self) -> bool:
        """Tell whether events are wanted."""
        return self.request.get("stream") is True

    @property
    def first_token_seconds(self) -> float:
        """The wished delay, else the model's."""
        asked = self.wishes.first_token_seconds
        return self.model.first_token_seconds if asked is None else asked


def make_job(request: Mapping[str, Any], wishes: Wishes, now: int, id: str) -> Job:
    """Decide what is said: the wished or the default text, cut at the token limit; an unknown model is served as `demo`."""
    name = request.get("model")
    model = MODELS.get(name, MODELS["demo"]) if isinstance(name, str) else MODELS["demo"]
    pieces = tuple(_PIECE.findall(wishes.say or DEFAULT_TEXT))
    limits = [request.get(field) for field in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    limit = min([value for value in limits if type(value) is int and value > 0], default=len(pieces))
    return Job(
        id=id,
        created=now,
        model=model,
        wishes=wishes,
        request=request,
        reasoning=tuple(_PIECE.findall(REASONING_TEXT)) if model.is_reasoner else (),
        pieces=pieces[:limit],
        finish="length" if limit < len(pieces) else "stop",
        prompt_tokens=count_prompt_tokens(request),
    )


def stream_reply(job: Job, opening: Sequence[bytes], tokens: Sequence[bytes], closing: Sequence[bytes], error: Sequence[bytes]) -> Reply:
    """Lay the events out in time, broken where the prompt asks for it."""
    shown = tokens if job.wishes.fault is None else tokens[: job.wishes.fault_after]
    steps = [Step(after=0, data=data) for data in opening]
    steps += [Step(after=1 / job.model.tokens_per_second if number else 0, data=data) for number, data in enumerate(shown)]
    match job.wishes.fault:
        case None:
            steps += [Step(after=0, data=data) for data in closing]
        case "error":
            steps += [Step(after=0, data=data) for data in error]
    if steps:
        steps[0] = replace(steps[0], after=job.first_token_seconds)
    return Reply(headers=(("Content-Type", EVENT_STREAM), ("Cache-Control", "no-cache")), steps=tuple(steps), ending=_ending(job.wishes))


def whole_reply(job: Job, answer: Mapping[str, object]) -> Reply:
    """Send a non-streaming answer when its last token would be there; faults strike in the middle of its body."""
    if job.wishes.fault == "error":
        return error_reply(500, "demo_error")
    body = msgspec.json.encode(answer)
    shown = body if job.wishes.fault is None else body[: len(body) // 2]
    seconds = job.first_token_seconds + (len(job.reasoning) + len(job.pieces)) / job.model.tokens_per_second
    return Reply(steps=(Step(after=seconds, data=shown),), length=len(body), ending=_ending(job.wishes))


def _ending(wishes: Wishes) -> Ending:
    return {"cut": Ending.CUT, "stall": Ending.STALL}.get(wishes.fault or "", Ending.CLEAN)
