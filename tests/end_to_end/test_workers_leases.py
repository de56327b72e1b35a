"""Slots are leases: what a killed worker held is free again within a second or so, and nothing else is."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.conftest import RelayWith
from tests.end_to_end.test_workers import CHAT, WITHIN, crew, gated, several, worker_of
from tests.fakes.client import RawClient
from tests.fakes.relay import RelayProcess
from tests.fakes.upstream import ScriptedUpstream
from tests.stores.test_host import workers

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


async def test_while_a_process_is_stopped_with_the_lock_of_the_limits_each_worker_admits_its_part_and_no_stream_waits(
    relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    upstream.route("gated", gated(gate))
    slots = 16
    state = tmp_path / "state"
    config = several(upstream, 3, state_dir=str(state), keys={"many": {"key": KEY, "limits": {"concurrency": slots}}})
    relay = await relay_with(config)
    await relay.wait_log("worker_ready", count=3, within=WITHIN)
    client = await opened(relay)
    assert client is not None
    with workers(state, 1, concurrency=1) as (other,):
        assert (other.ask("admit 1"), other.ask("die")) == (1, 0)
        other.process.send_signal(signal.SIGSTOP)
        # Four processes share the limit: of the fifteen slots left each may give away three.
        more = [await opened(relay) for _ in range(4 * slots)]
        let_in = [each for each in more if each is not None]
        owners = Counter(worker_of(relay, each) for each in let_in)
        assert len(let_in) == 9 and max(owners.values()) == 3, owners
        refused = await relay.post(CHAT, {"model": "gated"}, (("Authorization", f"Bearer {KEY}"),))
        assert (refused.status, refused.header("retry-after"), refused.error_code) == (429, b"1", "concurrency_limited")
        await relay.wait_log("limits", result="degraded", count=3, within=WITHIN)
        assert (await relay.get("/readyz")).json()["limits"] == "degraded"
        assert (await relay.metrics()).value("relay_limiter_degraded") >= 1
        gate.set()
        for each in (client, *let_in):
            assert (await each.read_response(within=WITHIN)).end == "complete"
    # The stopped process is dead, and what it held is free.
    await relay.wait_log("limits", result="shared", count=3, within=WITHIN)
    metrics = await relay.settled(within=WITHIN)
    assert metrics.value("relay_key_limit_used_ratio", key="many", limit="concurrency") == 0
    assert metrics.value("relay_limiter_degraded") == 0
    assert not metrics.nonzero("relay_invariant_violations_total")
    assert (len(relay.logs("limits", result="degraded")), len(relay.logs("limits", result="shared"))) == (3, 3), "one line for each change"
    again = [await opened(relay) for _ in range(slots)]
    assert None not in again
    for each in (client, *let_in, *again):
        if each is not None:
            await each.close()
