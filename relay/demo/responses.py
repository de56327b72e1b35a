"""The Responses API of the demo upstream, whole and as typed events."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from relay.demo.answers import ERROR_TEXT, event
from relay.demo.generation import Job, make_job, stream_reply, whole_reply
from relay.demo.words import Reply, Wishes

_Event = tuple[str, dict[str, object]]


def answer_responses(request: Mapping[str, Any], wishes: Wishes, now: int, id: str) -> Reply:
    """Answer POST /v1/responses."""
    job = replace(make_job(request, wishes, now, id), reasoning=())
    part: dict[str, object] = {"type": "output_text", "text": "".join(job.pieces), "annotations": [], "logprobs": []}
    item: dict[str, object] = {"id": f"msg_demo_{id}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    ended = _response(job, "completed" if job.finish == "stop" else "incomplete", [item], None)
    return _stream(job, part, item, ended) if job.is_stream else whole_reply(job, ended)


def _stream(job: Job, part: dict[str, object], item: dict[str, object], ended: dict[str, object]) -> Reply:
    place: dict[str, object] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    begun = _response(job, "in_progress", [], None)
    failed = _response(job, "failed", [], {"code": "server_error", "message": ERROR_TEXT})
    opening: list[_Event] = [("response.created", {"response": begun}), ("response.in_progress", {"response": begun})]
    # The item is announced together with its first token, so that `error after 0` comes while only lifecycle events are out.
    announced: list[_Event] = [
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}}),
        ("response.content_part.added", {**place, "part": {**part, "text": ""}}),
    ]
    deltas: list[_Event] = [("response.output_text.delta", {**place, "delta": piece, "logprobs": []}) for piece in job.pieces]
    closing: list[_Event] = [
        ("response.output_text.done", {**place, "text": part["text"], "logprobs": []}),
        ("response.content_part.done", {**place, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        (f"response.{ended['status']}", {"response": ended}),
    ]
    events = [_encode(number, *event) for number, event in enumerate([*opening, *announced, *deltas, *closing])]
    start, end = len(opening) + len(announced), len(events) - len(closing)
    tokens = [b"".join(events[len(opening) : start + 1]), *events[start + 1 : end]]
    shown = min(job.wishes.fault_after, len(tokens))
    last = start + shown if shown else len(opening)
    return stream_reply(job, events[: len(opening)], tokens, events[end:], [_encode(last, "response.failed", {"response": failed})])


def _response(job: Job, status: str, output: list[object], error: Mapping[str, str] | None) -> dict[str, object]:
    is_over = status in ("completed", "incomplete")
    usage = {
        "input_tokens": job.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": job.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": job.prompt_tokens + job.output_tokens,
    }
    return {
        "id": f"resp_demo_{job.id}",
        "object": "response",
        "created_at": job.created,
        "status": status,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {"simulated": "relay-demo"},
        "model": job.model.id,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "store": False,
        "usage": usage if is_over else None,
    }


def _encode(number: int, name: str, value: Mapping[str, object]) -> bytes:
    return b"event: " + name.encode() + b"\n" + event({"type": name, "sequence_number": number, **value})
