"""Everything at once: streams that end in every way there is, clients that leave whenever, reloads, and workers that are killed (F40).

Afterwards nothing is held, no counter has ever gone back, and all sums are right.
"""

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import pytest

from relay.workers.restarts import GIVE_UP_DEATHS, GIVE_UP_SECONDS
from tests.conftest import RelayWith
from tests.end_to_end.test_workers import CHAT, WITHIN
from tests.fakes.client import RawClient
from tests.fakes.events import chat_stream, content, error, role
from tests.fakes.ports import free_port
from tests.fakes.relay import ACCOUNTS, Metrics, RelayProcess
from tests.fakes.scripts import EVENT_STREAM, Script, body, close, error_answer, hang, json_answer, reset, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

KEY: Final = "sk-chaos-0123456789abcdef"
HEADERS: Final = [("Authorization", f"Bearer {KEY}"), ("Content-Type", "application/json")]
MODELS: Final = ("fast", "fast", "fast", "spare", "gone", "none")
SCRIPTS: Final[tuple[Script, ...]] = (
    sse(chat_stream(*"abcdefgh", usage=(10, 8)), pause=0.003),
    sse(chat_stream("a", "b", usage=(10, 2))),
    sse(chat_stream("a", "b")),
    sse(chat_stream("a"), end="fin"),
    sse([role(), content("a")], end="rst"),
    sse([role(), content("a"), error()], end="clean"),
    sse([error()], end="clean"),
    body([role(), content("a")], headers=EVENT_STREAM, end="hang"),
    json_answer({"id": "x", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}),
    error_answer(429),
    error_answer(500),
    close(),
    reset(),
    hang(),
)
AT_ONCE: Final = 50
SLOTS: Final = 60
SLOT_LIMITS: Final = ("concurrency", "key_route_concurrency")
REST: Final = ("relay_requests_in_flight", "relay_upstream_in_flight", "relay_tokens_reserved")


def config(upstream: ScriptedUpstream, rpm: int, port: int, workers: int) -> dict[str, Any]:
    return {
        "server": {"workers": workers, "drain": "5s"},
        "metrics": {"listen": f"127.0.0.1:{port}"},
        "upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}, "dead": {"base_url": "http://127.0.0.1:9/v1"}},
        "routes": {
            "fast": {"to": ["mine/m"], "limits": {"rpm": "100k", "tpm": "10M"}},
            "spare": {"to": ["dead/m", "mine/m"], "limits": {"concurrency": 40}},
            "gone": "dead/m",
            "good": "mine/good",
        },
        "keys": {
            "alice": {
                "key": KEY,
                "limits": {
                    "rpm": rpm,
                    "tpm": "50M",
                    "concurrency": SLOTS,
                    "budget": "1000M tokens/day",
                    "per_route": {"fast": {"concurrency": 30}},
                },
            }
        },
        "timeouts": {"connect": "1s", "first_token": "2s", "between_tokens": "1s", "write": "1s", "total": "5s"},
    }


class Chaos:
    """One relay, and what is done to it."""

    def __init__(self, relay: RelayProcess, upstream: ScriptedUpstream, port: int, workers: int) -> None:
        self.relay = relay
        self.seen = Counter[str]()
        self.reloads = 0
        self._upstream = upstream
        self._port = port
        self._workers = workers
        self._chance = random.Random(7)
        self._deaths: dict[int, deque[float]] = {}
        """When the worker of each place was killed: no more often than the supervisor puts up with."""

    async def one(self) -> None:
        """Ask for something, and leave whenever."""
        chance = self._chance
        patience = chance.choice((0.0, 0.002, 0.02, 0.2, *[20.0] * 5))
        asked: dict[str, Any] = {"model": chance.choice(MODELS), "messages": [], "stream": chance.random() < 0.8}
        if chance.random() < 0.5:
            asked["max_tokens"] = chance.randint(1, 500)
        sent = json.dumps(asked).encode()
        if chance.random() < 0.05:
            sent = sent[: chance.randint(0, len(sent))]
        try:
            async with asyncio.timeout(patience), await self.connected() as client:
                await client.request("POST", CHAT, HEADERS, sent)
                response = await client.read_response(within=20.0)
        except TimeoutError:
            self.seen["left"] += 1
        except (OSError, EOFError):
            self.seen["cut"] += 1
        else:
            self.seen[f"{response.status} {response.end}"] += 1
            if response.status == 200 and response.end == "complete" and response.header("content-type") == b"text/event-stream":
                assert response.has_done or b'"error"' in response.body, "an answer that is not whole shows it"

    async def connected(self) -> RawClient:
        """Connect, again and again while nobody listens: all workers may have been killed."""
        while True:
            try:
                return await RawClient.open(self.relay.port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.1)

    def reload(self, number: int) -> None:
        """Change a limit, so that there is something to build."""
        self.relay.write_config(config(self._upstream, 40_000 + number, self._port, self._workers))
        os.kill(self.relay.pid, signal.SIGHUP)
        self.reloads += 1

    def kill(self) -> None:
        """Kill any worker that has served, whatever the others do."""
        places = {line["pid"]: line["worker"] for line in self.relay.logs("worker_ready")}
        now = time.monotonic()
        victims = []
        for child in self.relay.process.children():
            place = places.get(child.pid)
            if place is None:
                continue
            deaths = self._deaths.setdefault(place, deque(maxlen=GIVE_UP_DEATHS - 1))
            if len(deaths) < GIVE_UP_DEATHS - 1 or now - deaths[0] > GIVE_UP_SECONDS + 1:
                victims.append((child.pid, deaths))
        if victims:
            pid, deaths = self._chance.choice(victims)
            os.kill(pid, signal.SIGKILL)
            deaths.append(now)
            self.seen["kill"] += 1

    async def run(self, count: int) -> None:
        """Make `count` requests, many at a time, with reloads, and kills where there are several workers."""

        async def any_script(peer: Peer) -> None:
            await self._chance.choice(SCRIPTS)(peer)

        self._upstream.answers(any_script)
        self._upstream.route("good", sse(chat_stream("a", "b", usage=(10, 2))))
        places = asyncio.Semaphore(AT_ONCE)

        async def place(number: int) -> None:
            async with places:
                if number % 100 == 50:
                    self.reload(number)
                if number % 100 == 60 and self._workers > 1:
                    self.kill()
                await self.one()

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(place(number))

    async def metrics(self) -> Metrics:
        async with await RawClient.open(self._port) as client:
            await client.request("GET", "/metrics", [("Connection", "close")])
            return Metrics.parse((await client.read_response(method="GET", within=WITHIN)).body.decode())

    async def settled(self, is_at_rest: Callable[[Metrics], bool]) -> Metrics:
        """Wait until nothing is held, and `is_at_rest` as well."""
        deadline = time.monotonic() + 2 * WITHIN
        while True:
            found = await self.metrics()
            held = [found.nonzero(name) for name in REST]
            used = [found.value("relay_key_limit_used_ratio", key="alice", limit=limit) for limit in SLOT_LIMITS]
            if not any(held) and not any(used) and is_at_rest(found):
                return found
            state = (held, used, found.nonzero("relay_worker_exits_total"), found.nonzero("relay_workers"), self.seen)
            assert time.monotonic() < deadline, state
            await asyncio.sleep(0.1)

    async def answers_all(self) -> None:
        """Every slot is free again: the limit lets as many in at once as ever, whichever workers they meet."""

        async def ask() -> str:
            async with await self.connected() as client:
                await client.post(CHAT, {"model": "good", "stream": True}, HEADERS[:1])
                response = await client.read_response(within=WITHIN)
                return f"{response.status} {response.end}"

        assert Counter(await asyncio.gather(*(ask() for _ in range(SLOTS)))) == {"200 complete": SLOTS}


