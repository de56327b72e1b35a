"""The commit rule on sockets: what is held and for how long, and what goes out, unchanged, when the hold is over."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from relay.app import application
from relay.stream import HoldBudget
from tests.conftest import RelayWith
from tests.end_to_end.fault_bed import Bed, Fault, Seen, Want, made
from tests.end_to_end.fault_wants import ANSWER_BYTES, complete, cut, refused
from tests.end_to_end.in_loop import relay_in_loop
from tests.fakes import events
from tests.fakes.client import RawClient, Response
from tests.fakes.relay import config_for
from tests.fakes.scripts import EVENT_STREAM, BodyFraming, Script, body, sse
from tests.fakes.upstream import ScriptedUpstream

HOLD_SECONDS = 2.0
SLACK_SECONDS = 1.5
EARLY_SECONDS = 0.01
"""How early a timer may fire by the monotonic clock: uvloop counts whole milliseconds from the loop's last turn."""
FRAMINGS: tuple[BodyFraming, ...] = ("chunked", "length", "close")
COMMENT = b": keep-alive\n\n"
ROLE = events.role()
TEXT = events.content("Hello")
USAGE_EMPTY = events.event({"object": "chat.completion.chunk", "choices": []})
CREATED = events.event({"type": "response.created", "response": {"id": "r"}}, name="response.created")
IN_PROGRESS = events.event({"type": "response.in_progress", "response": {"id": "r"}}, name="response.in_progress")
DELTA = events.event({"type": "response.output_text.delta", "delta": "Hello"}, name="response.output_text.delta")
COMPLETED = events.event({"type": "response.completed", "response": {"status": "completed"}}, name="response.completed")


class Timed:
    """When what came to the client, from the request on."""

    def __init__(self) -> None:
        self.head = self.first = self.end = 0.0


TIMES: dict[str, Timed] = {}


async def timed(bed: Bed, fault: Fault, client: RawClient) -> Response:
    """Send the request and write down when its answer came."""
    loop = asyncio.get_running_loop()
    times = TIMES[fault.name] = Timed()
    began_at = loop.time()
    await client.post(fault.path, fault.body)
    await client.read_until(b"\r\n\r\n")
    times.head = loop.time() - began_at
    head_bytes = client.inbox.index(b"\r\n\r\n") + 4
    while len(client.inbox) == head_bytes and client.closed_how is None:
        await asyncio.sleep(0.005)
    times.first = loop.time() - began_at
    response = await client.read_response()
    times.end = loop.time() - began_at
    return response


def at_once(seconds: float) -> Callable[[Seen], None]:
    """The answer began within a moment of `seconds`, head and first bytes together, and not before."""

    def also(seen: Seen) -> None:
        times = TIMES[seen.logs[-1]["model"]]
        assert seconds - EARLY_SECONDS <= times.head < seconds + SLACK_SECONDS
        assert times.first - times.head < SLACK_SECONDS, "the head came before the first bytes"

    return also


def held(name: str, chunks: Sequence[bytes], *, pause: float, seconds: float, path: str = "/v1/chat/completions") -> Fault:
    """A stream whose pieces come `pause` apart, and that must begin at `seconds`."""
    script = sse(chunks, pause=pause)
    want = complete(b"".join(chunks))
    return Fault(name=name, want=want, script=script, path=path, talk=timed, also=at_once(seconds))


def streams() -> list[Fault]:
    """What is held, and what commits."""
    rest = [TEXT, events.DONE]
    odd = [b"data: not json\n\n", b"data: \xff\x00\xfe\n\n", b"data: {broken\n\n", b"data: 1 2 3\n\n"]
    unknown = [events.event({"kind": "new", "n": number}, name="something.new") for number in range(4)]
    end = [events.DONE]
    rows = [
        held("text-commits", [TEXT, *rest], pause=0.3, seconds=0),
        held("comments-are-held", [COMMENT, COMMENT, *rest], pause=0.3, seconds=0.6),
        held("role-is-held", [ROLE, *rest], pause=0.5, seconds=0.5),
        held("empty-choices-are-held", [USAGE_EMPTY, ROLE, *rest], pause=0.4, seconds=0.8),
        held("two-seconds-and-no-more", [ROLE, *rest], pause=3.0, seconds=HOLD_SECONDS),
        held("comments-start-no-clock", [COMMENT, ROLE, *rest], pause=1.5, seconds=3.0),
        held("two-seconds-from-the-first-event", [COMMENT, ROLE, COMMENT, COMMENT, *rest], pause=0.9, seconds=0.9 + HOLD_SECONDS),
        held("many-roles", [ROLE * 400, *rest], pause=1.0, seconds=0),
        held("lifecycle-is-held", [CREATED, IN_PROGRESS, DELTA, COMPLETED], pause=0.4, seconds=0.8, path="/v1/responses"),
        held("lifecycle-two-seconds", [CREATED, DELTA, COMPLETED], pause=2.8, seconds=HOLD_SECONDS, path="/v1/responses"),
        held("no-json-commits", [*odd, *end], pause=0.3, seconds=0),
        held("unknown-commits", [*unknown, *end], pause=0.3, seconds=0),
        held("unknown-commits-in-responses", [*unknown, COMPLETED], pause=0.3, seconds=0, path="/v1/responses"),
        held("usage-commits", [events.chat_chunk(usage=(1, 2)), *end], pause=0.3, seconds=0),
        held("finish-commits", [events.chat_chunk(finish="stop"), *end], pause=0.3, seconds=0),
        held("done-commits", [events.DONE], pause=0, seconds=0),
    ]
    # Both framings that are left: bytes and end are the same.
    lengths = replace(rows[10], name="no-json-commits-length", script=sse([*odd, *end], framing="length", pause=0.3))
    closes = replace(
        rows[10],
        name="no-json-commits-close",
        script=sse([*odd, *end], framing="close", pause=0.3),
        want=complete(b"".join([*odd, *end]), "self"),
    )
    return [*rows, lengths, closes]


