"""Stored keys while the relay runs: taken within a second, refused like any other wrong key, kept when their file breaks."""

import asyncio
import hashlib
import os
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from relay.config.keystore import KeyStore, StoredKey
from tests.conftest import RelayWith
from tests.fakes.client import Response
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import json_answer
from tests.fakes.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
WITHIN = 10.0
"""Ten times what is promised."""


def hash_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def stored(name: str, **settings: object) -> StoredKey:
    return StoredKey(name=name, id=name, settings={"hash": hash_of(f"sk-{name}"), **settings}, created_at=0)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    store = KeyStore(str(tmp_path / "keys.db"))
    store.create()
    return store


async def ask(relay: RelayProcess, secret: str, model: str = "m") -> Response:
    return await relay.post(CHAT, {"model": model}, (("Authorization", f"Bearer {secret}"),))


async def until(wanted: int, call: Callable[[], Awaitable[Response]]) -> Response:
    """Ask again and again until the status is `wanted`."""
    deadline = time.monotonic() + WITHIN
    while (got := await call()).status != wanted:
        assert time.monotonic() < deadline, (got.status, got.body)
        await asyncio.sleep(0.05)
    return got


def shape(answer: Response) -> object:
    """All of an answer but its id."""
    return answer.status, answer.body, [(name, value) for name, value in answer.headers if not name.lower().endswith(b"request-id")]


async def test_a_running_relay_follows_its_store(relay_with: RelayWith, upstream: ScriptedUpstream, store: KeyStore) -> None:
    upstream.answers(json_answer({"id": "a"}))
    relay = await relay_with(config_for(upstream, keys={"store": "keys.db"}))
    unknown = await ask(relay, "sk-alice")
    assert unknown.status == 401
    store.add(stored("alice"))
    await until(200, lambda: ask(relay, "sk-alice"))
    store.replace(stored("alice", hash=hash_of("sk-new"), previous={"hash": hash_of("sk-alice"), "until": "2099-12-31"}))
    await until(200, lambda: ask(relay, "sk-new"))
    assert (await ask(relay, "sk-alice")).status == 200
    store.replace(stored("alice", hash=hash_of("sk-new"), previous={"hash": hash_of("sk-alice"), "until": "2020-01-01"}))
    assert shape(await until(401, lambda: ask(relay, "sk-alice"))) == shape(unknown)
    store.replace(stored("alice", hash=hash_of("sk-new"), enabled="false"))
    assert shape(await until(401, lambda: ask(relay, "sk-new"))) == shape(unknown)
    store.replace(stored("alice", expires="2020-01-01"))
    await relay.wait_log("keys", count=5, within=WITHIN, result="ok")
    assert shape(await ask(relay, "sk-alice")) == shape(unknown)
    assert {line["key"] for line in relay.logs("request", outcome="complete")} == {"alice"}


async def test_rights_of_a_stored_key_change_with_it(relay_with: RelayWith, upstream: ScriptedUpstream, store: KeyStore) -> None:
    upstream.answers(json_answer({"id": "a"}))
    store.add(stored("alice", routes=["one"]))
    relay = await relay_with(config_for(upstream, routes={"one": "mine/one", "two": "mine/two"}, keys={"store": "keys.db"}))
    assert [(await ask(relay, "sk-alice", model)).status for model in ("one", "two")] == [200, 403]
    store.replace(stored("alice", routes=["two"]))
    await until(200, lambda: ask(relay, "sk-alice", "two"))
    assert (await ask(relay, "sk-alice", "one")).status == 403


def spoiled(path: Path) -> None:
    path.write_bytes(b"not a database, and longer than its header, so that nothing of it can be read" * 10)


