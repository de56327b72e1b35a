"""Runs every cell of the matrix at once on one relay, with the official SDK as the client, and gathers what all sides saw of each."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from tests.fakes.certificates import Authority
from tests.fakes.collector import running_collector
from tests.fakes.ports import refusing_port, swallowing_port
from tests.fakes.relay import Metrics, RelayProcess
from tests.fakes.upstream import Request, ScriptedUpstream
from tests.matrix import cells, silence
from tests.matrix.cells import FIRST, SECOND, Cell, Fault, Kind

TIMEOUTS = {"connect": "5s", "first_token": "10s", "between_tokens": "10s", "write": "10s", "total": "30s"}
SPACING_SECONDS = 0.01
"""Between the starts of two cells: all at once would be a test of overload."""
WAIT_SECONDS = 25.0
CLOSE_SECONDS = 2.5
"""Ten times what is promised for closing the upstream of a client that left."""
ARRIVED_SECONDS = 0.5
"""For what the upstream sent to come to the relay, where nothing tells that it did."""
MESSAGES: Any = [{"role": "user", "content": cells.PROMPT}]

Start = Callable[[dict[str, Any]], Awaitable[RelayProcess]]


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was seen of a cell, from all sides."""

    saw: str = ""
    """What the SDK gave to the application, in words."""
    is_raised: bool = False
    is_whole_of: str | None = None
    """Whose whole answer the SDK gave."""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    told: str = ""
    """What the SDK was told of a failure: the body, or the event."""
    line: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    line_count: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Ends counted on the cell's route."""
    results: Mapping[str, int] = field(default_factory=dict)
    """Attempts counted on the cell's route, by result."""
    fallbacks: int = 0
    in_flight: int = 0
    first: list[Request] = field(default_factory=list)
    """Requests that reached the first target."""
    second: list[Request] = field(default_factory=list)
    error: BaseException | None = None
    """What went wrong with the cell itself."""

    @property
    def attempts(self) -> list[tuple[str, str]]:
        """Every attempt as (target, result), in order: failed ones by their warnings, the last one by the request's line."""
        failed = [(line["upstream"], line["result"]) for line in self.warnings]
        if len(failed) < self.line.get("attempts", 0):
            failed.append((self.line["upstream"], "success" if self.line["outcome"] == "complete" else "cancelled"))
        return [("second" if upstream == "second" else "first", result) for upstream, result in failed]


class Matrix:
    """All cells, run."""

    def __init__(
        self, relay: RelayProcess, all_cells: list[Cell], first: ScriptedUpstream, tls: ScriptedUpstream, second: ScriptedUpstream
    ):
        self.relay = relay
        self.cells = all_cells
        self.seen: list[Seen] = []
        self.written: dict[str, bytes] = {}
        """All that the relay wrote, by place, when every cell was over."""
        self._first = first
        self._tls = tls
        self._second = second

    async def run(self) -> None:
        """Ask for every cell and wait until the relay is at rest."""
        client = openai.AsyncOpenAI(
            base_url=self.relay.url,
            api_key=cells.CALLER_KEY,
            max_retries=0,
            timeout=WAIT_SECONDS,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False, timeout=WAIT_SECONDS),
        )
        async with client, asyncio.TaskGroup() as group:
            tasks = []
            for cell in self.cells:
                tasks.append(group.create_task(self._ask(client, cell)))
                await asyncio.sleep(SPACING_SECONDS)
        self.seen = [task.result() for task in tasks]
        self._gather(await self.relay.settled(within=5))

    async def _ask(self, client: openai.AsyncOpenAI, cell: Cell) -> Seen:
        seen = Seen()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                if cell.fault.leaves is None:
                    await ask(client, cell, seen)
                else:
                    await self._leave(client, cell, seen)
        except Exception as error:  # told by the cell's own test
            seen.error = error
        return seen

    async def _leave(self, client: openai.AsyncOpenAI, cell: Cell, seen: Seen) -> None:
        """Ask, and leave at the cell's moment; then the upstream has to be left too."""
        has_first = asyncio.Event()
        task = asyncio.create_task(ask(client, cell, seen, has_first))
        match cell.fault.leaves:
            case "connecting":
                await asyncio.sleep(ARRIVED_SECONDS)  # the connection to the relay, and the request on it
            case "sent":
                await self._first.wait_for(cell.slug)
            case "first":
                await has_first.wait()
            case "second":
                await self._second.wait_for(cell.slug)
        await asyncio.sleep(ARRIVED_SECONDS)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        seen.saw = "nothing: it left"
        server = self._second if cell.fault.leaves == "second" else self._first
        for request in server.of(cell.slug):
            await server.wait_closed(request, within=CLOSE_SECONDS)

    def reached(self) -> tuple[list[Request], list[Request]]:
        """Return every request that got to the first target of its route, and to the second."""
        return [*self._first.requests, *self._tls.requests], self._second.requests

    def _gather(self, metrics: Metrics) -> None:
        outcomes = _by_route(metrics, "relay_requests_total", "outcome")
        results = _by_route(metrics, "relay_upstream_attempts_total", "result")
        fallbacks = _by_route(metrics, "relay_fallbacks_total", "reason")
        in_flight = _by_route(metrics, "relay_requests_in_flight", "stream")
        lines, warnings = self.relay.logs("request"), self.relay.logs("attempt_failed")
        for cell, seen in zip(self.cells, self.seen, strict=True):
            own = [line for line in lines if line["route"] == cell.slug]
            seen.line_count = len(own)
            seen.line = own[-1] if own else {}
            seen.warnings = [line for line in warnings if line["route"] == cell.slug]
            seen.outcomes = outcomes.get(cell.slug, {})
            seen.results = results.get(cell.slug, {})
            seen.fallbacks = sum(fallbacks.get(cell.slug, {}).values())
            seen.in_flight = sum(in_flight.get(cell.slug, {}).values())
            seen.first = [*self._first.of(cell.slug), *self._tls.of(cell.slug)]
            seen.second = self._second.of(cell.slug)