def failures() -> list[Fault]:
    """A role and then a failure: an honest status within two seconds, a cut stream after them."""
    early = [
        ("rst", sse([ROLE], end="rst", pause=0.5), refused(502, "upstream_reset", "stream_broken", "self")),
        ("fin", sse([ROLE, COMMENT], end="fin", pause=0.5), refused(502, "upstream_truncated", "stream_broken", "self")),
        ("error", sse([ROLE, events.error()], end="hang", pause=0.5), refused(500, "upstream_error_in_stream", "error_event", "closed")),
    ]
    late = [
        ("rst", sse([ROLE, COMMENT], end="rst", pause=2.6), cut(ROLE + COMMENT, "upstream_reset", event=True)),
        ("fin", sse([ROLE, COMMENT], end="fin", pause=2.6), cut(ROLE + COMMENT, "upstream_truncated", event=True)),
    ]
    error = Want(
        outcome="upstream_error",
        status=200,
        code="upstream_error_in_stream",
        body=ROLE + events.error(),
        results=("error_event",),
    )
    return [
        *[Fault(name=f"role-then-{name}-early", want=want, script=script) for name, script, want in early],
        *[Fault(name=f"role-then-{name}-late", want=want, script=script) for name, script, want in late],
        Fault(name="role-then-error-late", want=error, script=sse([ROLE, events.error()], pause=2.6)),
    ]


def answers() -> list[Fault]:
    """Answers that are no streams: held until they are whole, eight megabytes, or two seconds old."""
    pieces = [ANSWER_BYTES[:10], ANSWER_BYTES[10:30], ANSWER_BYTES[30:]]
    large = json.dumps({"id": "x", "data": "y" * (9 * 2**20)}).encode()
    rows = []
    for framing in FRAMINGS:
        connection = "self" if framing == "close" else "pooled"
        quick = Fault(
            name=f"whole-{framing}",
            want=complete(ANSWER_BYTES, connection),  # type: ignore[arg-type]
            script=body(pieces, framing=framing, pause=0.4),
            stream=False,
            talk=timed,
            also=at_once(0.8),
        )
        slow = replace(quick, name=f"two-seconds-{framing}", script=body(pieces, framing=framing, pause=1.4), also=at_once(HOLD_SECONDS))
        megabytes = replace(
            quick,
            name=f"eight-megabytes-{framing}",
            want=complete(large, "self" if framing == "close" else "free"),
            script=slow_end(large, framing),
            also=at_once(0),
        )
        rows += [quick, slow, megabytes]
    return rows


def slow_end(data: bytes, framing: BodyFraming) -> Script:
    """All but the last bytes at once, and these late."""
    return body([data[:-10], data[-10:]], framing=framing, pause=1.5)


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith) -> AsyncIterator[Bed]:
    """Every row, run."""
    async with made(ROWS, shared_relay_with) as bed:
        yield bed


ROWS = [*streams(), *failures(), *answers()]


@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: fault.name)
async def test_commit(fault: Fault, bed: Bed) -> None:
    seen = bed.check(fault)
    if seen.response is not None and seen.response.framing == "chunked" and seen.response.status == 200 and fault.stream:
        assert seen.response.header("content-type") == EVENT_STREAM[0][1].encode()


@pytest.mark.parametrize(("name", "status", "end"), [("chunked", 200, "complete"), ("close", 200, "cut"), ("text", 502, "complete")])
async def test_a_relay_that_may_hold_no_more_commits_at_once(
    name: str, status: int, end: str, upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process's budget of held bytes, which no test can fill by honest means: without a copy, only framing proves an end."""
    scripts = {
        "chunked": body([ANSWER_BYTES[:30], ANSWER_BYTES[30:]], pause=0.1),
        "close": body([ANSWER_BYTES[:30], ANSWER_BYTES[30:]], framing="close", pause=0.1),
        "text": body([b"this is no JSON at all", b"and more of it"], pause=0.1),
    }
    monkeypatch.setattr(application, "HoldBudget", lambda: HoldBudget(8))
    upstream.answers(scripts[name])
    async with relay_in_loop(config_for(upstream), tmp_path) as relay:
        response = await relay.post("/v1/chat/completions", {"model": "any"})
        await relay.assert_identities()
    assert (response.status, response.end) == (status, end)
    assert status != 200 or response.body == ANSWER_BYTES
    assert status == 200 or response.error_code == "upstream_bad_response"
