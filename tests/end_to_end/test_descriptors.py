"""F42: descriptors run out. Connections are bounded well below that; should they run out all the same, running streams go on."""

import asyncio
import resource
from contextlib import AsyncExitStack

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.test_workers import CHAT, WHOLE, WITHIN, gated
from tests.fakes.relay import config_for
from tests.fakes.scripts import json_answer
from tests.fakes.upstream import ScriptedUpstream


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_when_descriptors_run_out_streams_go_on_and_others_are_served_once_there_are_some(
    relay_with: RelayWith, upstream: ScriptedUpstream, loop: str
) -> None:
    gate = asyncio.Event()
    upstream.route("gated", gated(gate))
    upstream.answers(json_answer({"id": "x"}))
    relay = await relay_with(config_for(upstream, server={"loop": loop, "max_connections": 500}), is_quiet=False)
    limits = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await relay.connect()) for _ in range(4)]
        for client in streams:
            await client.post(CHAT, {"model": "gated", "stream": True})
            await client.read_until(b'"a"', within=WITHIN)
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (relay.process.num_fds() + 2, limits[1]))
        others = [await stack.enter_async_context(await relay.connect()) for _ in range(20)]
        await asyncio.sleep(0.2)  # for the relay to find out: nothing tells
        assert relay.process.num_fds() <= resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)[0]
        gate.set()
        for client in streams:
            got = await client.read_response(within=WITHIN)
            assert (got.body, got.end) == (WHOLE, "complete")
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, limits)
        for client in others:
            await client.close()
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                if (await relay.post(CHAT, {"model": "x"})).status == 200:
                    break
            except (OSError, EOFError):
                await asyncio.sleep(0.05)
    await relay.settled()
