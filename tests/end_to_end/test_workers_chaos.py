"""F40: workers are killed while everything else happens too, and the books of the whole relay still balance."""

import asyncio
import os
import random
import signal
import time
from collections import Counter

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.test_workers import CHAT, WITHIN, children, crew, ready
from tests.fakes.client import RawClient
from tests.fakes.events import chat_stream
from tests.fakes.ports import free_port
from tests.fakes.relay import ACCOUNTS, Metrics, RelayProcess
from tests.fakes.scripts import error_answer, hang, sse
from tests.fakes.upstream import ScriptedUpstream

EVENTS = chat_stream(*"abcdefgh")
KEY = "sk-chaos-0123456789abcdef"


async def one(relay: RelayProcess, chance: random.Random, seen: Counter[str]) -> None:
    """One stream, of which the client leaves at a random moment now and then."""
    try:
        async with await relay.connect() as client:
            headers = [("Authorization", f"Bearer {KEY}")]
            await client.post(CHAT, {"model": chance.choice(["good", "good", "good", "bad", "silent"]), "stream": True}, headers)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.05)
                seen["left"] += 1
                return
            seen[(await client.read_response(within=30)).end] += 1
    except (OSError, EOFError, AssertionError):
        seen["cut"] += 1
        await asyncio.sleep(0.2)  # while nobody listens a refusal takes no time, and all would be refused before a worker is back


class Killer:
    """Kills a worker, and now and then has the configuration read again, while everything else goes on."""

    def __init__(self, relay: RelayProcess, chance: random.Random) -> None:
        self._relay = relay
        self._chance = chance
        self.kills = 0

    def strike(self) -> None:
        alive = children(self._relay)
        if len(alive) == 3:
            os.kill(self._chance.choice(alive).pid, signal.SIGKILL)
            self.kills += 1
        if self._chance.random() < 0.5:
            os.kill(self._relay.pid, signal.SIGHUP)


@pytest.mark.parametrize("count", [150, pytest.param(4000, marks=pytest.mark.slow)])
async def test_books_balance_after_kills_disconnects_faults_and_reloads(
    relay_with: RelayWith, upstream: ScriptedUpstream, count: int
) -> None:
    upstream.route("good", sse(EVENTS, pause=0.005))
    upstream.route("bad", error_answer(503))
    upstream.route("silent", hang())
    port = free_port()
    keys = {"chaos": {"key": KEY, "limits": {"concurrency": 50}}}
    timeouts = {"first_token": "1s"}
    relay = await crew(relay_with, upstream, 3, keys=keys, timeouts=timeouts, metrics={"listen": f"127.0.0.1:{port}"})

    async def metrics() -> Metrics:
        async with await RawClient.open(port) as client:
            await client.request("GET", "/metrics", [("Connection", "close")])
            return Metrics.parse((await client.read_response(method="GET", within=WITHIN)).body.decode())

    chance, seen = random.Random(4), Counter[str]()
    killer = Killer(relay, chance)
    places = asyncio.Semaphore(40)

    async def place(number: int) -> None:
        async with places:
            if number % 100 == 60:
                killer.strike()
            await one(relay, chance, seen)

    pages = [await metrics()]

    async def watch() -> None:
        while True:
            pages.append(await metrics())
            sunk = pages[-1].sunk_since(pages[-2])
            assert not sunk, sunk
            await asyncio.sleep(0.3)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(place(number) for number in range(count)))
    async with asyncio.timeout(WITHIN):
        while len(pages) < 4 and not watching.done():  # on a busy machine few pages come while the requests run
            await asyncio.sleep(0.05)
    assert not watching.done(), watching
    watching.cancel()
    kills = killer.kills
    await some_worker(relay)
    await ready(relay, 3)

    def is_at_rest(found: Metrics) -> bool:
        busy = found.nonzero("relay_requests_in_flight") or found.nonzero("relay_upstream_in_flight")
        return not busy and bool(found.value("relay_worker_exits_total", reason="killed"))  # an end is known when the system tells of it

    deadline = time.monotonic() + WITHIN
    while not is_at_rest(found := await metrics()):
        names = ("relay_requests_in_flight", "relay_upstream_in_flight", "relay_worker_exits_total", "relay_workers")
        assert time.monotonic() < deadline, (kills, [found.nonzero(name) for name in names])
        await asyncio.sleep(0.1)
    assert kills >= 1
    assert seen["complete"] > count / 4, seen
    # One that was still dying when it was chosen again ends once.
    assert 1 <= found.value("relay_worker_exits_total", reason="killed") <= kills
    assert not found.nonzero("relay_invariant_violations_total")
    # One whose start was overtaken by a reload exits; none fails.
    assert not found.value("relay_worker_exits_total", reason="error")
    lines = relay.logs("request")  # once: a last line may still be on its way
    logged, counted = len(lines), found.sum("relay_requests_total")
    # A killed worker takes with it what it had not told yet: at most what came in since the last look, never more than was asked.
    assert counted <= count
    assert sum(map(found.sum, ACCOUNTS)) == found.sum("relay_requests_started_total")
    assert not found.sunk_since(pages[-1])
    assert logged <= count
    assert len({line["request_id"] for line in lines}) == logged
    # Every slot of the key is free again: the limit lets as many in as ever.
    answers = await asyncio.gather(*(ask(relay) for _ in range(40)))
    assert set(answers) == {"complete"}


async def some_worker(relay: RelayProcess) -> None:
    """Wait until anybody listens: all of them may have been killed."""
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                await (await relay.connect()).close()
            except ConnectionError:
                await asyncio.sleep(0.1)
            else:
                return


async def ask(relay: RelayProcess) -> str:
    async with await relay.connect() as client:
        await client.post(CHAT, {"model": "good", "stream": True}, [("Authorization", f"Bearer {KEY}")])
        return (await client.read_response(within=30)).end
