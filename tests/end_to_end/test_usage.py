"""The usage ledger of a running relay: written within a second, whole after SIGTERM, at most a batch short after SIGKILL."""

import asyncio
import hashlib
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from relay.config.keystore import KeyStore, StoredKey
from relay.usage import SUMS, report
from tests.conftest import RelayWith
from tests.fakes.relay import ROOT, RelayProcess, config_for
from tests.fakes.scripts import json_answer
from tests.fakes.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
ANSWER = {"id": "a", "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}
WITHIN = 15.0
"""More than ten times what is promised."""
KEYS = {name: {"key": f"sk-{name}-made-up-for-tests"} for name in ("alice", "bob")}


def sums(path: Path, by: str = "key") -> dict[str, dict[str, int]]:
    return {line.names[0]: dict(zip(SUMS, line.sums, strict=True)) for line in report(str(path), [by], 0)}


async def ask(relay: RelayProcess, name: str, count: int = 1) -> None:
    for _ in range(count):
        assert (await relay.post(CHAT, {"model": "m"}, (("api-key", f"sk-{name}-made-up-for-tests"),))).status == 200


async def until_written(path: Path, name: str, requests: int) -> dict[str, int]:
    deadline = time.monotonic() + WITHIN
    while (found := sums(path).get(name, {})).get("requests", 0) < requests:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)
    return found


def config(upstream: ScriptedUpstream, **more: object) -> dict[str, Any]:
    upstream.answers(json_answer(ANSWER))
    return config_for(upstream, **{"keys": KEYS, "usage": {"store": "usage.db"}, **more})


async def test_usage_is_written_while_the_relay_runs_and_each_key_has_its_own(
    relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    relay = await relay_with(config(upstream))
    await ask(relay, "alice", 3)
    await ask(relay, "bob")
    assert (await relay.post(CHAT, {"model": "m"}, (("api-key", "sk-nobody"),))).status == 401
    await until_written(tmp_path / "usage.db", "", 1)
    command = [sys.executable, "-m", "relay", "usage", "--by", "key,route,upstream", "--json", "-c", str(relay.config_file)]
    rows = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout)
    told = [(row["key"], row["route"], row["upstream"], row["requests"], row["good"], row["input"], row["output"]) for row in rows]
    assert told == [("", "", "", 1, 0, 0, 0), ("alice", "*", "mine", 3, 3, 30, 15), ("bob", "*", "mine", 1, 1, 10, 5)]
    assert (await relay.metrics()).value("relay_usage_dropped_total") == 0


async def test_sigterm_loses_nothing(relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    relay = await relay_with(config(upstream))
    await ask(relay, "alice", 20)
    await relay.stop()
    assert sums(tmp_path / "usage.db")["alice"]["requests"] == 20


async def test_sigkill_loses_at_most_the_last_batch(relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    relay = await relay_with(config(upstream))
    await ask(relay, "alice", 20)
    await until_written(tmp_path / "usage.db", "alice", 20)
    await ask(relay, "alice", 5)
    relay.kill()
    found = sums(tmp_path / "usage.db")["alice"]
    assert 20 <= found["requests"] <= 25
    assert found["input"] == found["requests"] * 10
    again = await relay_with(config(upstream))
    await ask(again, "alice", 1)
    await again.stop()
    assert sums(tmp_path / "usage.db")["alice"]["requests"] == found["requests"] + 1


async def test_two_relays_write_one_ledger(relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    relays = [await relay_with(config(upstream)) for _ in range(2)]
    await asyncio.gather(*(ask(relay, "alice", 30) for relay in relays))
    for relay in relays:
        await relay.stop()
    assert sums(tmp_path / "usage.db")["alice"]["requests"] == 60


async def test_a_locked_ledger_delays_no_request_and_loses_nothing(
    relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    relay = await relay_with(config(upstream))
    connection = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    await ask(relay, "alice", 10)
    (line,) = await relay.wait_log("usage", within=WITHIN, result="waiting")
    assert "database is locked" in line["message"]
    await ask(relay, "alice", 10)
    connection.execute("COMMIT")
    connection.close()
    assert (await until_written(tmp_path / "usage.db", "alice", 20))["requests"] == 20
    assert len(relay.logs("usage", result="waiting")) == 1


async def test_a_ledger_that_cannot_be_had_is_told_before_anything_listens(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    (tmp_path / "usage.db").write_text("something else " * 100)
    relay = RelayProcess(config(upstream), tmp_path)
    relay.launch()
    assert await relay.wait_exit() == 1
    assert relay.stderr().startswith(f"relay: usage.store: {tmp_path}/usage.db cannot be used: file is not a database\n")


async def test_without_a_ledger_nothing_is_written(relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(json_answer(ANSWER))
    relay = await relay_with(config_for(upstream, keys=KEYS))
    await ask(relay, "alice")
    await relay.stop()
    assert not list(tmp_path.glob("*.db*"))


async def test_workers_write_one_ledger_and_follow_one_file_of_keys(
    relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    store = KeyStore(str(tmp_path / "keys.db"))
    store.create()
    relay = await relay_with(config(upstream, server={"workers": 2}, keys={"store": "keys.db"}))
    await relay.wait_log("worker_ready", count=2, within=WITHIN)
    digest = hashlib.sha256(b"sk-alice-made-up-for-tests").hexdigest()
    store.add(StoredKey(name="alice", id="a", settings={"hash": f"sha256:{digest}"}, created_at=0))
    await relay.wait_log("keys", count=2, within=WITHIN, result="ok")
    await ask(relay, "alice", 40)
    await relay.stop()
    assert {line["worker"] for line in relay.logs("request")} == {0, 1}
    assert sums(tmp_path / "usage.db")["alice"]["requests"] == 40


async def test_the_ledger_has_what_the_configured_prices_come_to(relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """10 tokens in at 1 USD and 5 out at 2 USD for a million: 20 millionths of a dollar, in billionths."""
    relay = await relay_with(config(upstream, prices={"mine/*": {"input": "1", "output": "2"}}))
    await ask(relay, "alice", 2)
    await ask(relay, "bob")
    await relay.stop()
    assert {name: found["cost"] for name, found in sums(tmp_path / "usage.db").items()} == {"alice": 40_000, "bob": 20_000}
