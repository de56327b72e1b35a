"""Several workers behind one address: all serve, one may die, and from outside they are one relay."""

import asyncio
import os
import random
import signal
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil

from relay.workers.restarts import GIVE_UP_DEATHS
from tests.conftest import RelayWith
from tests.fakes.client import RawClient, Response
from tests.fakes.events import DONE, chat_chunk, chat_stream, content, role
from tests.fakes.ports import free_port
from tests.fakes.relay import Metrics, RelayProcess, config_for
from tests.fakes.scripts import EVENT_STREAM, Script, head, json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
WITHIN = 15.0
"""Starting an interpreter takes a second on a machine of its own, and ten when others want it too."""


def several(upstream: ScriptedUpstream, workers: int | str = 2, **more: Any) -> dict[str, Any]:
    server = {"workers": workers, **more.pop("server", {})}
    return config_for(upstream, server=server, **more)


def children(relay: RelayProcess) -> list[psutil.Process]:
    return relay.process.children()


def worker_of(relay: RelayProcess, client: RawClient) -> int:
    """The process id of the worker that a connection ended up with."""
    port = client.transport.get_extra_info("sockname")[1]
    for child in children(relay):
        if any(each.raddr and each.raddr.port == port for each in child.net_connections("tcp")):
            return child.pid
    raise AssertionError("no worker has this connection")


def gated(gate: asyncio.Event) -> Script:
    """A stream that begins at once and ends when the gate opens."""

    async def script(peer: Peer) -> None:
        await peer.send(head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]))
        await peer.send_chunk(role() + content("a"))
        await gate.wait()
        await peer.send_chunk(content("b") + chat_chunk(finish="stop") + DONE)
        await peer.send(b"0\r\n\r\n")

    return script


WHOLE = b"".join(chat_stream("a", "b"))


async def open_streams(relay: RelayProcess, stack: AsyncExitStack, count: int, model: str = "gated") -> list[RawClient]:
    clients = [await stack.enter_async_context(await relay.connect()) for _ in range(count)]
    for client in clients:
        await client.post(CHAT, {"model": model, "stream": True})
    await asyncio.gather(*(client.read_until(b'"a"', within=WITHIN) for client in clients))
    return clients


async def ready(relay: RelayProcess, count: int, within: float = WITHIN) -> None:
    """Wait until so many workers are ready."""
    deadline = time.monotonic() + within
    while True:
        answer = await relay.get("/readyz")
        if answer.status == 200 and answer.json()["workers"]["ready"] == count:
            return
        assert time.monotonic() < deadline, answer.body
        await asyncio.sleep(0.05)


async def crew(relay_with: RelayWith, upstream: ScriptedUpstream, workers: int, **more: Any) -> RelayProcess:
    """Start a relay and wait until all of its workers serve."""
    relay = await relay_with(several(upstream, workers, **more))
    await relay.wait_log("worker_ready", count=workers, within=WITHIN)
    return relay


async def started(relay: RelayProcess, *, besides: int) -> int:
    """Wait until there is a process of the other worker's, ready or not; return its id."""
    async with asyncio.timeout(WITHIN):
        while True:
            for child in children(relay):
                if child.pid != besides and child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                    return child.pid
            await asyncio.sleep(0.02)


async def gone(*pids: int, within: float = WITHIN) -> None:
    deadline = time.monotonic() + within
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if psutil.pid_exists(pid)]
        await asyncio.sleep(0.05)


async def refused(relay: RelayProcess) -> None:
    """Wait until new connections are refused."""
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                await (await relay.connect()).close()
            except ConnectionError:
                return
            await asyncio.sleep(0.02)


def folders(pid: int) -> list[Path]:
    """The folders that a supervisor and its workers share."""
    return [path for place in ("/dev/shm", tempfile.gettempdir()) for path in Path(place).glob(f"relay-{pid}-*")]


