"""Limits of several relays on one Redis, while it is there: exact, whoever is asked, and nothing stays when all is over."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.test_limits import ALICE, ANSWER, CHAT, USED, Gate, ask, code_of, config
from tests.fakes.client import RawClient
from tests.fakes.events import content, role
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import EVENT_STREAM, body, json_answer
from tests.fakes.upstream import ScriptedUpstream
from tests.servers import RedisServer

PATIENT = "5s"
"""Where nothing is to fail, a machine that is busy shall not look like an outage."""
LEASE_SECONDS = 10.0
WITHIN = 20.0


async def two(relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer, **limits: Any) -> list[RelayProcess]:
    settings = {"url": redis.url, "replicas": 2, "timeout": PATIENT}
    return [await relay_with(config(upstream, limits=limits, redis=settings)) for _ in range(2)]


async def test_what_was_used_at_one_relay_is_missing_at_the_other(
    relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer
) -> None:
    upstream.answers(json_answer(ANSWER | USED))
    first, second = await two(relay_with, upstream, redis, tpm=1000, budget="60 tokens/day")
    assert (await ask(first, max_tokens=25)).status == 200
    await first.settled()
    answer = await ask(second, max_tokens=5)
    assert answer.status == 200
    told = {name.lower(): value for name, value in answer.headers}
    assert 900 < int(told[b"x-ratelimit-remaining-tokens"]) < 960, "30 were used there, and some are reserved here"
    await second.settled()
    assert code_of(await ask(first, max_tokens=25)) == "budget_exhausted", "30 and 30 were used of 60"
    await first.stop()
    third = await relay_with(config(upstream, limits={"budget": "60 tokens/day"}, redis=redis.url))
    assert code_of(await ask(third, max_tokens=1)) == "budget_exhausted", "a relay that comes later knows it too"


async def test_an_answer_is_clamped_to_what_another_relay_has_left(
    relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer
) -> None:
    upstream.answers(json_answer(ANSWER | {"usage": {"prompt_tokens": 400, "completion_tokens": 100, "total_tokens": 500}}))
    told = config(upstream, limits={"tpm": 1000}, redis={"url": redis.url, "replicas": 2, "timeout": PATIENT})
    told["routes"]["fast"] = {"to": "mine/m", "on_limit": "clamp"}
    first, second = [await relay_with(told) for _ in range(2)]
    answer = await ask(first, max_tokens=600)
    assert (answer.status, answer.header("x-relay-max-tokens")) == (200, None), "it fits"
    await first.settled()
    answer = await ask(second, max_tokens=600)
    lowered = int(answer.header("x-relay-max-tokens") or 0)
    assert 400 < lowered < 500, "500 are left, less the prompt"
    assert upstream.requests[1].json()["max_tokens"] == lowered
    assert answer.header("x-ratelimit-remaining-tokens") == b"0"


async def test_slots_of_a_killed_relay_come_back_with_their_lease(
    relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer
) -> None:
    upstream.answers(body([role(), content("a")], headers=EVENT_STREAM, end="hang"))
    first, second = await two(relay_with, upstream, redis, concurrency=2)
    clients = []
    for _ in range(2):
        client = await RawClient.open(first.port)
        asked = json.dumps({**CHAT, "stream": True}).encode()
        await client.request("POST", "/v1/chat/completions", [*ALICE, ("Content-Type", "application/json")], asked)
        await client.read_head()
        clients.append(client)
    upstream.answers(json_answer(ANSWER))
    assert code_of(await ask(second)) == "concurrency_limited"
    first.kill()
    killed_at = time.monotonic()
    while (await ask(second)).status != 200:
        assert time.monotonic() - killed_at < LEASE_SECONDS + WITHIN
        await asyncio.sleep(0.1)
    for client in clients:
        await client.close()


@pytest.mark.slow
async def test_a_stream_longer_than_its_lease_keeps_its_slot(relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer) -> None:
    upstream.answers(body([role(), content("a")], headers=EVENT_STREAM, end="hang"))
    first, second = await two(relay_with, upstream, redis, concurrency=1)
    client = await RawClient.open(first.port)
    asked = json.dumps({**CHAT, "stream": True}).encode()
    await client.request("POST", "/v1/chat/completions", [*ALICE, ("Content-Type", "application/json")], asked)
    await client.read_head()
    await asyncio.sleep(LEASE_SECONDS + 2)
    assert code_of(await ask(second)) == "concurrency_limited"
    await client.close()
    await first.settled()


async def test_settlements_of_a_relay_that_stops_arrive(relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer) -> None:
    gate = Gate()
    upstream.answers(gate.script)
    first, second = await two(relay_with, upstream, redis, concurrency=5, budget="1k tokens/day")
    asked = [asyncio.create_task(ask(first, max_tokens=100)) for _ in range(5)]
    await gate.until(5)
    stopping = asyncio.create_task(first.stop())
    gate.open()
    assert Counter(answer.status for answer in await asyncio.gather(*asked)) == {200: 5}
    await stopping
    assert b"150" in redis.ask("EVAL", "return redis.call('GET', redis.call('KEYS', '*:b:*')[1])", "0")
    assert (await ask(second)).status == 200, "no slot waits for its lease"


async def test_scripts_that_the_server_forgot_are_sent_again(relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer) -> None:
    upstream.answers(json_answer(ANSWER))
    relay = (await two(relay_with, upstream, redis, rpm=10))[0]
    assert (await ask(relay)).status == 200
    redis.ask("SCRIPT", "FLUSH")
    answers = await asyncio.gather(*(ask(relay) for _ in range(12)))
    assert Counter(answer.status for answer in answers) == {200: 9, 429: 3}
    assert (await relay.metrics()).value("relay_limiter_degraded") == 0


async def test_the_password_of_redis_is_told_nobody(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(json_answer(ANSWER))
    url = "redis://someone:made-up-password@127.0.0.1:1/0"
    relay = await relay_with(config(upstream, limits={"rpm": 10}, redis=url), is_quiet=False)
    assert (await ask(relay)).status == 200
    assert "made-up-password" not in relay.stderr()
    assert b"made-up-password" not in (await relay.get("/readyz")).body


async def test_every_key_of_redis_expires(relay_with: RelayWith, upstream: ScriptedUpstream, redis: RedisServer) -> None:
    upstream.answers(json_answer(ANSWER | USED))
    relay = (await two(relay_with, upstream, redis, rpm=10, tpm=1000, concurrency=2, budget="1k tokens/month"))[0]
    assert (await ask(relay, max_tokens=10)).status == 200
    await relay.settled()
    script = "local n = 0 for _, k in ipairs(redis.call('KEYS', '*')) do if redis.call('TTL', k) < 0 then n = n + 1 end end return n"
    assert redis.ask("EVAL", script, "0") == b":0\r\n"
    assert b"{relay}:alice:r" in redis.ask("KEYS", "*")
