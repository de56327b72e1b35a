"""Slots are leases: what a killed worker held is free again within a second or so, and nothing else is."""

import asyncio
import fcntl
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.conftest import RelayWith
from tests.end_to_end.test_workers import CHAT, WITHIN, crew, gated, worker_of
from tests.fakes.client import RawClient
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.upstream import ScriptedUpstream

KEY = "sk-leases-0123456789abcdef"
STREAMS = 50


async def opened(relay: RelayProcess) -> RawClient | None:
    """Open a stream; None when it is refused, or met a worker that was just killed."""
    try:
        client = await relay.connect()
    except OSError:
        return None
    try:
        await client.post(CHAT, {"model": "gated", "stream": True}, [("Authorization", f"Bearer {KEY}")])
        if (await client.read_until(b"\r\n", within=WITHIN)).startswith(b"HTTP/1.1 200"):
            return client
    except (OSError, EOFError):
        pass
    await client.close()
    return None


async def test_slots_of_a_killed_worker_with_50_streams_come_back_within_the_lease(
    relay_with: RelayWith, upstream: ScriptedUpstream, record_property: Callable[[str, object], None]
) -> None:
    gate = asyncio.Event()
    upstream.route("gated", gated(gate))
    # The kernel deals connections out by a hash: streams come until one of the workers has its fifty.
    relay = await crew(relay_with, upstream, 2, keys={"many": {"key": KEY, "limits": {"concurrency": 2 * STREAMS}}})
    clients = [client for client in [await opened(relay) for _ in range(2 * STREAMS)] if client is not None]
    assert len(clients) == 2 * STREAMS
    owners = [worker_of(relay, client) for client in clients]
    victim, lost = Counter(owners).most_common(1)[0]
    assert lost >= STREAMS
    assert await opened(relay) is None, "all slots are taken"
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    again: list[RawClient] = []
    while len(again) < lost:
        assert time.monotonic() < killed_at + 2 * WITHIN, f"{len(again)} of {lost} came back"
        client = await opened(relay)
        if client is None:
            await asyncio.sleep(0.02)
        else:
            again.append(client)
            if len(again) == 1:
                record_property("seconds_until_slots_are_back", round(time.monotonic() - killed_at, 3))
    assert await opened(relay) is None, "those of the other worker are still held"
    gate.set()
    kept = [client for client, owner in zip(clients, owners, strict=True) if owner != victim]
    for client in (*kept, *again):
        assert (await client.read_response(within=WITHIN)).end == "complete"
    for client in (*clients, *again):
        await client.close()
    metrics = await relay.settled()
    assert metrics.value("relay_key_limit_used_ratio", key="many", limit="concurrency") == 0
    assert not metrics.nonzero("relay_invariant_violations_total")


async def test_a_stopped_process_that_has_the_lock_of_the_limits_delays_no_stream_and_is_told(
    relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    upstream.route("gated", gated(gate))
    config = config_for(upstream, state_dir=str(tmp_path / "state"), keys={"many": {"key": KEY, "limits": {"concurrency": 2}}})
    relay = await relay_with(config)
    client = await opened(relay)
    assert client is not None
    with (tmp_path / "state" / "limits").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = await relay.post(CHAT, {"model": "gated"}, (("Authorization", f"Bearer {KEY}"),))
        assert (refused.status, refused.header("retry-after")) == (503, b"1")
        gate.set()
        assert (await client.read_response(within=WITHIN)).end == "complete"
        await relay.wait_log("limits", result="stalled", within=WITHIN)
        assert (await relay.get("/readyz")).json()["limits"] == "degraded"
        assert (await relay.metrics()).value("relay_limiter_degraded") == 1
    await relay.wait_log("limits", result="shared", within=WITHIN)
    metrics = await relay.settled()
    assert metrics.value("relay_key_limit_used_ratio", key="many", limit="concurrency") == 0
    assert metrics.value("relay_limiter_degraded") == 0
    assert not metrics.nonzero("relay_invariant_violations_total")
    await client.close()
