"""Stored keys: written and read as they are meant, never readable by others, and every way to be broken told clearly."""

import hashlib
import json
import multiprocessing
import os
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.config.keys import load_stored
from relay.config.keystore import KeyExists, KeyStore, KeyStoreBroken, StoredKey, mark_of, read_store
from relay.config.stored import Made, with_stored
from relay.config.tree import Key
from tests.config.loading import CANARY, ROUTE, UPSTREAM, Loading

FAR = "2099-12-31T00:00:00Z"


def hash_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def stored(name: str, **settings: Any) -> StoredKey:
    return StoredKey(name=name, id=f"id-{name}", settings={"hash": hash_of(name), **settings}, created_at=1_700_000_000)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    store = KeyStore(str(tmp_path / "keys.db"))
    store.create()
    return store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "keys.db")


def test_keys_come_back_as_they_were_written_by_name(store: KeyStore, path: str) -> None:
    bob, alice = stored("bob"), stored("alice", routes=["fast"], expires="2099-12-31")
    store.add(bob)
    store.add(alice)
    assert read_store(path) == [alice, bob]


def test_a_second_key_of_a_name_is_refused_and_changes_nothing(store: KeyStore, path: str) -> None:
    store.add(stored("alice"))
    with pytest.raises(KeyExists):
        store.add(stored("alice", routes=["fast"]))
    assert read_store(path) == [stored("alice")]


def test_replacing_keeps_the_day_it_was_made(store: KeyStore, path: str) -> None:
    store.add(stored("alice"))
    store.replace(replace(stored("alice", enabled="false"), id="other", created_at=0))
    (key,) = read_store(path)
    assert (key.id, key.settings["enabled"], key.created_at) == ("other", "false", 1_700_000_000)


def test_only_the_owner_may_read_the_file_and_it_is_one_file(store: KeyStore, path: str) -> None:
    old = os.umask(0)
    try:
        store.add(stored("alice"))
    finally:
        os.umask(old)
    assert [each.name for each in Path(path).parent.iterdir()] == ["keys.db"]
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600


def test_what_has_not_changed_is_not_made_again(store: KeyStore, path: str) -> None:
    known: Made = {}
    for name in ("alice", "bob", "carol"):
        store.add(stored(name))
    before = load_stored(path, known)
    assert before == load_stored(path)
    store.replace(stored("bob", enabled="false"))
    after = load_stored(path, known)
    assert after == load_stored(path)
    assert after[digest_of("alice")] is before[digest_of("alice")]
    assert not after[digest_of("bob")].is_enabled
    assert len(known) == 3


def test_every_change_changes_the_mark(store: KeyStore, path: str) -> None:
    marks = [mark_of(path)]
    for number in range(20):
        store.add(stored(f"key-{number}"))
        marks.append(mark_of(path))
    assert None not in marks and len(set(marks)) == 21
    assert mark_of(path) == marks[-1]
    Path(path).unlink()
    assert mark_of(path) is None


def test_settings_become_a_key_of_the_tree(store: KeyStore, path: str) -> None:
    store.add(stored("alice", routes=["fast", "slow/*"], enabled="false", expires="1970-01-02T00:00:00Z"))
    assert load_stored(path) == {
        digest_of("alice"): Key(name="alice", routes=frozenset({"fast", "slow/*"}), is_enabled=False, expires_at=86400.0, is_stored=True)
    }


@pytest.mark.parametrize(
    ("expires", "old_until"), [(None, 172800.0), ("1970-01-02T00:00:00Z", 86400.0), ("1970-01-04T00:00:00Z", 172800.0)]
)
def test_the_key_before_works_until_its_own_end_and_never_past_the_keys(
    store: KeyStore, path: str, expires: str | None, old_until: float
) -> None:
    more = {} if expires is None else {"expires": expires}
    store.add(stored("alice", previous={"hash": hash_of("old"), "until": "1970-01-03T00:00:00Z"}, **more))
    keys = load_stored(path)
    assert {key.name for key in keys.values()} == {"alice"}
    assert keys[digest_of("old")].expires_at == old_until
    assert keys[digest_of("alice")].expires_at != 172800.0


