"""Recorded refusals of upstreams: those among the transcripts, and some whose dialect has no transcripts."""

import json
from pathlib import Path
from typing import Any

from relay.exchange import Headers

FOLDER = Path(__file__).parent.parent / "transcripts"


def _gemini(status: int, word: str, message: str, details: list[Any] | None = None) -> dict[str, Any]:
    error = {"code": status, "message": message, "status": word} | ({"details": details} if details else {})
    return {"status": status, "headers": {"content-type": "application/json; charset=UTF-8"}, "body": {"error": error}}


_MORE: dict[str, dict[str, Any]] = {
    "gemini-400-key.json": _gemini(
        400,
        "INVALID_ARGUMENT",
        "API key not valid. Please pass a valid API key.",
        [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
    ),
    "gemini-402.json": _gemini(402, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
    "gemini-404.json": _gemini(404, "NOT_FOUND", "models/none is not found for API version v1beta"),
    "gemini-429-retryinfo.json": _gemini(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details.\n* Quota exceeded for metric: "
        "generate_content_free_tier_requests, limit: 5, model: gemini-3.5-flash\nPlease retry in 34.4s.",
        [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.4s"}],
    ),
    "gemini-503.json": _gemini(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
}


def _read() -> dict[str, dict[str, Any]]:
    found = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.json") if path.name != "expected.json"}
    return {name: envelope for name, envelope in found.items() if envelope.get("status", 200) >= 300}


REFUSED = _MORE | _read()


def headers_and_body(name: str) -> tuple[Headers, bytes]:
    envelope = REFUSED[name]
    text = envelope["body_text"] if "body_text" in envelope else json.dumps(envelope["body"])
    return tuple((key.encode(), value.encode()) for key, value in envelope["headers"].items()), text.encode()


def words(name: str) -> tuple[str | None, str | None, str | None]:
    """Type, code and message as they stand in the body, whatever its shape."""
    payload = REFUSED[name]["body"]
    if isinstance(payload, list):
        payload = payload[0]
    error = payload.get("error", payload)
    if isinstance(error, str):
        return None, payload.get("code"), error
    code = error.get("details", {}).get("error_code") if isinstance(error.get("details"), dict) else error.get("code")
    message = error.get("message")
    kind = error.get("type") or error.get("status")
    return kind if isinstance(kind, str) else None, None if code is None else str(code), message if isinstance(message, str) else None
