"""Recorded answers, and what a reader must find in them."""

import itertools
import json
from pathlib import Path
from typing import Any

from relay.exchange import Operation, StreamMeter
from relay.wire.openai import EventObserver

FOLDER = Path(__file__).parent.parent / "transcripts"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text())
STREAMS = sorted(EXPECTED)


def stream(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def operation(name: str) -> Operation:
    return Operation(EXPECTED[name]["operation"])


def answer(name: str) -> tuple[int, bytes]:
    envelope = json.loads((FOLDER / name).read_text())
    text = envelope["body_text"] if "body_text" in envelope else json.dumps(envelope["body"])
    return envelope["status"], text.encode()


def observe(pieces: list[bytes], operation: Operation, now: float = 1.0) -> tuple[EventObserver, StreamMeter]:
    meter = StreamMeter()
    observer = EventObserver(meter, operation)
    for piece in pieces:
        observer.feed(piece, now)
    return observer, meter


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(borders)]
