"""However many processes share a limit, and whatever they share it by: exactly as many get through as may, round after round."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.test_limits import ANSWER, AT_ONCE, USED, Gate, ask, code_of, config
from tests.end_to_end.test_limits_redis import PATIENT
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import json_answer
from tests.fakes.upstream import ScriptedUpstream
from tests.servers import RedisServer

ROUNDS = [3, pytest.param(20, marks=pytest.mark.slow)]
SHARED = [
    pytest.param(1, 4, False, id="four workers"),
    pytest.param(1, 2, True, id="two workers on redis"),
    pytest.param(2, 1, True, id="two relays on redis"),
    pytest.param(2, 2, True, id="two relays of two workers on redis", marks=pytest.mark.slow),
]
WITHIN = 20.0
RPM, SLOTS, CALLERS = 100, 10, 60


async def sharing(
    relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer, shape: tuple[int, int, bool], keys: dict[str, Any]
) -> list[RelayProcess]:
    relays, workers, has_redis = shape
    told = config(upstream, server={"workers": workers})
    told["keys"] = {name: {"key": f"sk-{name}", "limits": limits} for name, limits in keys.items()}
    if has_redis:
        told["redis"] = {"url": redis.url, "replicas": relays, "timeout": PATIENT}
    return [await relay_with(told) for _ in range(relays)]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize(("relays", "workers", "has_redis"), SHARED)
async def test_of_400_at_once_exactly_100_get_in_and_no_more_than_10_run_at_once(
    relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer, relays: int, workers: int, has_redis: bool, rounds: int
) -> None:
    keys = {"alice": {"concurrency": SLOTS}, **{f"key-{number}": {"rpm": RPM} for number in range(rounds)}}
    started = await sharing(relay_with, upstream, redis, (relays, workers, has_redis), keys)
    for number in range(rounds):
        await let_exactly_the_limit_in(started, upstream, f"sk-key-{number}")
        await let_no_more_run(started, upstream)
        async with asyncio.timeout(WITHIN):
            while redis.ask("ZCARD", "{relay}:alice:l") != b":0\r\n":  # what one relay has given back may be on its way
                await asyncio.sleep(0.01)
    for relay in started:
        await relay.assert_identities()
        assert (await relay.metrics()).value("relay_limiter_degraded") == 0


async def let_exactly_the_limit_in(started: list[RelayProcess], upstream: ScriptedUpstream, key: str) -> None:
    before = len(upstream.requests)
    upstream.answers(json_answer(ANSWER | USED))
    bearer = (("Authorization", f"Bearer {key}"),)
    answers = await asyncio.gather(*(ask(started[turn % len(started)], bearer) for turn in range(AT_ONCE)))
    assert Counter(answer.status for answer in answers) == {200: RPM, 429: AT_ONCE - RPM}
    assert {code_of(answer) for answer in answers if answer.status == 429} == {"rate_limit_rpm"}
    assert len(upstream.requests) == before + RPM


async def let_no_more_run(started: list[RelayProcess], upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.answers(gate.script)
    asked = [asyncio.create_task(ask(started[turn % len(started)])) for turn in range(CALLERS)]
    await gate.until(SLOTS)
    while sum(task.done() for task in asked) < CALLERS - SLOTS:
        await asyncio.wait([task for task in asked if not task.done()], return_when=asyncio.FIRST_COMPLETED, timeout=WITHIN)
    gate.open()
    assert Counter(answer.status for answer in await asyncio.gather(*asked)) == {200: SLOTS, 429: CALLERS - SLOTS}
    assert gate.most == SLOTS
    for relay in started:
        await relay.settled()