async def ask(client: openai.AsyncOpenAI, cell: Cell, seen: Seen, has_first: asyncio.Event | None = None) -> None:
    """Ask as an application does, and note what came of it."""
    chunks: list[Any] = []
    try:
        if cell.shape == "json":
            await _take_answer(client, cell, seen)
        else:
            await _take_stream(client, cell, seen, chunks, has_first or asyncio.Event())
    except openai.APIStatusError as error:
        _note_answer(seen, error.response)
        seen.told = error.response.text
        seen.is_raised, seen.saw = True, f"{type(error).__name__}{_code(error)}"
    except Exception as error:  # whatever the SDK raises is what the application sees
        said = f"{type(error).__name__}{_code(error)}"
        seen.told = f"{error} {getattr(error, 'body', None)}"
        seen.is_raised, seen.saw = True, f"{len(chunks)} chunks, then {said}" if chunks else said
    else:
        seen.saw = f"whole answer of the {'second' if seen.is_whole_of == SECOND else 'first'}" if seen.is_whole_of else "half an answer"


def _code(error: Exception) -> str:
    code = getattr(error, "code", None)
    return f" `{code}`" if isinstance(code, str) else ""


def _note_answer(seen: Seen, response: Any) -> None:
    seen.status = response.status_code
    seen.headers = {name.lower(): value for name, value in response.headers.items()}


def _whose(text: str | None, *, is_ended: bool) -> str | None:
    found = [who for who in (FIRST, SECOND) if text is not None and text.startswith(who)]
    return found[0] if found and is_ended else None


async def _take_answer(client: openai.AsyncOpenAI, cell: Cell, seen: Seen) -> None:
    if cell.fault.is_slow:
        opened = client.chat.completions.with_streaming_response.create(model=cell.slug, messages=MESSAGES)
        async with opened as response:
            _note_answer(seen, response.http_response)
            data = b""
            async for part in response.iter_bytes(100_000):
                data += part
                await asyncio.sleep(0.02)
        text = json.loads(data)["choices"][0]["message"]["content"]
        seen.is_whole_of = _whose(text, is_ended=True)
        return
    raw = await client.chat.completions.with_raw_response.create(model=cell.slug, messages=MESSAGES)
    _note_answer(seen, raw.http_response)
    choice = raw.parse().choices[0]
    seen.is_whole_of = _whose(choice.message.content, is_ended=choice.finish_reason == "stop")


async def _take_stream(client: openai.AsyncOpenAI, cell: Cell, seen: Seen, chunks: list[Any], has_first: asyncio.Event) -> None:
    raw: Any
    if cell.fault.is_responses:
        raw = await client.responses.with_raw_response.create(model=cell.slug, input=cells.PROMPT, stream=True)
    else:
        raw = await client.chat.completions.with_raw_response.create(model=cell.slug, messages=MESSAGES, stream=True)
    _note_answer(seen, raw.http_response)
    async with raw.parse() as stream:
        async for chunk in stream:
            chunks.append(chunk)
            has_first.set()
            if cell.fault.is_slow:
                await asyncio.sleep(0.02)
    if cell.fault.is_responses:
        seen.is_whole_of = SECOND if [chunk.type for chunk in chunks] == ["response.completed"] else None
        return
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    seen.is_whole_of = _whose(text, is_ended=choices[-1].finish_reason == "stop")


