"""A new configuration file on SIGHUP: taken whole or refused whole, and never felt by what is under way."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import RelayWith
from tests.fakes.client import RawClient
from tests.fakes.events import DONE, chat_stream
from tests.fakes.ports import free_port
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import hang, json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
WITHIN = 15.0


def named(upstream: ScriptedUpstream, model: str, **more: object) -> dict[str, Any]:
    """A configuration in which `name` is one model of the upstream."""
    return config_for(upstream, **{"routes": {"name": f"mine/{model}"}, **more})


async def reload(relay: RelayProcess, config: dict[str, Any] | str, *, result: str) -> dict[str, Any]:
    """Put a file in place, signal, and wait for the line that says how it went."""
    count = len(relay.logs("reload", result=result))
    if isinstance(config, str):
        relay.config_file.write_text(config)
    else:
        relay.write_config(config)
    os.kill(relay.pid, signal.SIGHUP)
    return (await relay.wait_log("reload", count=count + 1, within=WITHIN, result=result))[-1]


async def answer(relay: RelayProcess, model: str = "name", key: str | None = None) -> tuple[int, object]:
    got = await relay.post(CHAT, {"model": model}, (("Authorization", f"Bearer {key}"),) if key else ())
    return got.status, got.json().get("id") or got.error_code


def answers(upstream: ScriptedUpstream, *models: str) -> None:
    for model in models:
        upstream.route(model, json_answer({"id": model}))


async def test_new_requests_use_the_new_file_and_a_running_stream_is_untouched(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "old", "new")
    events = chat_stream("a", "b", "c", "d")
    upstream.route("old-stream", sse(events, pause=0.2))
    relay = await relay_with(named(upstream, "old", routes={"name": "mine/old", "stream": "mine/old-stream"}))
    before = await relay.metrics()
    async with await relay.connect() as client:
        await client.post(CHAT, {"model": "stream", "stream": True})
        await client.read_until(b'"a"')
        assert await answer(relay) == (200, "old")
        line = await reload(relay, named(upstream, "new"), result="ok")
        assert await answer(relay) == (200, "new")
        assert await answer(relay, "stream") == (404, "model_not_found")
        got = await client.read_response()
    assert (got.body, got.end) == (b"".join(events), "complete")
    assert (line["routes"], line["upstreams"]) == (1, 1)
    after = await relay.metrics()
    assert after.value("relay_config_last_reload_successful") == 1
    stamp = "relay_config_last_reload_success_timestamp_seconds"
    assert before.value(stamp) < after.value(stamp) <= time.time()
    await relay.assert_identities()


async def test_a_backup_that_a_reload_takes_out_still_answers_what_it_was_started_for(
    relay_with: RelayWith, upstream: ScriptedUpstream
) -> None:
    answers(upstream, "slow", "quick")
    hedged = {"to": ["mine/slow", "mine/quick"], "hedge": {"after": "100ms", "at_most": "50%"}}
    relay = await relay_with(named(upstream, "old", routes={"name": hedged}))
    for _ in range(2):
        assert await answer(relay) == (200, "slow")
    began = asyncio.Event()

    async def late(peer: Peer) -> None:
        await began.wait()
        await json_answer({"id": "quick"})(peer)

    upstream.route("slow", hang())
    upstream.route("quick", late)
    asked = asyncio.create_task(answer(relay))
    await upstream.wait_for("quick", within=WITHIN)
    await reload(relay, named(upstream, "new"), result="ok")
    began.set()
    assert await asked == (200, "quick")
    metrics = await relay.settled()
    assert metrics.value("relay_hedges_total", won="true") == 1
    await relay.assert_identities()


async def test_connection_that_stays_open_uses_the_new_file_too(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "old", "new")
    relay = await relay_with(named(upstream, "old"))
    async with await relay.connect() as client:
        assert (await client.exchange(CHAT, {"model": "name"})).json()["id"] == "old"
        await reload(relay, named(upstream, "new"), result="ok")
        assert (await client.exchange(CHAT, {"model": "name"})).json()["id"] == "new"


async def test_invalid_file_leaves_the_old_one_in_force_and_says_why(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "old", "new")
    relay = await relay_with(named(upstream, "old"))
    secret = "sk-CANARY-reload-0123456789"
    bad = {**named(upstream, "new"), "rutes": {}, "keys": {"alice": {"key": secret, "colour": "red"}}}
    line = await reload(relay, bad, result="refused")
    assert "rutes" in line["message"] and "colour" in line["message"] and str(relay.config_file) in line["message"]
    assert line["level"] == "error"
    assert await answer(relay) == (200, "old")
    assert (await relay.metrics()).value("relay_config_last_reload_successful") == 0
    for broken in ("routes: [", "", "\x00"):
        await reload(relay, broken, result="refused")
        assert await answer(relay) == (200, "old")
    relay.config_file.unlink()
    os.kill(relay.pid, signal.SIGHUP)
    await relay.wait_log("reload", count=5, within=WITHIN, result="refused")
    assert await answer(relay) == (200, "old")
    await reload(relay, named(upstream, "new"), result="ok")
    assert await answer(relay) == (200, "new")
    assert (await relay.metrics()).value("relay_config_last_reload_successful") == 1
    assert secret not in relay.stderr()


async def test_keys_change_at_once(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "old")
    relay = await relay_with(named(upstream, "old", keys={"alice": {"key": "sk-first"}}))
    assert await answer(relay, key="sk-first") == (200, "old")
    await reload(relay, named(upstream, "old", keys={"alice": {"key": "sk-second"}}), result="ok")
    assert await answer(relay, key="sk-first") == (401, "invalid_api_key")
    assert await answer(relay, key="sk-second") == (200, "old")


async def test_upstream_that_moves_is_called_at_its_new_address(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "old")
    async with ScriptedUpstream() as other:
        answers(other, "old")
        relay = await relay_with(named(upstream, "old"))
        await answer(relay)
        await reload(relay, named(other, "old"), result="ok")
        await answer(relay)
        assert (len(upstream.of("old")), len(other.of("old"))) == (1, 1)
        await upstream.wait_open_count(0)
        assert other.of("old")[0].header("authorization") == b"Bearer sk-upstream"


async def test_demo_upstream_can_come_with_a_reload(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_with(named(upstream, "old"))
    await reload(relay, {"upstreams": {"demo": {"kind": "demo"}}, "routes": {"demo/*": "demo/*"}}, result="ok")
    got = await relay.post(CHAT, {"model": "demo/demo-fast", "messages": [{"role": "user", "content": "say: hello"}]})
    assert b"hello" in got.body


async def test_listener_cannot_move_and_that_is_said(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "new")
    relay = await relay_with(named(upstream, "old"))
    moved = {**relay.config, "server": {"listen": "127.0.0.1:1"}, "routes": {"name": "mine/new"}}
    await reload(relay, yaml.safe_dump(moved), result="ok")
    assert any("server.listen" in line.get("message", "") for line in relay.logs("reload", level="warning"))
    assert await answer(relay) == (200, "new")


async def test_newest_file_wins_in_a_burst_of_signals(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    models = [f"burst-{number}" for number in range(20)]
    answers(upstream, "old", *models)
    relay = await relay_with(named(upstream, "old"))
    # Long files take long to read: what was read first must not be swapped in last.
    many = {f"filler-{number}": "mine/filler" for number in range(300)}
    for number, model in enumerate(models):
        filler = many if number % 2 == 0 and model != models[-1] else {}
        temporary = relay.config_file.with_suffix(".new")
        relay.write_config(named(upstream, model, routes={"name": f"mine/{model}", **filler}))
        relay.config_file.rename(temporary)
        temporary.rename(relay.config_file)
        os.kill(relay.pid, signal.SIGHUP)
        await asyncio.sleep(0.005)
    deadline = time.monotonic() + WITHIN
    while await answer(relay) != (200, models[-1]):
        assert time.monotonic() < deadline, relay.stderr()[-2000:]
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    assert await answer(relay) == (200, models[-1])


async def test_reloads_under_load_disturb_nobody(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "one", "two")
    events = chat_stream("a", "b")
    for model in ("one", "two"):
        upstream.route(f"{model}-stream", sse(events, pause=0.01))
    configs = [named(upstream, model, routes={"name": f"mine/{model}", "stream": f"mine/{model}-stream"}) for model in ("one", "two")]
    relay = await relay_with(configs[0])
    await answer(relay)
    descriptors = len(os.listdir(f"/proc/{relay.pid}/fd"))
    stop = asyncio.Event()
    done = 0

    async def ask(client: RawClient) -> None:
        nonlocal done
        while not stop.is_set():
            whole = await client.exchange(CHAT, {"model": "name"})
            assert (whole.status, whole.json()["id"]) in [(200, "one"), (200, "two")]
            stream = await client.exchange(CHAT, {"model": "stream", "stream": True})
            assert (stream.body, stream.end, stream.body.endswith(DONE)) == (b"".join(events), "complete", True)
            done += 1

    async with asyncio.TaskGroup() as group:
        clients = [await relay.connect() for _ in range(8)]
        for client in clients:
            group.create_task(ask(client))
        for number in range(20):
            await reload(relay, configs[number % 2], result="ok")
            if number % 5 == 0:
                await reload(relay, "upstreams: nonsense", result="refused")
        await reload(relay, configs[1], result="ok")
        stop.set()
    for client in clients:
        await client.close()
    assert done > 8
    assert await answer(relay) == (200, "two")
    assert {line["outcome"] for line in relay.logs("request")} == {"complete"}
    await relay.assert_identities()
    deadline = time.monotonic() + WITHIN
    while len(os.listdir(f"/proc/{relay.pid}/fd")) > descriptors + 8:  # idle connections of the last file's pool stay
        assert time.monotonic() < deadline, "connections of older files are left over"
        await asyncio.sleep(0.1)


async def test_a_file_without_keys_is_refused_while_the_relay_can_be_reached_from_outside(
    relay_with: RelayWith, upstream: ScriptedUpstream
) -> None:
    """The new file's own address is harmless, but it is not where the relay listens."""
    answers(upstream, "old", "new")
    port = free_port()
    keys = {"alice": {"key": "sk-alice-plain"}}
    relay = await relay_with(
        named(upstream, "old", server={"listen": f"0.0.0.0:{port}"}, metrics={"listen": f"127.0.0.1:{free_port()}"}, keys=keys)
    )
    open_file = named(upstream, "new", server={"listen": f"127.0.0.1:{port}"})
    line = await reload(relay, yaml.safe_dump(open_file), result="refused")
    assert "keys" in line["message"]
    assert await answer(relay) == (401, "missing_key")
    assert await answer(relay, key="sk-alice-plain") == (200, "old")


