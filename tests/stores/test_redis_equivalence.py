"""What a script decides in Redis is what one process decides for itself: the same sequence, by the same clock, gets the same answers.

The clock is the scripts' one seam: where they ask the server for its time, they are given one that the test sets.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from relay.config.tree import Budget, Limits, Period
from relay.policy.limits import Demand, Grant, Limit, Refusal, Scope
from relay.stores import news, scripts
from relay.stores import redis as over_redis
from relay.stores.ledger import Ledger
from relay.stores.line import Script
from relay.stores.memory import MemoryTable
from tests.servers import RedisServer

T = TypeVar("T")
CLOCK = "the clock of the test"
OF_SERVER = "local time = redis.call('TIME')"
OF_TEST = f"local clock = tonumber(redis.call('GET', '{CLOCK}')) local time = {{ math.floor(clock / 1000), clock % 1000 * 1000 }}"
EVENING = int(datetime(2028, 2, 28, 23, 50, tzinfo=UTC).timestamp() * 1000)
"""Ten minutes before a day ends, and a day before a month does that is longer than others of its name."""
PATIENT_SECONDS = 20.0


def tokens(amount: int, period: Period = Period.DAY) -> Budget:
    return Budget(amount=amount, is_money=False, period=period)


def dollars(amount: int, period: Period = Period.MONTH) -> Budget:
    return Budget(amount=amount, is_money=True, period=period)


SCOPES = (
    Scope(key="alice", limits=Limits(rpm=6, tpm=120, concurrency=4, budget=tokens(700))),
    Scope(key="alice", route="fast", limits=Limits(rpm=4, tpm=90)),
    Scope(route="fast", limits=Limits(tpm=200, concurrency=5, budget=dollars(900))),
    Scope(key="bob", limits=Limits(budget=dollars(300, Period.DAY))),
    Scope(key="carol", limits=Limits(concurrency=0, rpm=1)),
)
ASKERS = (SCOPES[:1], SCOPES[:3], (SCOPES[3], SCOPES[2]), SCOPES[4:], SCOPES[2:3])


@pytest.fixture
def clocked(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A Redis whose scripts go by the test's clock."""
    for module, name in ((over_redis, "_ADMIT"), (over_redis, "CHANGE"), (news, "CHANGE"), (news, "_TELL")):
        text = getattr(scripts, name.removeprefix("_"))
        assert text.count(OF_SERVER) == 1
        monkeypatch.setattr(module, name, Script(text.replace(OF_SERVER, OF_TEST)))
    return redis