def no_file(path: Path) -> None:
    path.unlink()


def other_database(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE keys (name TEXT)")
    connection.commit()
    connection.close()


def other_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def row(settings: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute("INSERT INTO keys VALUES ('alice', 'id', ?, 0)", (settings,))
        connection.commit()
        connection.close()

    return write


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (no_file, "is not there; make it with its first key: relay keys new NAME --store "),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be used: "),
    "empty": (lambda path: path.write_bytes(b""), "is no file of keys"),
    "text": (lambda path: path.write_text("keys: {alice: {}}\n" * 100), "cannot be used: file is not a database"),
    "another's": (other_database, "is no file of keys"),
    "a later version's": (other_version, "was written by another version of relay"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cannot be used: database disk image is malformed"),
    "no JSON": (row("{" + CANARY), "holds a key whose settings cannot be read"),
    "no mapping": (row('["a"]'), 'key "alice": '),
    "unknown setting": (row(json.dumps({"hash": hash_of("x"), "color": CANARY})), 'key "alice": color: '),
    "wrong value": (row(json.dumps({"hash": hash_of("x"), "expires": CANARY})), 'key "alice": expires: expected a date'),
    "no hash": (row("{}"), 'key "alice" has no hash'),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_store_is_told_without_what_it_holds(store: KeyStore, path: str, how: str) -> None:
    spoil, said = BROKEN[how]
    spoil(Path(path))
    with pytest.raises(KeyStoreBroken) as caught:
        load_stored(path)
    assert str(caught.value).startswith(path)
    assert said in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_locked_store_is_told(store: KeyStore, path: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(KeyStoreBroken, match="database is locked"):
            load_stored(path)
    finally:
        connection.close()


def test_two_stored_keys_with_one_hash_are_told_by_their_names(store: KeyStore, path: str) -> None:
    store.add(stored("alice"))
    store.add(stored("bob", hash=hash_of("alice")))
    with pytest.raises(KeyStoreBroken, match='key "bob" is the same key as "alice"'):
        load_stored(path)


def _add_many(path: str, first: int) -> None:
    for number in range(first, first + 20):
        KeyStore(path).add(stored(f"key-{number}"))


def test_commands_at_the_same_time_lose_nothing(store: KeyStore, path: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(path, first)) for first in (0, 100, 200)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(read_store(path)) == 60


# In the configuration

HASH = "sha256:" + "0" * 64


def test_keys_of_the_store_stand_beside_those_of_the_file(loading: Loading, store: KeyStore, path: str) -> None:
    store.add(stored("alice"))
    config = loading.load(f"{UPSTREAM}{ROUTE}keys:\n  store: keys.db\n  bob: {{hash: '{HASH}'}}\n")
    assert config.key_store == path
    assert {digest: (key.name, key.is_stored) for digest, key in config.keys.items()} == {
        bytes(32): ("bob", False),
        digest_of("alice"): ("alice", True),
    }
    assert config.key_names == ["alice", "bob"]
    assert config.warnings == ()


def test_a_store_without_a_key_lets_nobody_in(loading: Loading, store: KeyStore) -> None:
    config = loading.load(f"server: {{listen: '0.0.0.0:80'}}\n{UPSTREAM}{ROUTE}keys: {{store: keys.db}}\n")
    assert (config.keys, config.asks_for_key) == ({}, True)
    assert not loading.load(f"{UPSTREAM}{ROUTE}").asks_for_key


def test_a_key_may_be_called_store(loading: Loading) -> None:
    config = loading.load(f"{UPSTREAM}{ROUTE}keys: {{store: {{hash: '{HASH}'}}}}\n")
    assert (config.key_store, config.key_names) == (None, ["store"])


def test_a_broken_store_is_a_mistake_of_its_line(loading: Loading) -> None:
    problem = loading.problem(f"{UPSTREAM}{ROUTE}keys: {{store: gone.db}}\n")
    assert (problem.line, problem.column, problem.path) == (3, 15, "keys.store")
    assert problem.message.startswith(f"{loading.folder}/gone.db is not there; make it with its first key: relay keys new NAME --store ")
    assert "gone.db" in problem.excerpt


@pytest.mark.parametrize("value", ["''", "[a]", "null"])
def test_a_store_that_is_no_file_name_is_told(loading: Loading, value: str) -> None:
    assert loading.problem(f"{UPSTREAM}{ROUTE}keys: {{store: {value}}}\n").path == "keys.store"


def test_passthrough_beside_a_store_is_refused(loading: Loading, store: KeyStore) -> None:
    problem = loading.problem("upstreams: {openai: {api_key: passthrough}}\nroutes: {a: openai/x}\nkeys: {store: keys.db}\n")
    assert problem.path == "upstreams.openai.api_key"


def test_what_is_unwise_about_a_store_is_warned_of(loading: Loading, store: KeyStore, path: str) -> None:
    store.add(stored("alice", routes=["fast", "gone"]))
    store.add(stored("bob"))
    Path(path).chmod(0o644)
    config = loading.load(f"{UPSTREAM}{ROUTE}keys:\n  store: keys.db\n  bob: {{hash: '{HASH}'}}\n")
    assert [warning.removeprefix(f"{loading.file}:4: keys.store: ") for warning in config.warnings] == [
        f"{path} may be read by others than its owner: chmod 600 it",
        'the key "bob" is also in keys.db; the one here counts',
        'the key "alice" names the route "gone", which is not there',
    ]
    assert config.keys[bytes(32)].name == "bob" and digest_of("bob") not in config.keys


def test_a_changed_store_replaces_its_own_keys_alone(loading: Loading, store: KeyStore, path: str) -> None:
    store.add(stored("alice"))
    config = loading.load(f"{UPSTREAM}{ROUTE}keys:\n  store: keys.db\n  bob: {{hash: '{HASH}'}}\n")
    store.add(stored("carol"))
    store.replace(stored("alice", hash=hash_of("new")))
    changed = with_stored(config, load_stored(path))
    assert changed.keys.keys() == {bytes(32), digest_of("new"), digest_of("carol")}
    assert with_stored(config, {}).keys.keys() == {bytes(32)}


def test_previous_hash_in_the_file(loading: Loading) -> None:
    previous = f"previous: {{hash: '{hash_of('old')}', until: {FAR}}}"
    config = loading.load(f"{UPSTREAM}{ROUTE}keys: {{bob: {{hash: '{HASH}', {previous}}}}}\n")
    assert config.keys[bytes(32)].expires_at is None
    assert config.keys[digest_of("old")] == Key(name="bob", expires_at=4102358400.0, is_previous=True)
    assert config.key_names == ["bob"]


@pytest.mark.parametrize(
    ("previous", "path", "message"),
    [
        ("{until: 2099-12-31}", "keys.bob.previous.hash", "is missing"),
        (f"{{hash: '{hash_of('old')}'}}", "keys.bob.previous.until", "is missing"),
        (f"{{hash: '{HASH}', until: 2099-12-31}}", "keys.bob", 'is the same key as "bob"'),
        ("old", "keys.bob.previous", "expected settings, as `name: value`"),
    ],
)
def test_a_mistake_in_a_previous_hash_is_told(loading: Loading, previous: str, path: str, message: str) -> None:
    problem = loading.problem(f"{UPSTREAM}{ROUTE}keys: {{bob: {{hash: '{HASH}', previous: {previous}}}}}\n")
    assert (problem.path, problem.message) == (path, message)


def test_a_previous_hash_past_its_day_is_warned_of(loading: Loading) -> None:
    previous = f"previous: {{hash: '{hash_of('old')}', until: 2020-01-01}}"
    (warning,) = loading.load(f"{UPSTREAM}{ROUTE}keys: {{bob: {{hash: '{HASH}', {previous}}}}}\n").warnings
    assert warning == f"{loading.file}:3: keys.bob.previous: has passed: leave it out"
