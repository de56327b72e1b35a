"""An upstream's `limits: {concurrency}` over several workers: exact for all of them together, and no slot is lost with a worker."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.test_turns import Gate, queued
from tests.end_to_end.test_workers import CHAT, WITHIN, crew, gated, worker_of
from tests.fakes.client import RawClient
from tests.fakes.relay import RelayProcess
from tests.fakes.upstream import ScriptedUpstream

WORKERS = 2


def bounded(upstream: ScriptedUpstream, concurrency: int) -> dict[str, Any]:
    limits = {"concurrency": concurrency, "queue": 100, "queue_wait": "30s"}
    return {
        "upstreams": {"narrow": {"base_url": upstream.url, "api_key": "sk-narrow", "limits": limits}},
        "routes": {"fast": "narrow/m"},
    }


async def asked(relay: RelayProcess, stack: AsyncExitStack) -> RawClient:
    client = await stack.enter_async_context(await relay.connect())
    await client.post(CHAT, {"model": "fast", "stream": True})
    return client


async def owner(relay: RelayProcess, client: RawClient) -> int:
    """The worker that has a connection, once it has accepted it."""
    async with asyncio.timeout(WITHIN):
        while True:
            with contextlib.suppress(AssertionError):
                return worker_of(relay, client)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_all_workers_together_call_no_more_than_the_limit_and_each_may_use_all_of_it(
    relay_with: RelayWith, upstream: ScriptedUpstream, concurrency: int
) -> None:
    gate = Gate()
    upstream.answers(gate)
    relay = await crew(relay_with, upstream, WORKERS, **bounded(upstream, concurrency))
    async with AsyncExitStack() as stack:
        clients: list[RawClient] = []
        owners: set[int] = set()
        # The kernel deals connections out by a hash: some come to each worker sooner or later.
        while len(clients) < 6 or len(owners) < WORKERS:
            clients.append(await asked(relay, stack))
            owners.add(await owner(relay, clients[-1]))
        await upstream.wait_for("m", concurrency, within=WITHIN)
        await queued(relay, len(clients) - concurrency)
        assert gate.current == concurrency
        gate.opened.set()
        for client in clients:
            assert (await client.read_response(within=WITHIN)).status == 200
        assert gate.most == concurrency
        await relay.settled()
        await relay.assert_identities()
        # Nothing is left taken: all of it is to be had again.
        gate.opened.clear()
        again = [await asked(relay, stack) for _ in range(concurrency)]
        await upstream.wait_for("m", len(clients) + concurrency, within=WITHIN)
        gate.opened.set()
        for client in again:
            assert (await client.read_response(within=WITHIN)).status == 200


async def test_the_slots_of_a_killed_worker_go_to_those_who_wait_in_another(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    gate = asyncio.Event()
    upstream.route("m", gated(gate))
    relay = await crew(relay_with, upstream, WORKERS, **bounded(upstream, 2))
    async with AsyncExitStack() as stack:
        holding = [await asked(relay, stack) for _ in range(2)]
        for client in holding:
            assert (await client.read_head(within=WITHIN)).status == 200
        victim, lost = Counter([await owner(relay, client) for client in holding]).most_common(1)[0]
        waiting: list[RawClient] = []
        survivors: list[RawClient] = []
        while len(survivors) < lost:
            waiting.append(await asked(relay, stack))
            if await owner(relay, waiting[-1]) != victim:
                survivors.append(waiting[-1])
        await queued(relay, len(waiting))
        os.kill(victim, signal.SIGKILL)
        for client in survivors:
            assert (await client.read_head(within=WITHIN)).status == 200
        gate.set()