def _by_route(metrics: Metrics, name: str, label: str) -> dict[str, dict[str, int]]:
    """Add up a metric by route and one label; for all cells at once, since the page is long."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for labels, value in metrics.nonzero(name).items():
        named = dict(labels)
        found[named["route"]][named[label]] += int(value)
    return {route: dict(counts) for route, counts in found.items()}


def faults_of(ports: Mapping[str, int], authority: Authority, tls_url: str) -> list[Fault]:
    """Every row of the matrix; what exists only at run time is handed in."""
    return [
        *cells.connecting(ports, authority, tls_url),
        *cells.refusals(),
        *cells.no_answer(),
        *cells.broken_answers(),
        *cells.of_clients(),
    ]


@asynccontextmanager
async def matrix_run(directory: Path, start: Start) -> AsyncIterator[Matrix]:
    """Run the whole matrix on a relay that `start` makes of a configuration."""
    async with AsyncExitStack() as stack:
        authority = Authority(directory)
        collector = stack.enter_context(running_collector())
        first, second = [await stack.enter_async_context(ScriptedUpstream()) for _ in range(2)]
        tls = await stack.enter_async_context(ScriptedUpstream(authority.server("other.example")))
        ports = {"refusing": stack.enter_context(refusing_port()), "swallowing": stack.enter_context(swallowing_port())}
        all_cells = cells.cells_of(faults_of(ports, authority, tls.url))
        for cell in all_cells:
            script = cell.fault.scripts[cell.shape]
            if script is not None:
                first.route(cell.slug, script)
            second.route(cell.slug, cells.second_target(is_hanging=cell.fault.leaves == "second"))
        (directory / silence.STATE).mkdir()
        records = {"usage": {"store": str(directory / silence.LEDGER)}, "state_dir": str(directory / silence.STATE)}
        relay = await start({**_config(all_cells, first, second), "tracing": {"otlp": collector.url}, **records})
        matrix = Matrix(relay, all_cells, first, tls, second)
        await matrix.run()
        matrix.written = await silence.written_by(relay, collector, directory)
        yield matrix
        await relay.assert_identities()


def _config(all_cells: list[Cell], first: ScriptedUpstream, second: ScriptedUpstream) -> dict[str, Any]:
    """A configuration with a route and an upstream for each cell."""
    upstreams = {cell.slug: {"base_url": first.url, "api_key": cells.FIRST_KEY, **_copied(cell.fault)} for cell in all_cells}
    return {
        "timeouts": TIMEOUTS,
        "upstreams": {**upstreams, "second": {"base_url": second.url, "api_key": cells.SECOND_KEY}},
        "routes": {cell.slug: _targets(cell) for cell in all_cells},
        "keys": {"caller": {"key": cells.CALLER_KEY}},
    }


def _targets(cell: Cell) -> dict[str, Any]:
    """The route of a cell. Without retries: the budget for them is shared by all cells, so that which of them get one is chance."""
    own = f"{cell.slug}/{cell.slug}"
    return {"to": [own, f"second/{cell.slug}"] if cell.has_fallback else [own], "retries": 0}


def _copied(fault: Fault) -> dict[str, Any]:
    """The settings anew: parts that are shared would become anchors in the file."""
    copied: dict[str, Any] = json.loads(json.dumps(dict(fault.upstream)))
    return copied


def check(cell: Cell, seen: Seen) -> None:
    """Hold what the SDK, the log, the counters and the upstreams saw of a cell against each other and against its kind."""
    if seen.error is not None:
        raise seen.error
    check_agreement(seen)
    silence.check_lines([seen.line, *seen.warnings])
    silence.check_told(seen.headers, seen.told, is_own="x-relay-error" in seen.headers)
    results = [result for _, result in seen.attempts]
    is_mended = cell.fault.kind is Kind.MENDED and cell.has_fallback
    outcome = seen.line["outcome"]
    match cell.fault.kind:
        case Kind.MENDED if is_mended:
            assert (seen.is_whole_of, seen.is_raised, outcome) == (SECOND, False, "complete")
            assert [target for target, _ in seen.attempts] == ["first", "second"] and results[-1] == "success"
        case Kind.MENDED:
            assert seen.is_raised and outcome == "upstream_failed" and seen.status != 200
        case Kind.BROKEN:
            # The SDK tells no status of an answer without streaming that it could not read to its end.
            assert seen.is_raised and seen.status in (200, None) and seen.line["status"] == 200
            assert outcome in ("upstream_cut", "upstream_stalled", "upstream_error")
        case Kind.CALLERS:
            assert seen.is_raised and outcome == "rejected"
        case Kind.PASSED:
            assert outcome == "complete" and results == ["success"]
            assert cell.fault.name == "malformed event" or seen.is_whole_of == FIRST
        case Kind.LEFT:
            assert outcome == "client_gone" and results[-1] == "cancelled"
            assert len(results) == (2 if cell.fault.leaves == "second" else 1)
    if not is_mended and cell.fault.kind is not Kind.LEFT:
        assert len(results) == 1 and not seen.second, "another target was asked"


def check_agreement(seen: Seen) -> None:
    """One end of the exchange, the same in every book, and every attempt in every book."""
    line, attempts = seen.line, seen.attempts
    assert seen.line_count == 1
    assert seen.outcomes == {line["outcome"]: 1}
    assert seen.in_flight == 0
    assert seen.results == dict(Counter(result for _, result in attempts))
    assert line["attempts"] == len(attempts) and seen.fallbacks == len(attempts) - 1
    unsent = ("connect_error", "timeout_connect", "dns_error", "tls_error")
    sent = [target for target, result in attempts if result not in unsent]
    reached = ["first"] * len(seen.first) + ["second"] * len(seen.second)
    assert reached == sent or (line["phase"] == "connect" and reached == [])
    if seen.status is not None:
        assert line["status"] == seen.status
        assert seen.headers["x-relay-request-id"] == line["request_id"]
        assert seen.headers.get("x-relay-attempts", str(len(attempts))) == str(len(attempts))
