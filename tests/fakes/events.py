"""Events of an OpenAI chat stream, as bytes, for scripts to send."""

import json

DONE = b"data: [DONE]\n\n"


def event(value: object, *, name: str | None = None) -> bytes:
    """One server-sent event with JSON data."""
    start = f"event: {name}\n" if name else ""
    return f"{start}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def chat_chunk(delta: dict[str, object] | None = None, *, finish: str | None = None, usage: tuple[int, int] | None = None) -> bytes:
    """One chunk: a delta of choice 0, or with `usage` (prompt, completion tokens) the chunk without choices."""
    chunk: dict[str, object] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "some-model"}
    if usage is not None:
        prompt, completion = usage
        tokens = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return event({**chunk, "choices": [], "usage": tokens})
    return event({**chunk, "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}]})


def role() -> bytes:
    """The first chunk: the role and nothing else."""
    return chat_chunk({"role": "assistant", "content": ""})


def content(text: str) -> bytes:
    """A chunk of text."""
    return chat_chunk({"content": text})


def error(code: str | None = "server_error", *, type: str = "server_error", message: str = "scripted error") -> bytes:
    """An error event."""
    return event({"error": {"message": message, "type": type, "param": None, "code": code}})


def chat_stream(*texts: str, usage: tuple[int, int] | None = None, done: bool = True) -> list[bytes]:
    """A whole stream, one event an item: role, texts, finish, usage when given, `[DONE]`."""
    events = [role(), *map(content, texts), chat_chunk(finish="stop")]
    if usage is not None:
        events.append(chat_chunk(usage=usage))
    return [*events, DONE] if done else events