class Machine(RuleBasedStateMachine):
    """Two limiters that are told the same."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.server = server
        self.now = EVENING
        self.open: list[tuple[Grant, Grant]] = []
        self.flowed: dict[Grant, int] = {}

    @initialize()
    def begin(self) -> None:
        self.server.ask("FLUSHALL")
        self.turn(0)
        clock = {"now": lambda: self.now, "unix_time": lambda: self.now / 1000}
        self.here = Ledger(MemoryTable(), **clock)  # type: ignore[arg-type]
        self.runner = asyncio.Runner()
        copy = Ledger(MemoryTable(), **clock)  # type: ignore[arg-type]
        self.there = over_redis.RedisLimiter(self.server.url, 1, PATIENT_SECONDS, copy, lambda _: None)
        self.runner.run(self.there.start())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.do(self.there.aclose)
            self.runner.close()

    def do(self, what: Callable[[], Awaitable[T]]) -> T:
        """Do something in the loop of the limiter, and let all that it sent be answered."""

        async def done() -> T:
            found = await what()
            await self.there._line.flushed()
            return found

        return self.runner.run(done())

    def turn(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.server.ask("SET", CLOCK, str(self.now))

    def tell(self, what: Callable[..., T], *arguments: Any) -> T:
        async def told() -> T:
            return what(*arguments)

        return self.do(told)

    @rule(
        scopes=st.sampled_from(ASKERS),
        count=st.integers(0, 130),
        cost=st.integers(0, 320),
        least=st.integers(0, 40),
        answer_cost=st.integers(0, 3),
    )
    def ask(self, scopes: tuple[Scope, ...], count: int, cost: int, least: int, answer_cost: int) -> None:
        demand = Demand(scopes=scopes, tokens=count, cost=cost, least=min(least, count), answer_cost=answer_cost)
        here = self.here.try_take(demand)
        there = self.do(lambda: self.there.admit(demand))
        self.assert_same(here, there)
        if isinstance(here, Grant) and isinstance(there, Grant):
            assert there.demand[1:3] == here.demand[1:3], "as many tokens, at the same cost"
            self.open.append((here, there))

    def assert_same(self, here: Grant | Refusal, there: Grant | Refusal) -> None:
        assert type(here) is type(there), (here, there)
        assert (there.requests, there.tokens) == (here.requests, here.tokens)
        if isinstance(here, Refusal) and isinstance(there, Refusal):
            assert (there.limit, there.scope.name) == (here.limit, here.scope.name)
            if here.limit is Limit.BUDGET and here.wait_ms is not None and there.wait_ms is not None:
                # Seconds as a fraction do not hold a millisecond exactly.
                assert abs(there.wait_ms - here.wait_ms) <= 1
            else:
                assert there.wait_ms == here.wait_ms

    @precondition(lambda self: self.open)
    @rule(data=st.data(), used=st.integers(0, 150), cost=st.integers(0, 320))
    def settle(self, data: st.DataObject, used: int, cost: int) -> None:
        here, there = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        used = max(used, self.flowed.pop(here, 0))
        self.here.settle(here, used, cost)
        self.tell(self.there.settle, there, used, cost)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        here, there = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if here in self.flowed:
            self.open.append((here, there))  # what has flowed is settled
            return
        self.here.release(here)
        self.tell(self.there.release, there)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), more=st.integers(1, 60))
    def flow(self, data: st.DataObject, more: int) -> None:
        here, there = data.draw(st.sampled_from(self.open))
        self.flowed[here] = self.flowed.get(here, 0) + more
        self.here.debit(here, self.flowed[here])
        self.tell(self.there.debit, there, self.flowed[here])

    @rule(milliseconds=st.one_of(st.integers(0, 500), st.integers(0, 70_000), st.integers(0, 40_000_000)))
    def wait(self, milliseconds: int) -> None:
        self.turn(milliseconds)
        self.do(lambda: self.there._news.tell(self.there._entries.values(), is_renewal=True))

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "there"):
            assert not self.there.is_degraded
            assert self.there.sweep() == self.here.sweep() == []


@pytest.mark.parametrize("examples", [60, pytest.param(2_000, marks=pytest.mark.slow)])
def test_redis_decides_as_one_process_does(clocked: RedisServer, examples: int) -> None:
    run_state_machine_as_test(lambda: Machine(clocked), settings=settings(max_examples=examples, stateful_step_count=25, deadline=None))


def test_a_request_that_used_nothing_leaves_the_minute_without_a_trace(clocked: RedisServer) -> None:
    machine = Machine(clocked)
    machine.begin()
    machine.ask(ASKERS[0], 50, 0, 0, 0)
    here, there = machine.open.pop()
    machine.here.settle(here, 0, 0)
    machine.tell(machine.there.settle, there, 0, 0)
    machine.turn(60_001)
    machine.ask(ASKERS[0], 120, 0, 0, 0)
    assert len(machine.open) == 1
    machine.books_balance()
    machine.teardown()


async def test_what_flows_beyond_a_reservation_counts_in_the_budget_at_every_relay(redis: RedisServer) -> None:
    scope = Scope(key="alice", limits=Limits(budget=tokens(100)))
    relays = [over_redis.RedisLimiter(redis.url, 2, PATIENT_SECONDS, Ledger(MemoryTable()), lambda _: None) for _ in range(2)]
    for relay in relays:
        await relay.start()
    grants = [await relay.admit(Demand(scopes=(scope,), tokens=30)) for relay in relays]
    assert isinstance(grants[0], Grant)
    assert isinstance(grants[1], Grant)
    assert relays[0].debit(grants[0], 70), "how it stands with all is known a moment later"
    await relays[0]._line.flushed()
    assert relays[0].debit(grants[0], 71), "70 and 30 of 100"
    await relays[0]._line.flushed()
    assert not relays[0].debit(grants[0], 72)
    refused = await relays[1].admit(Demand(scopes=(scope,), tokens=1))
    assert isinstance(refused, Refusal)
    assert refused.limit is Limit.BUDGET
    for relay, grant, used in ((relays[0], grants[0], 72), (relays[1], grants[1], 20)):
        relay.settle(grant, used, 0)
    await relays[0]._line.flushed()
    await relays[1]._line.flushed()
    assert isinstance(await relays[1].admit(Demand(scopes=(scope,), tokens=8)), Grant), "92 of 100 were used"
    for relay in relays:
        await relay.aclose()


def test_of_many_entries_the_one_that_makes_room_is_found(clocked: RedisServer) -> None:
    machine = Machine(clocked)
    machine.begin()
    scope = (Scope(key="alice", limits=Limits(tpm=150)),)
    for _ in range(150):
        machine.ask(scope, 1, 0, 0, 0)
        machine.turn(7)
    for count in (1, 49, 50, 51, 100, 101, 150):
        answer = machine.here.try_take(Demand(scopes=scope, tokens=count))
        assert isinstance(answer, Refusal)
        assert answer.wait_ms == 60_001 - 7 * (151 - count)
        machine.ask(scope, count, 0, 0, 0)
    machine.teardown()
