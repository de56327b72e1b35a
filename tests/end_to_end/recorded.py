"""Recorded answers of real vendors (tests/transcripts) as scripts for the scripted upstream."""

import json
import re
from pathlib import Path

from tests.fakes.scripts import BodyFraming, End, Script, respond, sse

TRANSCRIPTS = Path(__file__).resolve().parents[1] / "transcripts"
_EVENT_END = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)|(?<=\r\r)")


def stream_bytes(name: str) -> bytes:
    """Return a recorded event stream."""
    return (TRANSCRIPTS / name).read_bytes()


def events_of(data: bytes) -> list[bytes]:
    """Split a stream behind its empty lines: about one event an item."""
    return [part for part in _EVENT_END.split(data) if part]


def streamed(name: str, *, framing: BodyFraming = "chunked", end: End = "clean") -> Script:
    """Answer with a recorded event stream, an event at a time."""
    return sse(events_of(stream_bytes(name)), framing=framing, end=end)


def answered(name: str) -> Script:
    """Answer with a recorded status, headers and JSON body."""
    recorded = json.loads((TRANSCRIPTS / name).read_bytes())
    return respond(recorded["status"], list(recorded["headers"].items()), json.dumps(recorded["body"]).encode())


def answer_of(name: str) -> object:
    """Return the JSON body of a recorded answer."""
    return json.loads((TRANSCRIPTS / name).read_bytes())["body"]