@pytest.mark.parametrize("count", [250, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_streams_that_end_in_every_way_leave_nothing_behind(relay_with: RelayWith, upstream: ScriptedUpstream, count: int) -> None:
    port = free_port()
    chaos = Chaos(await relay_with(config(upstream, 40_000, port, 1)), upstream, port, 1)
    await chaos.run(count)
    relay = chaos.relay

    def every_end_is_counted_and_logged(found: Metrics) -> bool:
        return found.sum("relay_requests_total") == len(relay.logs("request"))

    metrics = await chaos.settled(every_end_is_counted_and_logged)
    assert not metrics.nonzero("relay_invariant_violations_total")
    assert sum(map(metrics.sum, ACCOUNTS)) == metrics.sum("relay_requests_started_total")
    outcomes = {labels["outcome"] for labels in map(dict, metrics.nonzero("relay_key_requests_total"))}
    assert {"complete", "client_gone", "upstream_cut", "upstream_failed"} <= outcomes, "the load is not what it was meant to be"
    ids = [line["request_id"] for line in relay.logs("request")]
    assert len(ids) == len(set(ids))
    await chaos.answers_all()


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_books_balance_after_kills_disconnects_faults_and_reloads(
    relay_with: RelayWith, upstream: ScriptedUpstream, count: int, record_property: Callable[[str, object], None]
) -> None:
    workers, port = 3, free_port()
    relay = await relay_with(config(upstream, 40_000, port, workers))
    await relay.wait_log("worker_ready", count=workers, within=2 * WITHIN)
    chaos = Chaos(relay, upstream, port, workers)
    pages = [await chaos.metrics()]

    async def watch() -> None:
        while True:
            page = await chaos.metrics()
            sunk = page.sunk_since(pages[-1])
            assert not sunk, sunk
            pages[:] = [page]
            await asyncio.sleep(0.3)

    began_at = time.monotonic()
    watching = asyncio.create_task(watch())
    try:
        await chaos.run(count)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    kills = chaos.seen["kill"]

    def is_one_relay_again(found: Metrics) -> bool:
        # One that was still dying when it was chosen again ends once; one that ends is told when the system tells of it.
        ended = 1 <= found.value("relay_worker_exits_total", reason="killed") <= kills
        return ended and found.value("relay_workers", state="ready") == workers

    found = await chaos.settled(is_one_relay_again)
    assert not found.sunk_since(pages[-1])
    assert not found.nonzero("relay_invariant_violations_total")
    # One whose start was overtaken by a reload exits; none fails.
    assert not found.value("relay_worker_exits_total", reason="error")
    lines = relay.logs("request")  # once: a last line may still be on its way
    started = found.sum("relay_requests_started_total")
    assert sum(map(found.sum, ACCOUNTS)) == started
    # A killed worker takes with it what it had not told yet: at most what came in since the last look, never more than was asked.
    assert started <= count
    assert len({line["request_id"] for line in lines}) == len(lines) <= count
    assert chaos.seen["200 complete"] >= 10, "hardly anything was served"
    await chaos.answers_all()
    told = {name: found.sum(name) for name in ACCOUNTS}
    figures = {"seconds": round(time.monotonic() - began_at), "reloads": chaos.reloads, "started": started, "logged": len(lines)}
    for name, value in {**figures, **told, **chaos.seen}.items():
        record_property(name, value)
