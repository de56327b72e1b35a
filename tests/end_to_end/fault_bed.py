"""The bed of the fault matrix: every row has an upstream, a route and a pool of its own, so that all rows run at once on one relay.

A row says what the upstream does and what must be seen afterwards, from all sides: the client's bytes and how they ended, what
became of the upstream's connection, the log line, the counters. Rows are run together, checked one by one.
"""

import asyncio
import copy
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.conftest import RelayWith
from tests.fakes.canaries import leaks
from tests.fakes.client import End, RawClient, Response
from tests.fakes.relay import Metrics, RelayProcess
from tests.fakes.scripts import Script
from tests.fakes.upstream import Request, ScriptedUpstream

TIMEOUTS = {"connect": "5s", "first_token": "8s", "between_tokens": "8s", "write": "8s", "total": "20s"}
"""Long, so that a busy machine makes no faults of its own."""
QUICK = {"timeouts": {"connect": "1s", "first_token": "1500ms", "between_tokens": "1s", "write": "1s"}}
"""For the rows that are about a timeout. `first_token` is below the two seconds for which first events are held."""
SPACING_SECONDS = 0.004
"""Between the starts of two rows: all at once would be a test of overload."""
CLOSE_SECONDS = 2.5
"""Ten times what is promised (250 ms) for closing the upstream of an answer that is over."""
WAIT_SECONDS = 12.0
CREDENTIAL = "sk-rowsCANARY+5c/e8a0=17"
PROMPT = "promptCANARY of a row"

