"""Waiting for a turn: bounded, in order, and nothing is left behind, whatever ends it and in whatever moment."""

import asyncio
import random
from dataclasses import replace
from math import inf
from time import monotonic

import pytest

from relay.config.tree import Config, Route, Target, Timeouts, Upstream, UpstreamLimits
from relay.errors import Draining
from relay.exchange import ClientRequest, Exchange, Operation
from relay.forward.turns import Turns
from relay.policy.slots import AllSlots, Claim, Holds

LONG = 30.0


class Bed:
    """One upstream with its slots, and exchanges that want one."""

    def __init__(self, *, concurrency: int | None = 1, queue: int = 10, queue_wait: float = LONG) -> None:
        limits = UpstreamLimits(concurrency=concurrency, queue=queue, queue_wait=queue_wait)
        self.target = Target(upstream=Upstream(name="mine", base_url="http://mine", limits=limits), model="m")
        self.route = Route(name="fast", targets=(self.target,), timeouts=Timeouts())
        self.slots = AllSlots()
        self.slots.know(Config(upstreams={"mine": self.target.upstream}, routes={"fast": self.route}))
        self.turns = Turns(self.slots)

    def exchange(self) -> Exchange:
        request = ClientRequest(
            id="i", method="POST", path="/", query=None, headers=(), operation=Operation.CHAT, received_at=monotonic(), client_ip=""
        )
        return Exchange(request=request, route=self.route)

    async def take(self, exchange: Exchange | None = None, deadline_at: float = inf) -> Claim | None:
        claim = self.turns.claim(self.target)
        if claim is None or claim.holds is Holds.SLOT:
            return claim
        return await self.turns.wait(claim, exchange or self.exchange(), self.target, deadline_at)

    async def held(self) -> Claim:
        claim = await self.take()
        assert claim is not None
        return claim

    @property
    def load(self) -> tuple[int, int]:
        slots = self.slots.of("mine")
        return slots.held, slots.waiting


async def queued(bed: Bed, count: int = 1) -> list[asyncio.Task[Claim | None]]:
    """Begin `count` waits, one after the other."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(bed.take()))
        await asyncio.sleep(0)
    return tasks


async def test_a_free_slot_is_had_without_waiting() -> None:
    bed = Bed(concurrency=2)
    exchange = bed.exchange()
    assert await bed.take(exchange) is not None
    assert (bed.load, exchange.queued_seconds, dict(bed.turns.queued)) == ((1, 0), 0.0, {})


async def test_those_who_wait_are_served_in_order_and_counted_by_route() -> None:
    bed = Bed()
    claim = await bed.held()
    tasks = await queued(bed, 3)
    assert bed.turns.queued == {"fast": 3}
    for task in tasks:
        claim.give()
        await asyncio.sleep(0)
        assert [each.done() for each in tasks] == [each in tasks[: tasks.index(task) + 1] for each in tasks]
        served = await task
        assert served is not None
        claim = served
    claim.give()
    assert (bed.load, bed.turns.queued) == ((0, 0), {"fast": 0})


@pytest.mark.parametrize("bound", ["queue_wait", "deadline", "total", "waited before"])
async def test_nobody_waits_longer_than_the_shortest_bound(bound: str) -> None:
    bed = Bed(queue_wait=0.02 if bound == "queue_wait" else LONG)
    held = await bed.held()
    exchange = bed.exchange()
    if bound == "total":
        exchange.route = replace(bed.route, timeouts=replace(Timeouts(), total=0.02))
    if bound == "waited before":
        exchange.queued_seconds = LONG
    async with asyncio.timeout(5):
        assert await bed.take(exchange, monotonic() + 0.02 if bound == "deadline" else inf) is None
    assert bed.load == (1, 0)
    held.give()
    assert bed.load == (0, 0)


async def test_a_full_queue_is_told_at_once() -> None:
    bed = Bed(queue=1)
    await bed.held()
    (waiting,) = await queued(bed)
    exchange = bed.exchange()
    assert await bed.take(exchange) is None
    assert exchange.queued_seconds == 0.0
    waiting.cancel()


async def test_one_who_leaves_gives_its_place_up_at_once() -> None:
    bed = Bed()
    held = await bed.held()
    leaving, staying = await queued(bed, 2)
    leaving.cancel()
    await asyncio.sleep(0)
    assert bed.load == (1, 1)
    held.give()
    assert await staying is not None
    assert bed.load == (1, 0)


async def test_one_who_leaves_in_the_moment_of_its_turn_takes_no_slot_along() -> None:
    bed = Bed()
    held = await bed.held()
    leaving, staying = await queued(bed, 2)
    held.give()
    leaving.cancel()
    assert await staying is not None
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert bed.load == (1, 0)


async def test_a_stop_lets_nobody_wait() -> None:
    bed = Bed()
    held = await bed.held()
    (waiting,) = await queued(bed)
    bed.turns.dismiss()
    with pytest.raises(Draining):
        await waiting
    held.give()
    assert bed.load == (0, 0)


async def test_under_cancels_of_every_kind_never_more_than_the_limit_and_no_slot_is_lost() -> None:
    bed = Bed(concurrency=3, queue=500, queue_wait=0.2)
    chance = random.Random(1)
    most = served = 0

    async def one() -> None:
        nonlocal most, served
        claim = await bed.take()
        if claim is None:
            return
        try:
            served += 1
            most = max(most, bed.load[0])
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(chance.choice([0, 0, 0.002]))
        finally:
            claim.give()

    tasks = []
    for _ in range(600):
        tasks.append(asyncio.create_task(one()))
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert served > 30, "too few to show anything"
    assert (bed.load, bed.turns.queued) == ((0, 0), {"fast": 0})
