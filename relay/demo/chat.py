"""Chat completions and legacy completions of the demo upstream: text, reasoning, tool calls, usage."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from relay.demo.answers import FINGERPRINT, error_event, event
from relay.demo.generation import Job, make_job, stream_reply, whole_reply
from relay.demo.words import Reply, Wishes

DONE: Final = b"data: [DONE]\n\n"


def answer_chat(request: Mapping[str, Any], wishes: Wishes, now: int, id: str) -> Reply:
    """Answer POST /v1/chat/completions with text or, when tools are given and asked for, a tool call."""
    job = make_job(request, wishes, now, id)
    call = _tool_call(job)
    if call is not None:
        job = replace(job, finish="tool_calls", pieces=tuple(re.findall(r".{1,12}", call["function"]["arguments"])))
    if job.is_stream:
        return _chat_stream(job, call)
    message: dict[str, object] = {"role": "assistant", "content": None if call else "".join(job.pieces), "refusal": None}
    if job.reasoning:
        message["reasoning_content"] = "".join(job.reasoning)
    if call is not None:
        message["tool_calls"] = [call]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": job.finish}
    return whole_reply(job, {**_head(job, "chatcmpl", "chat.completion"), "choices": [choice], "usage": _usage(job)})


def _chat_stream(job: Job, call: Mapping[str, Any] | None) -> Reply:
    head = _head(job, "chatcmpl", "chat.completion.chunk") | ({"usage": None} if _wants_usage(job) else {})

    def chunk(delta: Mapping[str, object], finish: str | None = None) -> bytes:
        return event({**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})

    opening = [chunk({"role": "assistant", "content": None if call else "", "refusal": None})]
    tokens = [chunk({"reasoning_content": piece}) for piece in job.reasoning]
    if call is None:
        tokens += [chunk({"content": piece}) for piece in job.pieces]
    else:
        named = {**call["function"], "arguments": ""}
        tokens.append(chunk({"tool_calls": [{"index": 0, **call, "function": named}]}))
        tokens += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in job.pieces]
    return stream_reply(job, opening, tokens, [chunk({}, job.finish), *_last_events(job, head)], [error_event()])


def _tool_call(job: Job) -> dict[str, Any] | None:
    """The call of the first tool, when tools are given and the prompt or `tool_choice` asks for it and no result is in yet."""
    tools, messages, choice = (job.request.get(name) for name in ("tools", "messages", "tool_choice"))
    if not isinstance(tools, list) or choice == "none" or not (job.wishes.use_tool or choice == "required" or isinstance(choice, dict)):
        return None
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "tool":
        return None
    for tool in tools:
        match tool:
            case {"function": {"name": str(name)} as function}:
                arguments = msgspec.json.encode(_arguments(function.get("parameters"))).decode()
                return {"id": f"call_demo_{job.id}", "type": "function", "function": {"name": name, "arguments": arguments}}
    return None


def _arguments(schema: object) -> dict[str, object]:
    """Made-up values for the properties of a JSON Schema; only their types are right."""
    samples: dict[str, object] = {"string": "demo", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    match schema:
        case {"properties": dict(properties)}:
            kinds = {name: value.get("type") if isinstance(value, dict) else None for name, value in properties.items()}
            return {name: samples.get(kind, "demo") if isinstance(kind, str) else "demo" for name, kind in kinds.items()}
        case _:
            return {}


def answer_completions(request: Mapping[str, Any], wishes: Wishes, now: int, id: str) -> Reply:
    """Answer POST /v1/completions."""
    job = replace(make_job(request, wishes, now, id), reasoning=())
    head = _head(job, "cmpl", "text_completion")
    if not job.is_stream:
        choice = {"index": 0, "text": "".join(job.pieces), "logprobs": None, "finish_reason": job.finish}
        return whole_reply(job, {**head, "choices": [choice], "usage": _usage(job)})
    if _wants_usage(job):
        head["usage"] = None

    def chunk(text: str, finish: str | None = None) -> bytes:
        return event({**head, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]})

    return stream_reply(job, [], [chunk(piece) for piece in job.pieces], [chunk("", job.finish), *_last_events(job, head)], [error_event()])


def _head(job: Job, prefix: str, kind: str) -> dict[str, object]:
    return {
        "id": f"{prefix}-demo-{job.id}",
        "object": kind,
        "created": job.created,
        "model": job.model.id,
        "system_fingerprint": FINGERPRINT,
    }


def _last_events(job: Job, head: Mapping[str, object]) -> list[bytes]:
    usage = [event({**head, "choices": [], "usage": _usage(job)})] if _wants_usage(job) else []
    return [*usage, DONE]


def _wants_usage(job: Job) -> bool:
    options = job.request.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _usage(job: Job) -> dict[str, object]:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.output_tokens,
        "total_tokens": job.prompt_tokens + job.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": job.reasoning_tokens},
    }
