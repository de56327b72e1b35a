"""What the tables of upstream faults share: the stream they break, and the usual ways to end."""

import json
from dataclasses import replace

from tests.end_to_end.fault_bed import Bed, Connection, Fault, Want
from tests.fakes import events
from tests.fakes.client import RawClient, Response

START = [events.role(), events.content("Hel"), events.content("lo")]
"""Committed, and no end."""
SENT = b"".join(START)
WHOLE = b"".join(events.chat_stream("Hel", "lo"))
ANSWER: dict[str, object] = {"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "hello"}}]}
ANSWER_BYTES = json.dumps(ANSWER).encode()


def refused(status: int, code: str, result: str, connection: Connection, *, requests: int = 1, outcome: str = "upstream_failed") -> Want:
    """The relay's own answer before the commit."""
    return Want(
        outcome=outcome,
        status=status,
        code=code,
        is_own_answer=True,
        results=(result,),
        connection=connection,
        requests=requests,
    )


def both(fault: Fault) -> list[Fault]:
    """The row asked for as a stream and not."""
    return [replace(fault, name=f"{fault.name}-stream"), replace(fault, name=f"{fault.name}-json", stream=False)]


def complete(sent: bytes, connection: Connection = "pooled") -> Want:
    """The whole answer, and nothing wrong."""
    return Want(outcome="complete", status=200, body=sent, connection=connection)


def cut(sent: bytes, code: str, *, event: bool, connection: Connection = "self", outcome: str = "upstream_cut", result: str = "") -> Want:
    """An end after the commit, without a terminal chunk."""
    return Want(
        outcome=outcome,
        status=200,
        code=code,
        end="cut",
        body=sent,
        has_error_event=event,
        results=(result or "stream_broken",),
        connection=connection,
    )


def stalled(sent: bytes) -> Want:
    """Silence after the commit, ended by the relay with an error event."""
    return cut(sent, "stream_idle_timeout", event=True, connection="closed", outcome="upstream_stalled", result="timeout_idle")


async def twice(bed: Bed, fault: Fault, client: RawClient) -> Response:
    """Send the request, take its answer, send it again on the same connection."""
    await client.exchange(fault.path, fault.body)
    await client.post(fault.path, fault.body, version=fault.version)
    return await client.read_response()
