"""A limiter over Redis, with other relays and without Redis: who waits, and what is known of others."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from relay.config.tree import Budget, Limits, Period
from relay.policy.limits import Demand, Grant, Limit, Refusal, Scope
from relay.stores import redis as over_redis
from relay.stores import totals
from relay.stores.ledger import Ledger
from relay.stores.memory import MemoryTable
from relay.stores.redis import RedisLimiter
from tests.fakes.redis import Fault, RedisFront
from tests.servers import RedisServer

Start = Callable[..., Awaitable[RedisLimiter]]
WITHIN = 20.0
PATIENT_SECONDS = 20.0
TIMEOUT_SECONDS = 0.05
ALICE = Scope(key="alice", limits=Limits(rpm=10, tpm=1_000, concurrency=6))
FAULTS = [Fault.REFUSED, Fault.BLACK_HOLE, Fault.SLOW, Fault.READONLY]


@pytest.fixture
async def limiter_at() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(url: str, *scopes: Scope, replicas: int = 1, timeout: float = PATIENT_SECONDS) -> RedisLimiter:
            limiter = RedisLimiter(url, replicas, timeout, Ledger(MemoryTable()), lambda _: None)
            limiter.know(scopes)
            await limiter.start()
            stack.push_async_callback(limiter.aclose)
            return limiter

        yield start


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def take(limiter: RedisLimiter, scope: Scope, *, count: int = 1, tokens: int = 0) -> list[Grant | Refusal]:
    return [await limiter.admit(Demand(scopes=(scope,), tokens=tokens)) for _ in range(count)]


def granted(answers: list[Grant | Refusal]) -> int:
    return sum(isinstance(answer, Grant) for answer in answers)


def answer_at_once(limiter: RedisLimiter, scope: Scope) -> Grant | Refusal | None:
    """Ask, and return the answer if there is one without any wait."""
    asking = limiter.admit(Demand(scopes=(scope,), tokens=0))
    try:
        asking.send(None)  # type: ignore[attr-defined]
    except StopIteration as answer:
        found: Grant | Refusal = answer.value
        return found
    asking.close()  # type: ignore[attr-defined]
    return None


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.value for fault in FAULTS])
async def test_once_redis_is_away_nobody_waits_for_it_until_it_is_back(
    limiter_at: Start, front: RedisFront, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(over_redis, "RETRY_SECONDS", 0.1)
    scope = Scope(key="alice", limits=Limits(rpm=100_000))
    limiter = await limiter_at(front.url, scope, timeout=TIMEOUT_SECONDS)
    await until(lambda: not limiter.is_degraded)
    await front.set(fault)
    started = time.monotonic()
    assert granted(await asyncio.gather(*(limiter.admit(Demand(scopes=(scope,), tokens=0)) for _ in range(5)))) == 5
    assert time.monotonic() - started < 10 * TIMEOUT_SECONDS
    assert limiter.is_degraded
    for _ in range(1_000):
        assert isinstance(answer_at_once(limiter, scope), Grant)
    deadline = time.monotonic() + 0.4  # some attempts to reach it
    while time.monotonic() < deadline:
        assert isinstance(answer_at_once(limiter, scope), Grant)
        await asyncio.sleep(0.01)
    await front.set(Fault.NONE)
    await until(lambda: not limiter.is_degraded)


async def test_a_redis_that_answers_one_after_another_is_not_away(limiter_at: Start, front: RedisFront) -> None:
    scope = Scope(key="alice", limits=Limits(rpm=100))
    limiter = await limiter_at(front.url, scope, timeout=0.3)
    await until(lambda: not limiter.is_degraded)
    front.pace = 0.03
    answers = await asyncio.gather(*(limiter.admit(Demand(scopes=(scope,), tokens=0)) for _ in range(30)))
    assert granted(answers) == 30
    assert not limiter.is_degraded, "the last one waited for longer than the timeout, and Redis was never silent for so long"
    front.pace = 0.0


async def test_a_redis_that_answers_ever_so_slowly_is_away_at_last(limiter_at: Start, front: RedisFront) -> None:
    scope = Scope(key="alice", limits=Limits(rpm=1_000))
    limiter = await limiter_at(front.url, scope, timeout=0.1)
    await until(lambda: not limiter.is_degraded)
    front.pace = 0.03
    answers = await asyncio.gather(*(limiter.admit(Demand(scopes=(scope,), tokens=0)) for _ in range(100)))
    assert granted(answers) == 100
    assert limiter.is_degraded
    front.pace = 0.0


async def test_a_process_that_had_no_time_to_read_does_not_take_that_for_an_outage(limiter_at: Start, redis: RedisServer) -> None:
    scope = Scope(key="alice", limits=Limits(rpm=100))
    limiter = await limiter_at(redis.url, scope, timeout=TIMEOUT_SECONDS)
    await until(lambda: not limiter.is_degraded)
    for _ in range(2):
        asked = asyncio.ensure_future(limiter.admit(Demand(scopes=(scope,), tokens=0)))
        while not limiter._line._sent:
            await asyncio.sleep(0)
        time.sleep(10 * TIMEOUT_SECONDS)
        assert isinstance(await asked, Grant)
        assert not limiter.is_degraded


async def test_a_relay_that_is_cut_off_gives_away_nothing_of_what_others_have_used(
    limiter_at: Start, redis: RedisServer, front: RedisFront
) -> None:
    first = await limiter_at(redis.url, ALICE, replicas=2)
    second = await limiter_at(front.url, ALICE, replicas=2)
    assert granted(await take(first, ALICE, count=4, tokens=100)) == 4
    await until(lambda: second._totals.of(ALICE) is not None)
    await front.set(Fault.REFUSED)
    await until(lambda: second.is_degraded)
    assert granted(await take(second, ALICE, count=10)) == 1, "2 of 6 slots are left: one each"


async def test_slots_that_are_held_for_long_elsewhere_are_heard_of_with_their_renewal(
    limiter_at: Start, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_redis, "TICK_SECONDS", 0.1)
    scope = Scope(key="alice", limits=Limits(concurrency=4))
    first = await limiter_at(redis.url, scope, replicas=2)
    assert granted(await take(first, scope, count=4)) == 4
    second = await limiter_at(redis.url, scope, replicas=2)
    await until(lambda: second._totals.of(scope) is not None)
    second._totals._known.clear()
    await until(lambda: second._totals.of(scope) is not None)
    assert second._totals.part(scope).limits.concurrency == 0


async def test_a_budget_that_was_spent_before_a_relay_began_is_spent_for_it_when_it_is_cut_off(
    limiter_at: Start, redis: RedisServer, front: RedisFront
) -> None:
    scope = Scope(key="alice", limits=Limits(budget=Budget(amount=1_000, is_money=False, period=Period.DAY)))
    first = await limiter_at(redis.url, scope, replicas=2)
    (grant,) = await take(first, scope, tokens=900)
    assert isinstance(grant, Grant)
    first.settle(grant, 900, 0)
    await first._line.flushed()
    second = await limiter_at(front.url, scope, replicas=2)
    await front.set(Fault.REFUSED)
    await until(lambda: second.is_degraded)
    (refusal,) = await take(second, scope, tokens=51)
    assert isinstance(refusal, Refusal)
    assert refusal.limit is Limit.BUDGET
    assert granted(await take(second, scope, tokens=50)) == 1


async def test_more_scopes_than_one_answer_holds_are_all_heard_of(limiter_at: Start, redis: RedisServer) -> None:
    scopes = [Scope(key=f"key-{number}", limits=Limits(rpm=10)) for number in range(2 * totals.PAGE + 10)]
    first = await limiter_at(redis.url, *scopes, replicas=2)
    await asyncio.gather(*(take(first, scope) for scope in scopes))
    second = await limiter_at(redis.url, *scopes, replicas=2)
    assert all(second._totals.of(scope) is not None for scope in scopes)


async def test_a_relay_alone_with_its_redis_keeps_no_list_for_others(limiter_at: Start, redis: RedisServer) -> None:
    limiter = await limiter_at(redis.url, ALICE)
    assert granted(await take(limiter, ALICE)) == 1
    assert redis.ask("EXISTS", "{relay}:recent") == b":0\r\n"


async def test_requests_that_may_be_lowered_share_what_is_left_to_the_last_token(limiter_at: Start, redis: RedisServer) -> None:
    scope = Scope(key="alice", limits=Limits(tpm=1_000))
    relays = [await limiter_at(redis.url, scope, replicas=2) for _ in range(2)]
    demand = Demand(scopes=(scope,), tokens=300, least=30)
    answers = await asyncio.gather(*(relays[number % 2].admit(demand) for number in range(20)))
    assert sorted(answer.demand.tokens for answer in answers if isinstance(answer, Grant)) == [100, 300, 300, 300]
    (refused, *_) = [answer for answer in answers if isinstance(answer, Refusal)]
    assert (refused.limit, refused.tokens and refused.tokens.remaining) == (Limit.TPM, 0)
