"""Answers of the demo upstream that are whole at once: embeddings, moderations, the list of models, errors."""

import base64
import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from relay.demo.words import JSON, Reply, Step, Wishes, count_tokens

OWNER: Final = "relay-demo (simulated)"
FINGERPRINT: Final = "relay-demo-simulated"
ERROR_TEXT: Final = "Simulated error of the demo upstream, as the prompt asked for."
MAX_INPUTS: Final = 2048
MAX_DIMENSIONS: Final = 3072
DEFAULT_DIMENSIONS: Final = 16
MAX_NUMBERS: Final = 131_072
"""In one answer: about 50 ms of the event loop that the demo shares with the relay."""
MODERATION_CATEGORIES: Final = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")


def answer_embeddings(request: Mapping[str, Any], wishes: Wishes, now: int, id: str) -> Reply:
    """Answer with small vectors that depend on the text alone, as numbers or packed (`encoding_format: base64`, little-endian floats)."""
    inputs = _inputs(request)
    dimensions = request.get("dimensions")
    size = dimensions if type(dimensions) is int and 0 < dimensions <= MAX_DIMENSIONS else DEFAULT_DIMENSIONS
    if len(inputs) > MAX_INPUTS or len(inputs) * size > MAX_NUMBERS:
        return error_reply(400, "too_many_inputs")
    vectors = [_vector(text, size) for text in inputs]
    is_packed = request.get("encoding_format") == "base64"
    data = [{"object": "embedding", "index": index, "embedding": _packed(v) if is_packed else v} for index, v in enumerate(vectors)]
    tokens = sum(map(count_tokens, inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_reply({"object": "list", "data": data, "model": FINGERPRINT, "usage": usage})


def _inputs(request: Mapping[str, Any]) -> list[str]:
    """One text for each input: a string, a list of strings, a list of token numbers, or a list of such lists."""
    value = request.get("input")
    if isinstance(value, list) and not all(isinstance(item, int) for item in value):
        return [item if isinstance(item, str) else str(item) for item in value]
    return [value if isinstance(value, str) else str(value)]


def _vector(text: str, size: int) -> list[float]:
    # The half keeps every number away from 0, so that no vector has the length 0.
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(size * 2)
    values = [(number + 0.5) / 32768 for number in struct.unpack(f"<{size}h", digest)]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def answer_moderations(request: Mapping[str, Any], wishes: Wishes, now: int, id: str) -> Reply:
    """Answer that nothing is flagged, once for each input."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(MODERATION_CATEGORIES, False),
        "category_scores": dict.fromkeys(MODERATION_CATEGORIES, 0.0),
    }
    return json_reply({"id": f"modr-demo-{id}", "model": FINGERPRINT, "results": [result] * min(len(_inputs(request)), MAX_INPUTS)})


def model_card(name: str, now: int) -> dict[str, object]:
    """Describe one model, as simulated."""
    return {"id": name, "object": "model", "created": now, "owned_by": OWNER}


def json_reply(value: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Answer with JSON at once."""
    body = msgspec.json.encode(value)
    return Reply(status=status, headers=(("Content-Type", JSON), *headers), steps=(Step(after=0, data=body),), length=len(body))


def error_reply(status: int, code: str) -> Reply:
    """Answer with an error body in OpenAI's shape; 429 and 503 bring a Retry-After."""
    message = ERROR_TEXT if code.startswith("demo_") else f"The demo upstream cannot serve this request: {code}."
    kind = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    headers = (("Retry-After", "1"),) if status in (429, 503) else ()
    return json_reply({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


def error_event() -> bytes:
    """Encode the error event of a chat or completions stream."""
    return event({"error": {"message": ERROR_TEXT, "type": "server_error", "param": None, "code": "demo_error"}})


def event(value: object) -> bytes:
    """Encode one server-sent event with JSON data."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