Connection = Literal["none", "pooled", "closed", "free", "self"]
"""What became of the upstream's connection: never opened, kept for reuse, closed by the relay, either of these two (nothing
is promised), ended by the upstream itself."""
Talk = Callable[["Bed", "Fault", RawClient], Awaitable[Response | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a row must look like afterwards."""

    outcome: str
    status: int | None
    """Of the client's answer; None when nobody reads one to its end."""
    logged_status: int | None = None
    """In the log line, when it is another one."""
    code: str | None = None
    """In the log line; before the commit also in the answer and in its x-relay-error."""
    end: End = "complete"
    body: bytes | None = None
    """The whole body, or with `has_error_event` what stands before the event; None leaves it to `also`."""
    has_error_event: bool = False
    is_own_answer: bool = False
    """Whether the answer is the relay's own error."""
    results: Sequence[str] = ("success",)
    """Of every attempt of the row, in any order."""
    connection: Connection = "pooled"
    requests: int = 1
    """Whole requests that reached the upstream."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Only for rows of several requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row of the matrix. `name` begins with the id of the fault."""

    name: str
    want: Want
    script: Script | None = None
    upstream: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its upstream beside the usual ones."""
    stream: bool = True
    path: str = "/v1/chat/completions"
    version: str = "HTTP/1.1"
    is_wildcard: bool = False
    """Whether the caller chooses the model's name."""
    headers: Sequence[tuple[str, str]] = ()
    talk: Talk | None = None
    also: Callable[["Seen"], None] | None = None

    @property
    def slug(self) -> str:
        """The name of its upstream."""
        return self.name.lower()

    @property
    def route(self) -> str:
        """The name of its route."""
        return f"{self.slug}*" if self.is_wildcard else self.slug

    @property
    def model(self) -> str:
        """The name that is asked for, and that the upstream gets."""
        return f"{self.slug}-any" if self.is_wildcard else self.slug

    @property
    def body(self) -> dict[str, object]:
        """A request for it."""
        return {"model": self.model, "stream": self.stream, "messages": [{"role": "user", "content": PROMPT}]}


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was seen of a row."""

    response: Response | None = None
    is_client_closed: bool = False
    """Whether the relay had closed the client's connection when the answer was over."""
    requests: list[Request] = field(default_factory=list)
    closed_how: str | None = None
    """How the last request's connection ended, None while it is kept; looked at when all rows are over, since it is not kept for long."""
    closed_after: float | None = None
    """Seconds from the end on the client's side to the end of the upstream's connection."""
    logs: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    metrics: Metrics = field(default_factory=lambda: Metrics({}))
    """Of all rows, when they were over."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Ends counted on the row's route."""
    results: Mapping[str, int] = field(default_factory=dict)
    """Attempts counted on the row's route."""
    connections: Mapping[str, int] = field(default_factory=dict)
    """To the row's upstream, by state."""
    in_flight: int = 0
    error: BaseException | None = None


class Bed:
    """One relay, one upstream, and all rows."""

    def __init__(self, relay: RelayProcess, upstreams: Sequence[ScriptedUpstream], faults: Sequence[Fault]) -> None:
        self.relay = relay
        self.faults = faults
        self.seen: dict[str, Seen] = {}
        self._upstreams = upstreams

    def upstream(self, fault: Fault) -> ScriptedUpstream:
        """The upstream that a row talks to: the first, unless its settings name another."""
        return server_of(fault, self._upstreams)

    async def run(self) -> None:
        """Run every row at once; what goes wrong in one is told when that one is checked."""
        async with asyncio.TaskGroup() as group:
            tasks = []
            for fault in self.faults:
                tasks.append(group.create_task(self._run(fault)))
                await asyncio.sleep(SPACING_SECONDS)
        seen = [task.result() for task in tasks]
        metrics = await self.relay.settled(within=5)
        outcomes = _grouped(metrics, "relay_requests_total", "route", "outcome")
        results = _grouped(metrics, "relay_upstream_attempts_total", "route", "result")
        connections = _grouped(metrics, "relay_upstream_connections", "upstream", "state")
        in_flight = _grouped(metrics, "relay_requests_in_flight", "route", "stream")
        for fault, row in zip(self.faults, seen, strict=True):
            row.closed_how = row.requests[-1].closed_how if row.requests else None
            row.metrics = metrics
            row.outcomes = outcomes.get(fault.route, {})
            row.results = results.get(fault.route, {})
            row.connections = connections.get(fault.slug, {})
            row.in_flight = sum(in_flight.get(fault.route, {}).values())
            row.logs = self.relay.logs("request", route=fault.route)
            row.warnings = self.relay.logs("attempt_failed", route=fault.route)
            self.seen[fault.name] = row

    async def _run(self, fault: Fault) -> Seen:
        seen = Seen()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(WAIT_SECONDS), await self.relay.connect() as client:
                seen.response = await (fault.talk or plain)(self, fault, client)
                ended_at = loop.time()
                seen.requests = self.upstream(fault).of(fault.model)
                if seen.requests and fault.want.connection == "closed":
                    await self.upstream(fault).wait_closed(seen.requests[-1], within=CLOSE_SECONDS)
                    closed_at = seen.requests[-1].closed_at
                    assert closed_at is not None
                    seen.closed_after = closed_at - ended_at
                await self.relay.wait_log(count=sum(fault.want.outcomes.values()) or 1, within=CLOSE_SECONDS, route=fault.route)
                seen.is_client_closed = await is_closed(client, fault, seen.response)
        except Exception as error:  # told by the row's own test
            seen.error = error
        return seen

    def check(self, fault: Fault) -> Seen:
        """Compare a row with what it wants; return what was seen for more."""
        seen = self.seen[fault.name]
        if seen.error is not None:
            raise seen.error
        check_client(fault, seen)
        check_upstream(fault, seen)
        check_books(fault, seen)
        if fault.also is not None:
            fault.also(seen)
        return seen


async def is_closed(client: RawClient, fault: Fault, response: Response | None) -> bool:
    """Tell whether the relay has closed the client's connection, waiting for it where it must."""
    if response is None:
        return True
    if fault.version == "HTTP/1.0" or response.end != "complete" or response.header("connection") == b"close":
        await client.read_until_close(within=CLOSE_SECONDS)
    return client.closed_how is not None


async def plain(bed: Bed, fault: Fault, client: RawClient) -> Response:
    """Send the row's request and take its answer."""
    await client.post(fault.path, fault.body, fault.headers, version=fault.version)
    return await client.read_response(within=WAIT_SECONDS)


def check_client(fault: Fault, seen: Seen) -> None:
    """What the client got, and how it ended."""
    want, response = fault.want, seen.response
    if want.status is None:
        assert response is None
        return
    assert response is not None
    assert (response.status, response.end) == (want.status, want.end), response.raw
    if want.is_own_answer:
        assert response.error_code == want.code, response.body
        assert response.header("x-relay-error") == (want.code or "").encode()
        assert response.header("content-type") == b"application/json"
    else:
        assert response.header("x-relay-error") is None
    assert response.header("x-relay-request-id") == seen.logs[-1]["request_id"].encode()
    if want.has_error_event:
        check_error_event(response.body.removeprefix(want.body or b""), want.code)
    elif want.body is not None:
        assert response.body == want.body
    if want.end != "complete":
        assert b"0\r\n\r\n" not in response.raw[-5:]
    assert seen.is_client_closed is (want.end != "complete" or fault.version == "HTTP/1.0")


def check_error_event(data: bytes, code: str | None) -> None:
    """Exactly one event that holds an error with this code, on one line."""
    assert data.startswith(b"data: ") and data.endswith(b"\n\n") and data.count(b"\n") == 2, data
    error = json.loads(data[6:])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


def check_upstream(fault: Fault, seen: Seen) -> None:
    """What reached the upstream, and what became of its connection."""
    want = fault.want
    whole = [request for request in seen.requests if request.body_complete_at is not None]
    assert len(whole) == want.requests
    idle = seen.connections.get("idle", 0)
    assert seen.connections.get("active", 0) == 0
    is_warmed_up = str(fault.upstream.get("base_url", "")).startswith("https")
    if want.connection != "free" and not is_warmed_up:
        assert idle == (1 if want.connection == "pooled" else 0)
    match want.connection:
        case "none":
            assert seen.requests == []
        case "free":
            assert (seen.closed_how is None) == (idle == 1)
        case "pooled":
            assert seen.closed_how is None
        case "closed":
            assert seen.closed_how in ("fin", "rst")
            assert seen.closed_after is not None and seen.closed_after <= CLOSE_SECONDS
        case "self":
            assert seen.closed_how == "self"


def check_books(fault: Fault, seen: Seen) -> None:
    """The log line and the counters."""
    want = fault.want
    outcomes = dict(want.outcomes) or {want.outcome: 1}
    assert seen.outcomes == outcomes
    assert seen.results == dict(Counter(want.results))
    assert seen.in_flight == 0
    assert len(seen.logs) == sum(outcomes.values())
    line = seen.logs[-1]
    assert (line["outcome"], line["error_code"], line["status"]) == (want.outcome, want.code, want.logged_status or want.status)
    if len(seen.logs) == 1:
        assert line["attempts"] == len(want.results)
    failed = [result for result in want.results if result not in ("success", "cancelled")]
    assert sorted(warning["result"] for warning in seen.warnings) == sorted(failed)


def _grouped(metrics: Metrics, name: str, by: str, label: str) -> dict[str, dict[str, int]]:
    """Add up a metric by two labels; for all rows at once, since the page is long."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for labels, value in metrics.nonzero(name).items():
        named = dict(labels)
        found[named[by]][named[label]] += int(value)
    return {name: dict(counts) for name, counts in found.items()}


def config(faults: Sequence[Fault], upstream: ScriptedUpstream, **more: object) -> dict[str, Any]:
    """A configuration with an upstream and a route for each row."""
    usual = {"base_url": upstream.url, "api_key": CREDENTIAL}
    assert len({fault.slug for fault in faults}) == len(faults), "two rows of one name"
    return {
        "timeouts": TIMEOUTS,
        "metrics": {"label_values": 2 * len(faults) + 10},
        "upstreams": {fault.slug: copy.deepcopy({**usual, **fault.upstream}) for fault in faults},  # shared parts would become anchors
        "routes": {fault.route: {"to": f"{fault.slug}/{fault.route}", "retries": 0} for fault in faults},
        **more,
    }


@asynccontextmanager
async def made(
    faults: Sequence[Fault], relay_with: RelayWith, *, others: Sequence[ScriptedUpstream] = (), **more: object
) -> AsyncIterator[Bed]:
    """Start a relay and an upstream for the rows, run them all, and check the accounts of the relay when the tests are over.

    `others` are upstreams that a row can choose by their `base_url`.
    """
    async with ScriptedUpstream() as upstream:
        for fault in faults:
            if fault.script is not None:
                server_of(fault, (upstream, *others)).route(fault.model, fault.script)
        relay = await relay_with(config(faults, upstream, **more))
        bed = Bed(relay, (upstream, *others), faults)
        await bed.run()
        yield bed
        await relay.assert_identities()
        await assert_silent(bed)


async def assert_silent(bed: Bed) -> None:
    """No row's credential or prompt, nor a text that an answer began with, in anything that the relay wrote or any client got."""
    answers = b"\n".join(seen.response.raw for seen in bed.seen.values() if seen.response is not None)
    assert leaks(answers, [CREDENTIAL, PROMPT]) == []
    pages = [(await bed.relay.get(path)).raw for path in ("/metrics", "/admin/targets")]
    assert leaks(b"\n".join([*pages, (bed.relay.stderr() + bed.relay.stdout()).encode()]), [CREDENTIAL, PROMPT, "scripted "]) == []


def server_of(fault: Fault, upstreams: Sequence[ScriptedUpstream]) -> ScriptedUpstream:
    """The upstream that a row's settings name, else the first."""
    named = [upstream for upstream in upstreams if upstream.url == fault.upstream.get("base_url")]
    return named[0] if named else upstreams[0]
