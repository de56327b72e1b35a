"""What must show nowhere: the canaries that went through every cell, searched for in all that the relay wrote and in its own answers.

An answer's own text may reach its client, and an upstream's own error too; credentials and prompts may not, and nothing of them all
may be in a log, a metric, a span, a page or a file.
"""

import asyncio
import json
from pathlib import Path

from tests.fakes.canaries import leaks
from tests.fakes.collector import Collector
from tests.fakes.relay import RelayProcess
from tests.fakes.upstream import Request
from tests.matrix.cells import ANSWER, CALLER_KEY, FIRST_KEY, PROMPT, SECOND_KEY

CREDENTIALS = (CALLER_KEY, FIRST_KEY, SECOND_KEY)
WORDS = (PROMPT, ANSWER, "scripted ")
"""Of callers and of upstreams; the last one begins the messages of their errors."""
SERVER = 2
"""The kind of a span for a request of a caller (OTLP)."""
WITHIN_SECONDS = 10.0
LEDGER, STATE = "usage.db", "state"
PLACES = ("log", "stdout", "metrics", "openmetrics", "targets", "spans", "files")


async def written_by(relay: RelayProcess, collector: Collector, folder: Path) -> dict[str, bytes]:
    """Gather by place all that the relay wrote and sent to others; `folder` holds its ledger and its state, the collector has its spans."""
    ended = len(relay.logs("request"))
    async with asyncio.timeout(WITHIN_SECONDS):
        while sum(span.kind == SERVER for span in collector.spans) < ended or not (folder / LEDGER).stat().st_size:
            await asyncio.sleep(0.05)
    async with await relay.connect() as client:
        await client.request("GET", "/metrics", [("Accept", "application/openmetrics-text")])
        openmetrics = await client.read_response(method="GET")
    kept = [folder / LEDGER, folder / f"{LEDGER}-wal", *(folder / STATE).rglob("*")]
    return {
        "log": relay.stderr().encode(),
        "stdout": relay.stdout().encode(),
        "metrics": (await relay.get("/metrics")).raw,
        "openmetrics": openmetrics.raw,
        "targets": (await relay.get("/admin/targets")).raw,
        "spans": b"\n".join(collector.bodies),
        "files": b"\n".join(file.read_bytes() for file in kept if file.is_file()),
    }


def check_written(place: str, data: bytes) -> None:
    """Search one place for everything that was planted."""
    assert data or place == "stdout", "nothing to search"
    assert leaks(data, [*CREDENTIALS, *WORDS]) == [], place
    assert b"CANARY" not in data, place


def check_told(headers: object, body: str, *, is_own: bool) -> None:
    """Search what a client was told of a failure; in an answer of the relay's own (`is_own`) nothing of an upstream may be either."""
    told = f"{headers} {body}"
    assert leaks(told, [*CREDENTIALS, PROMPT, *(WORDS if is_own else ())]) == [], told


def check_lines(lines: list[dict[str, object]]) -> None:
    """Search the log lines of one cell."""
    assert leaks(json.dumps(lines), [*CREDENTIALS, *WORDS]) == [], lines


def check_reached(first: list[Request], second: list[Request]) -> None:
    """See that each upstream got its own credential and nobody else's, and the prompt: so there was something to search for."""
    for requests, own in ((first, FIRST_KEY), (second, SECOND_KEY)):
        assert requests
        for request in requests:
            others = [key for key in CREDENTIALS if key != own]
            assert request.header("authorization") == f"Bearer {own}".encode()
            assert leaks(request.head + request.body, others) == []
    assert any(PROMPT.encode() in request.body for request in second)