async def test_series_follow_the_routes_and_their_bounds_wait_for_a_restart(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "old", "new")
    relay = await relay_with(named(upstream, "old", routes={"name": "mine/old", "gone": "mine/old"}))
    assert await answer(relay, "gone") == (200, "old")
    await reload(relay, {**named(upstream, "new"), "metrics": {"slo": {"ttft": "9s"}}}, result="ok")
    assert any("metrics.slo.ttft" in line.get("message", "") for line in relay.logs("reload", level="warning"))
    assert (await relay.metrics()).value("relay_requests_total", route="gone", outcome="complete") == 1
    after = await relay.metrics()
    assert not after.has("relay_requests_total", route="gone") and not after.has("relay_target_health", route="gone")
    assert after.has("relay_requests_total", route="name", outcome="upstream_cut")
    assert after.value("relay_requests_forgotten_total") == 1


async def test_what_reads_the_file_is_never_in_the_process_that_serves(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    answers(upstream, "old", "new")
    relay = await relay_with(named(upstream, "old"))
    maps = Path(f"/proc/{relay.pid}/maps")
    if not maps.exists():  # other systems do not tell
        return
    assert "httptools" in maps.read_text()
    assert "pydantic" not in maps.read_text()
    await reload(relay, named(upstream, "new"), result="ok")
    assert await answer(relay) == (200, "new")
    assert "pydantic" not in maps.read_text()