@pytest.mark.parametrize("spoil", [spoiled, Path.unlink], ids=["spoiled", "gone"])
async def test_a_store_that_breaks_leaves_the_keys_in_force_and_is_told_once(
    relay_with: RelayWith, upstream: ScriptedUpstream, store: KeyStore, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    upstream.answers(json_answer({"id": "a"}))
    store.add(stored("alice"))
    relay = await relay_with(config_for(upstream, keys={"store": "keys.db"}))
    file = tmp_path / "keys.db"
    good = file.read_bytes()
    spoil(file)
    (line,) = await relay.wait_log("keys", within=WITHIN, result="refused")
    assert line["level"] == "error" and str(file) in line["message"] and "the keys in force stay" in line["message"]
    assert (await ask(relay, "sk-alice")).status == 200
    file.write_bytes(good)
    await relay.wait_log("keys", within=WITHIN, result="ok")
    store.add(stored("bob"))
    await until(200, lambda: ask(relay, "sk-bob"))
    assert len(relay.logs("keys", result="refused")) == 1


async def test_a_store_locked_by_another_delays_no_request(
    relay_with: RelayWith, upstream: ScriptedUpstream, store: KeyStore, tmp_path: Path
) -> None:
    upstream.answers(json_answer({"id": "a"}))
    store.add(stored("alice"))
    relay = await relay_with(config_for(upstream, keys={"store": "keys.db"}))
    store.add(stored("bob"))
    connection = sqlite3.connect(tmp_path / "keys.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("DELETE FROM keys")
    for _ in range(20):
        assert (await ask(relay, "sk-alice")).status == 200
    connection.execute("ROLLBACK")
    connection.close()
    await until(200, lambda: ask(relay, "sk-bob"))


async def test_a_reload_keeps_what_the_store_holds_now(
    relay_with: RelayWith, upstream: ScriptedUpstream, store: KeyStore, tmp_path: Path
) -> None:
    upstream.answers(json_answer({"id": "a"}))
    store.add(stored("alice"))
    relay = await relay_with(config_for(upstream, keys={"store": "keys.db"}))
    store.add(stored("bob"))
    relay.write_config({**relay.config, "keys": {"store": "keys.db", "carol": {"hash": hash_of("sk-carol")}}})
    os.kill(relay.pid, signal.SIGHUP)
    await relay.wait_log("reload", within=WITHIN, result="ok")
    assert [(await ask(relay, f"sk-{name}")).status for name in ("alice", "bob", "carol")] == [200, 200, 200]
    other = KeyStore(str(tmp_path / "other.db"))
    other.create()
    other.add(replace(stored("dave")))
    relay.write_config({**relay.config, "keys": {"store": "other.db"}})
    os.kill(relay.pid, signal.SIGHUP)
    await relay.wait_log("reload", count=2, within=WITHIN, result="ok")
    assert [(await ask(relay, f"sk-{name}")).status for name in ("dave", "alice", "carol")] == [200, 401, 401]
    other.add(stored("erin"))
    await until(200, lambda: ask(relay, "sk-erin"))


async def test_a_missing_store_is_told_before_anything_listens(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    relay = RelayProcess(config_for(upstream, keys={"store": "keys.db"}), tmp_path)
    relay.launch()
    assert await relay.wait_exit() == 78
    assert f"keys.store: {tmp_path}/keys.db is not there; make it with its first key: relay keys new NAME --store " in relay.stderr()


async def test_two_tenants_of_a_store_see_nothing_of_each_other(relay_with: RelayWith, upstream: ScriptedUpstream, store: KeyStore) -> None:
    """P15: what one made is to the other as unknown as what never was, also after the one's key was rotated."""
    upstream.answers(json_answer({"id": "resp_of_alice", "object": "response"}))
    store.add(stored("alice"))
    store.add(stored("bob"))
    relay = await relay_with(config_for(upstream, keys={"store": "keys.db"}, upstreams=two(upstream)))
    auth = {name: (("Authorization", f"Bearer sk-{name}"),) for name in ("alice", "bob", "next")}
    made = await relay.post("/v1/responses", {"model": "m", "input": "hello"}, auth["alice"])
    assert made.json()["id"] == "resp_of_alice"

    async def follow(who: str, name: str) -> Response:
        return await relay.post("/v1/responses", {"model": "m", "input": "go on", "previous_response_id": name}, auth[who])

    assert shape(await follow("bob", "resp_of_alice")) == shape(await follow("bob", "resp_of_nobody"))
    assert (await follow("bob", "resp_of_alice")).status == 404
    store.replace(stored("alice", hash=hash_of("sk-next"), previous={"hash": hash_of("sk-alice"), "until": "2099-12-31"}))
    assert (await until(200, lambda: follow("next", "resp_of_alice"))).status == 200
    assert (await follow("alice", "resp_of_alice")).status == 200
    answers = [await ask(relay, secret) for secret in ("sk-nobody", "sk-alic")]
    assert shape(answers[0]) == shape(answers[1])
    for answer in (await follow("bob", "resp_of_alice"), *answers):
        assert b"alice" not in answer.body + b"".join(value for _, value in answer.headers)


def two(upstream: ScriptedUpstream) -> dict[str, object]:
    """Two upstreams: with one alone, an unknown id can only be its."""
    return {name: {"base_url": upstream.url, "api_key": "sk-upstream"} for name in ("mine", "other")}


async def test_limits_of_stored_keys_hold_for_each_alone_and_change_while_the_relay_runs(
    relay_with: RelayWith, upstream: ScriptedUpstream, store: KeyStore
) -> None:
    upstream.answers(json_answer({"id": "a"}))
    for name in ("alice", "bob"):
        store.add(stored(name, limits={"rpm": "2"}))
    relay = await relay_with(config_for(upstream, keys={"store": "keys.db"}))
    assert [(await ask(relay, "sk-alice")).status for _ in range(3)] == [200, 200, 429]
    of_bob = [await ask(relay, "sk-bob") for _ in range(3)]
    assert [answer.status for answer in of_bob] == [200, 200, 429]
    told = b"".join(answer.body + b"".join(value for _, value in answer.headers) for answer in of_bob)
    assert b"alice" not in told and b"bob" not in told
    store.replace(stored("alice", limits={"rpm": "3"}))
    await until(200, lambda: ask(relay, "sk-alice"))
    assert [(await ask(relay, f"sk-{name}")).status for name in ("alice", "bob")] == [429, 429]