async def test_all_workers_answer_and_are_one_relay_from_outside(relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(json_answer({"id": "x"}))
    relay = await crew(relay_with, upstream, 4)
    assert len(children(relay)) == 4
    for _ in range(60):
        assert (await relay.post(CHAT, {"model": "a"})).status == 200
    metrics = await relay.settled()
    assert metrics.sum("relay_requests_total", outcome="complete") == 60
    assert (metrics.value("relay_workers", state="ready"), metrics.value("relay_workers", state="starting")) == (4, 0)
    assert {worker for worker in "0123" if metrics.has("process_cpu_seconds_total", worker=worker)} == set("0123")
    assert metrics.has("process_cpu_seconds_total", worker="supervisor")
    assert (await relay.get("/readyz")).json() == {"status": "ready", "workers": {"ready": 4, "total": 4}}
    assert {line["worker"] for line in relay.logs("request")} == {0, 1, 2, 3}
    await relay.assert_identities()
    second = RelayProcess(several(upstream, 2, server={"listen": f"127.0.0.1:{relay.port}"}), tmp_path / "second")
    (tmp_path / "second").mkdir()
    second.launch()
    assert await second.wait_exit() == 1
    assert "cannot listen on" in second.stderr()


async def test_killed_worker_takes_its_own_streams_with_it_and_no_other(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    gate = asyncio.Event()
    upstream.route("gated", gated(gate))
    upstream.answers(json_answer({"id": "x"}))
    relay = await crew(relay_with, upstream, 2)
    for _ in range(10):
        await relay.post(CHAT, {"model": "a"})
    counted = (await relay.settled()).sum("relay_requests_total", outcome="complete")
    async with AsyncExitStack() as stack:
        clients = await open_streams(relay, stack, 24)
        owners = [worker_of(relay, client) for client in clients]
        victim = owners[0]
        assert (await relay.metrics()).sum("relay_requests_in_flight") == 24
        os.kill(victim, signal.SIGKILL)
        cut = [client for client, owner in zip(clients, owners, strict=True) if owner == victim]
        kept = [client for client, owner in zip(clients, owners, strict=True) if owner != victim]
        assert cut and kept
        for client in cut:
            assert (await client.read_response(within=WITHIN)).end != "complete"
        ended = await relay.wait_log("worker_ended", within=WITHIN)
        assert (ended[0]["reason"], ended[0]["code"]) == ("killed", -9)
        await ready(relay, 2)
        assert victim not in {child.pid for child in children(relay)}
        gate.set()
        for client in kept:
            got = await client.read_response(within=WITHIN)
            assert (got.body, got.end) == (WHOLE, "complete")
    metrics = await relay.settled()
    assert metrics.sum("relay_requests_total", outcome="complete") == counted + len(kept)
    assert metrics.value("relay_worker_exits_total", reason="killed") == 1
    assert (await relay.post(CHAT, {"model": "a"})).status == 200


def counters(metrics: Metrics) -> dict[Any, float]:
    return {key: value for key, value in metrics._samples.items() if key[0].endswith(("_total", "_count", "_bucket", "_sum"))}


async def test_counters_never_go_back_while_workers_are_killed(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(json_answer({"id": "x"}))
    port = free_port()
    relay = await crew(relay_with, upstream, 3, metrics={"listen": f"127.0.0.1:{port}"})
    chance = random.Random(1)
    is_over = False

    async def ask() -> None:
        while not is_over:
            try:
                await relay.post(CHAT, {"model": chance.choice("ab")})
            except (OSError, EOFError, AssertionError):
                continue  # its worker was killed

    async def scrape() -> Metrics:
        async with await RawClient.open(port) as client:
            await client.request("GET", "/metrics", [("Connection", "close")])
            return Metrics.parse((await client.read_response(method="GET", within=WITHIN)).body.decode())

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        before = await scrape()
        for number in range(40):
            if number % 15 == 0 and (alive := children(relay)):
                chance.choice(alive).kill()
            after = await scrape()
            went_back = {
                key: (value, counters(after).get(key))
                for key, value in counters(before).items()
                if not key[0].startswith(("process_", "python_")) and counters(after).get(key, -1.0) < value
            }
            assert not went_back
            before = after
            await asyncio.sleep(0.02)
        is_over = True
    assert before.sum("relay_requests_total", outcome="complete") > 0
    assert before.value("relay_worker_exits_total", reason="killed") >= 2


async def test_termination_drains_every_worker(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    gate = asyncio.Event()
    upstream.route("gated", gated(gate))
    port = free_port()
    relay = await crew(relay_with, upstream, 2, server={"drain": "30s"}, metrics={"listen": f"127.0.0.1:{port}"})
    pids = [child.pid for child in children(relay)]
    pid = relay.pid
    assert [path.stat().st_mode & 0o777 for path in folders(pid)] == [0o700]

    async def look(path: str) -> Response:
        async with await RawClient.open(port) as client:
            await client.request("GET", path, [("Connection", "close")])
            return await client.read_response(method="GET", within=WITHIN)

    async with AsyncExitStack() as stack:
        clients = await open_streams(relay, stack, 12)
        assert len({worker_of(relay, client) for client in clients}) == 2
        os.kill(relay.pid, signal.SIGTERM)
        await refused(relay)
        assert ((await look("/readyz")).status, (await look("/healthz")).status) == (503, 200)
        assert Metrics.parse((await look("/metrics")).body.decode()).sum("relay_requests_in_flight") == 12
        gate.set()
        for client in clients:
            got = await client.read_response(within=WITHIN)
            assert (got.body, got.end) == (WHOLE, "complete")
    assert await relay.wait_exit() == 0
    await gone(*pids)
    assert folders(pid) == []
    assert [line["outcome"] for line in relay.logs("request")] == ["complete"] * 12
    relay.assert_quiet()


async def test_second_signal_hurries_every_worker(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.route("gated", sse([role(), content("a")], end="hang"))
    relay = await crew(relay_with, upstream, 2, server={"drain": "60s", "loop": "asyncio"})
    pids = [child.pid for child in children(relay)]
    async with AsyncExitStack() as stack:
        clients = await open_streams(relay, stack, 8)
        os.kill(relay.pid, signal.SIGTERM)
        await refused(relay)
        os.kill(relay.pid, signal.SIGTERM)
        for client in clients:
            got = await client.read_response(within=WITHIN)
            assert (got.end, got.has_done) == ("cut", False)
    assert await relay.wait_exit() == 0
    await gone(*pids)
    assert {line["outcome"] for line in relay.logs("request")} == {"drained"}


async def reload(relay: RelayProcess, config: dict[str, Any] | str, *, result: str) -> dict[str, Any]:
    count = len(relay.logs("reload", result=result))
    if isinstance(config, str):
        relay.config_file.write_text(config)
    else:
        relay.write_config(config)
    os.kill(relay.pid, signal.SIGHUP)
    return (await relay.wait_log("reload", count=count + 1, within=WITHIN, result=result))[-1]


async def served(relay: RelayProcess, count: int = 24) -> set[object]:
    """What so many connections of their own are answered: enough to meet every worker."""
    answers = await asyncio.gather(*(relay.post(CHAT, {"model": "name"}) for _ in range(count)))
    return {answer.json().get("id") or answer.error_code for answer in answers}


async def test_reload_is_taken_by_all_workers_or_by_none(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    for model in ("old", "new", "newer"):
        upstream.route(model, json_answer({"id": model}))
    relay = await crew(relay_with, upstream, 2, routes={"name": "mine/old"})
    pids = {child.pid for child in children(relay)}
    assert await served(relay) == {"old"}
    await reload(relay, several(upstream, 2, routes={"name": "mine/new"}), result="ok")
    assert await served(relay) == {"new"}
    line = await reload(relay, "upstreams: {", result="refused")
    assert "worker" not in line
    assert await served(relay) == {"new"}
    assert (await relay.metrics()).value("relay_config_last_reload_successful") == 0
    await reload(relay, several(upstream, 4, routes={"name": "mine/newer"}), result="ok")
    assert await served(relay) == {"newer"}
    assert {child.pid for child in children(relay)} == pids
    assert (await relay.metrics()).value("relay_config_last_reload_successful") == 1
    assert any("server.workers cannot change" in line.get("message", "") for line in relay.logs("reload"))
    assert not any("listen" in line.get("message", "") for line in relay.logs("reload"))
    victim = children(relay)[0]
    victim.kill()
    await relay.wait_log("worker_ready", count=3, within=WITHIN)
    assert await served(relay) == {"newer"}, "a worker that is started later has the new configuration"


async def test_worker_whose_start_a_reload_overtakes_changes_over_and_cuts_nobody(
    relay_with: RelayWith, upstream: ScriptedUpstream
) -> None:
    for model in ("old", "new"):
        upstream.route(model, json_answer({"id": model}))
    relay = await crew(relay_with, upstream, 2, routes={"name": "mine/old"})
    children(relay)[0].kill()
    await relay.wait_log("worker_ended", within=WITHIN)
    await reload(relay, several(upstream, 2, routes={"name": "mine/new"}), result="ok")
    await relay.wait_log("worker_ready", count=3, within=WITHIN)
    assert await served(relay) == {"new"}
    assert [line["reason"] for line in relay.logs("worker_ended")] == ["killed"]


async def test_worker_without_a_supervisor_lets_its_streams_finish_and_ends(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    gate = asyncio.Event()
    upstream.route("gated", gated(gate))
    relay = RelayProcess(several(upstream, 2), tmp_path)
    await relay.start()
    await relay.wait_log("worker_ready", count=2, within=WITHIN)
    pids = [child.pid for child in children(relay)]
    pid = relay.pid
    async with AsyncExitStack() as stack:
        clients = await open_streams(relay, stack, 6)
        relay.kill()
        gate.set()
        for client in clients:
            got = await client.read_response(within=WITHIN)
            assert (got.body, got.end) == (WHOLE, "complete")
    await gone(*pids)
    assert folders(pid) == []


async def test_stopped_worker_makes_neither_readiness_nor_metrics_wait_for_ever(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    port = free_port()
    relay = await crew(relay_with, upstream, 2, metrics={"listen": f"127.0.0.1:{port}"})
    frozen = children(relay)[0]
    frozen.suspend()
    try:
        async with await RawClient.open(port) as client:
            await client.request("GET", "/metrics", [("Connection", "close")])
            answer = await client.read_response(method="GET", within=WITHIN)
        assert answer.status == 200
        assert Metrics.parse(answer.body.decode()).has("relay_requests_in_flight")
    finally:
        frozen.resume()


KEYS = {"alice": {"key": "sk-alice-0123456789abcdef"}, "bob": {"key": "sk-bob-0123456789abcdef"}}


def auth(name: str) -> tuple[tuple[str, str], ...]:
    return (("Authorization", f"Bearer {KEYS[name]['key']}"),)


async def test_id_that_one_worker_saw_made_is_known_to_all_and_to_its_maker_only(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    async with ScriptedUpstream() as other:
        config = several(upstream, 2, routes={"name": "other/name", "*": "mine/*"}, keys=KEYS)
        config["upstreams"]["other"] = {"base_url": other.url, "api_key": "sk-other"}
        relay = await relay_with(config)
        await relay.wait_log("worker_ready", count=2, within=WITHIN)
        other.answers(json_answer({"id": "resp_1", "object": "response", "status": "completed"}))

        async def statuses(name: str, object_id: str) -> set[int]:
            answers = []
            for _ in range(12):
                async with await relay.connect() as client:
                    await client.request("GET", f"/v1/responses/{object_id}", [*auth(name), ("Connection", "close")])
                    answers.append(await client.read_response(method="GET"))
            return {answer.status for answer in answers}

        assert (await relay.post("/v1/responses", {"model": "name", "input": "hi"}, auth("alice"))).status == 200
        assert await statuses("alice", "resp_1") == {200}
        assert await statuses("bob", "resp_1") == {404}
        assert await statuses("alice", "resp_2") == {404}
        # Whoever hears of an id later does not take it over, whichever worker that is.
        for _ in range(6):
            await relay.post("/v1/responses", {"model": "name", "input": "hi"}, auth("bob"))
        assert await statuses("bob", "resp_1") == {404}
        for child in children(relay):
            child.kill()
        await relay.wait_log("worker_ready", count=4, within=WITHIN)
        assert await statuses("alice", "resp_1") == {200}
        assert not upstream.requests


async def test_worker_that_keeps_dying_is_started_ever_later_while_the_other_one_serves_until_that_is_hopeless(
    relay_with: RelayWith, upstream: ScriptedUpstream
) -> None:
    """F40: the fifth death within a minute ends the relay as a failure, once the streams of the others are over."""
    gate = asyncio.Event()
    upstream.route("gated", gated(gate))
    upstream.answers(json_answer({"id": "x"}))
    relay = await crew(relay_with, upstream, 2)
    async with AsyncExitStack() as stack:
        clients = await open_streams(relay, stack, 12)
        owners = [worker_of(relay, client) for client in clients]
        pids = {line["worker"]: line["pid"] for line in relay.logs("worker_ready")}
        kept = [client for client, owner in zip(clients, owners, strict=True) if owner == pids[1]]
        assert kept
        victim = pids[0]
        for count in range(1, GIVE_UP_DEATHS + 1):
            os.kill(victim, signal.SIGKILL)
            await relay.wait_log("worker_ended", count=count, within=WITHIN)
            if count == GIVE_UP_DEATHS:
                break
            assert (await relay.get("/readyz")).json()["status"] == "degraded"
            assert (await relay.post(CHAT, {"model": "a"})).status == 200
            victim = await started(relay, besides=pids[1])
        (line,) = await relay.wait_log("gave_up", within=WITHIN)
        assert line["worker"] == 0 and "drains and ends" in line["message"]
        await refused(relay)
        assert relay.is_alive, "streams of the other worker are not over"
        gate.set()
        for client in kept:
            got = await client.read_response(within=WITHIN)
            assert (got.body, got.end) == (WHOLE, "complete")
    assert await relay.wait_exit() == 1
    assert "a worker died over and over" in relay.stderr()
    waits = [line.get("restart_ms") for line in relay.logs("worker_ended", worker=0)]
    assert waits[-1] is None
    assert all(50 * 2**n <= wait <= 100 * 2**n for n, wait in enumerate(waits[:-1]))
    relay.kill()
