"""`relay keys`: what is printed where, what is stored, what a running relay makes of it."""

import asyncio
import hashlib
import io
import json
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from relay.cli import main
from relay.cli.written import limits_text
from relay.config import load
from relay.config.keystore import KeyStore, read_store
from relay.policy.keyformat import Form, form_of
from tests.conftest import RelayWith
from tests.fakes.relay import ROOT, RelayProcess, config_for
from tests.fakes.scripts import json_answer
from tests.fakes.upstream import ScriptedUpstream

BASE = "upstreams: {mine: {base_url: 'http://127.0.0.1:9000/v1'}}\nroutes: {fast: mine/model, 'qwen*': 'mine/*'}\n"
STORE = ("--store", "keys.db")
WITHIN = 10.0


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder and home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class Command:
    """Runs `relay keys` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run, expect an exit code, return what was printed on stdout."""
        found = main(["keys", *words])
        out, self.err = self._capsys.readouterr()
        assert found == code, self.err
        return out


@pytest.fixture
def keys(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def hash_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.strip().encode()).hexdigest()}"


def indented(text: str) -> str:
    """The lines of YAML in a message."""
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith("  "))


# Keys of the configuration


def test_new_prints_the_key_alone_on_stdout_and_yaml_that_loads_on_stderr(keys: Command) -> None:
    Path("relay.yaml").write_text(BASE)
    out = keys("new", "alice", "--routes", "fast, qwen*", "--expires", "2099-12-31")
    assert out.count("\n") == 1 and form_of(out.strip()) is Form.OURS
    assert out.strip() not in keys.err
    assert keys.err.startswith("Add this under `keys:` of relay.yaml")
    Path("relay.yaml").write_text(f"{BASE}keys:\n{indented(keys.err)}")
    config = load("relay.yaml", {})
    key = config.keys[hashlib.sha256(out.strip().encode()).digest()]
    assert (key.name, key.routes, config.warnings) == ("alice", frozenset({"fast", "qwen*"}), ())
    assert keys("check", out.strip()) == "alice: good, until 2099-12-31T23:59:59Z\n"


def test_new_needs_no_configuration_and_writes_nothing(keys: Command, tmp_path: Path) -> None:
    first, second = keys("new", "alice"), keys("new", "alice")
    assert first != second
    assert list(tmp_path.iterdir()) == []


def test_commands_need_none_of_the_relays_environment(keys: Command) -> None:
    Path("relay.yaml").write_text(
        'upstreams: {openai: {api_key: "${OPENAI_API_KEY}"}}\nroutes: {fast: openai/x}\n'
        'keys:\n  bob: {hash: "${BOB}"}\n  store: "${DB:-keys.db}"\n'
    )
    keys("new", "alice", "--routes", "fast")
    assert [key.name for key in read_store("keys.db")] == ["alice"]
    keys("rotate", "alice")
    keys("revoke", "alice")
    keys("rotate", "bob")
    assert 'previous: {hash: "${BOB}", until: ' in keys.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new", "a b"], "a name has at most 64 letters"),
        (["new", "bob"], "there is a key named bob in relay.yaml, line 4\n"),
        (["new", "alice", "--routes", "fats"], 'no route named "fats" in relay.yaml; did you mean "fast"?'),
        (["new", "alice", "--routes", "fast,"], "no route named"),
        (["new", "alice", "--expires", "soon"], "expires: expected a date such as 2027-12-31"),
        (["revoke", "bobb"], 'no key named "bobb"; did you mean "bob"?'),
        (["rotate", "alice"], 'no key named "alice"'),
        (["rotate", "bob", "--grace", "long"], "--grace: expected a span such as 24h"),
        (["rotate", "bob", "--grace", "400d"], "--grace: expected a span such as 24h"),
        (["list", "--nonsense"], "unrecognized arguments"),
        ([], "ACTION"),
    ],
)
def test_wrong_usage_gives_2_and_prints_no_key(keys: Command, words: list[str], said: str) -> None:
    text = f"{BASE}keys:\n  bob: {{hash: '{hash_of('x')}'}}\n"
    Path("relay.yaml").write_text(text)
    assert keys(*words, code=2) == ""
    assert said in keys.err
    assert Path("relay.yaml").read_text() == text


def test_list_without_anything_to_list_gives_2(keys: Command) -> None:
    keys("list", code=2)
    assert keys.err == "relay keys: there is no configuration file, and no --store\n"


def test_a_file_that_is_no_yaml_gives_78(keys: Command) -> None:
    Path("relay.yaml").write_text("keys: [\n")
    keys("new", "alice", code=78)
    assert keys.err.startswith("relay.yaml:2:1: ")


@pytest.mark.parametrize(("entry", "what"), [("{hash: '%s'}", "add this line to"), ("{hash: '%s', enabled: true}", "change this line in")])
def test_revoke_tells_the_line_to_change_and_that_nothing_is_changed(keys: Command, entry: str, what: str) -> None:
    text = f"{BASE}keys:\n  bob: {entry % hash_of('x')}\n"
    Path("relay.yaml").write_text(text)
    assert keys("revoke", "bob", code=1) == "    enabled: false\n"
    assert keys.err.startswith(f"Nothing is changed yet. In relay.yaml, line 4, {what} the entry of bob")
    assert Path("relay.yaml").read_text() == text


def test_rotate_prints_lines_with_which_both_keys_are_good(keys: Command) -> None:
    Path("relay.yaml").write_text(f"{BASE}keys:\n  bob:\n    hash: {hash_of('sk-old')}\n    routes: [fast]\n")
    out = keys("rotate", "bob", "--grace", "7d")
    assert "In relay.yaml, line 4, the entry of bob: let these lines stand in place of\n`hash`" in keys.err
    Path("relay.yaml").write_text(f"{BASE}keys:\n  bob:\n{indented(keys.err)}    routes: [fast]\n")
    config = load("relay.yaml", {})
    new, old = (config.keys[hashlib.sha256(text.encode()).digest()] for text in (out.strip(), "sk-old"))
    assert (new.name, new.expires_at, old.name) == ("bob", None, "bob")
    assert old.expires_at is not None and abs(old.expires_at - time.time() - 7 * 86400) < 60
    keys("rotate", "bob", "--grace", "0s")
    assert "`hash` and `previous`" in keys.err and "previous:" not in keys.err


def test_rotate_of_a_plain_key_tells_how_to_hash_it(keys: Command) -> None:
    Path("relay.yaml").write_text(f"{BASE}keys: {{bob: {{key: sk-CANARY}}}}\n")
    keys("rotate", "bob")
    assert "in place of\n`key`" in keys.err and "sha256sum" in keys.err
    assert "CANARY" not in keys.err


# Keys of a store


def test_new_key_is_in_the_store_as_a_hash_and_its_file_is_private(keys: Command) -> None:
    out = keys("new", "alice", "--routes", "fast", *STORE)
    assert keys.err.startswith("alice is in ") and out.strip() not in keys.err
    (key,) = read_store("keys.db")
    assert key.settings == {"hash": hash_of(out), "routes": ["fast"]}
    assert key.id == out[6:16]
    assert stat.S_IMODE(Path("keys.db").stat().st_mode) == 0o600
    assert out.strip().encode()[17:] not in Path("keys.db").read_bytes()


def test_a_name_stays_taken_also_when_its_key_is_revoked(keys: Command) -> None:
    """What its bearer left behind (objects at upstreams, usage) must not pass to somebody else."""
    keys("new", "alice", *STORE)
    keys("revoke", "alice", *STORE)
    before = read_store("keys.db")
    assert keys("new", "alice", *STORE, code=2) == ""
    assert keys("rotate", "alice", *STORE, code=2) == ""
    assert read_store("keys.db") == before


def test_rotating_twice_keeps_the_last_two(keys: Command) -> None:
    first, second, third = keys("new", "alice", *STORE), keys("rotate", "alice", *STORE), keys("rotate", "alice", *STORE)
    assert "The one before the old one is no longer good." in keys.err
    assert keys("check", first.strip(), *STORE, code=1).startswith("unknown here; its id is ")
    assert re.fullmatch(r"alice: good, rotated, until \S+Z\n", keys("check", second.strip(), *STORE))
    assert keys("check", third.strip(), *STORE) == "alice: good\n"
    keys("rotate", "alice", "--grace", "0s", *STORE)
    assert keys("check", third.strip(), *STORE, code=1).startswith("unknown")


def test_a_key_that_has_expired_is_not_made(keys: Command) -> None:
    keys("new", "old", "--expires", "2020-01-01", *STORE, code=2)
    assert "--expires: is over already" in keys.err
    assert not Path("keys.db").exists()


def test_check_tells_what_is_wrong_with_a_key(keys: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        name: keys("new", name, *more, *STORE).strip()
        for name, more in {"off": (), "old": ("--expires", "0s"), "on": ("--expires", "1h")}.items()
    }
    keys("revoke", "off", *STORE)
    assert keys("check", made["off"], *STORE, code=1) == "off: disabled\n"
    assert re.fullmatch(r"old: expired, since \S+Z\n", keys("check", made["old"], *STORE, code=1))
    assert re.fullmatch(r"on: good, until \S+Z\n", keys("check", made["on"], *STORE))
    typo = made["on"][:-1] + ("0" if made["on"][-1] != "0" else "1")
    assert keys("check", typo, *STORE, code=1) == "mistyped: its checksum does not fit what stands before it\n"
    assert keys("check", typo, code=1).startswith("mistyped")
    assert keys("check", "sk-other", *STORE, code=1) == "unknown here, and not made by relay\n"
    assert keys("check", made["on"]).startswith("well formed; there is nothing to look it up in")
    monkeypatch.setattr(sys, "stdin", io.StringIO(made["on"] + "\n"))
    assert keys("check", *STORE).startswith("on: good")


def test_list_shows_every_key_once_and_no_hash(keys: Command) -> None:
    Path("relay.yaml").write_text(f"{BASE}keys:\n  store: keys.db\n  carol: {{hash: '{hash_of('x')}', routes: [fast]}}\n")
    keys("new", "alice", "--expires", "2099-12-31")
    keys("new", "bob")
    keys("rotate", "bob")
    keys("revoke", "alice")
    out = keys("list")
    assert [line.split()[0] for line in out.splitlines()] == ["name", "alice", "bob", "carol"]
    rows = {row["name"]: row for row in json.loads(keys("list", "--json"))}
    assert {name: row["state"] for name, row in rows.items()} == {"alice": "disabled", "bob": "good", "carol": "good"}
    assert (rows["carol"]["id"], rows["carol"]["routes"], rows["carol"]["place"]) == (None, ["fast"], "relay.yaml")
    assert rows["bob"]["previous_until"] is not None and rows["alice"]["expires"] == "2099-12-31T23:59:59Z"
    assert rows["alice"]["place"].endswith("keys.db")
    assert "sha256" not in out + json.dumps(rows)


def test_a_store_that_cannot_be_used_gives_1(keys: Command) -> None:
    Path("keys.db").write_text("something else " * 100)
    for words in (["new", "alice"], ["list"], ["revoke", "alice"], ["check", "sk-x"]):
        assert keys(*words, *STORE, code=1) == ""
        assert keys.err.startswith("relay keys: ") and "keys.db cannot be used: file is not a database" in keys.err
    assert keys("new", "alice", "--store", "no/such/folder/keys.db", code=1) == ""
    assert "cannot be made: No such file or directory" in keys.err


LIMITS = ("--rpm", "60", "--tpm", "100k", "--concurrency", "4", "--budget", "20 USD/month")


def test_limits_are_stored_as_the_configuration_has_them_and_listed(keys: Command) -> None:
    keys("new", "alice", *LIMITS, *STORE)
    (key,) = read_store("keys.db")
    assert key.settings["limits"] == {"rpm": "60", "tpm": "100k", "concurrency": "4", "budget": "20 USD/month"}
    (row,) = json.loads(keys("list", "--json", *STORE))
    assert row["limits"] == {"rpm": "60", "tpm": "100000", "concurrency": "4", "budget": "20 USD/month"}
    assert "rpm 60, tpm 100000, concurrency 4, budget 20 USD/month" in keys("list", *STORE)


def test_limits_of_a_printed_key_load(keys: Command) -> None:
    keys("new", "alice", *LIMITS[:6], "--budget", "1M tokens/day")
    Path("relay.yaml").write_text(f"{BASE}keys:\n{indented(keys.err)}")
    (key,) = load("relay.yaml", {}).keys.values()
    assert limits_text(key.limits) == {"rpm": "60", "tpm": "100000", "concurrency": "4", "budget": "1000000 tokens/day"}


@pytest.mark.parametrize("words", [("--expires", "2027-13-01"), ("--rpm", "many"), ("--tpm", "0"), ("--budget", "20")])
def test_what_cannot_be_read_makes_no_key(keys: Command, words: tuple[str, str]) -> None:
    KeyStore("keys.db").create()
    keys("new", "alice", *words, *STORE, code=2)
    assert read_store("keys.db") == []


def test_a_stored_budget_without_prices_is_warned_of_and_keeps_no_relay_from_starting(keys: Command) -> None:
    Path("relay.yaml").write_text(f"{BASE}keys: {{store: keys.db}}\n")
    keys("new", "alice", "--budget", "20 USD/month")
    (warning,) = load("relay.yaml", {}).warnings
    assert warning.endswith('the key "alice" has a budget in USD, but `prices` has nothing for "mine/model"')


# With a running relay


def run(relay: RelayProcess, *words: str) -> str:
    """Run a command as a person does, beside the relay."""
    command = [sys.executable, "-m", "relay", "keys", *words, "-c", str(relay.config_file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


async def status_with(relay: RelayProcess, key: str, wanted: int) -> None:
    deadline = time.monotonic() + WITHIN
    while (got := (await relay.post("/v1/chat/completions", {"model": "m"}, (("api-key", key),))).status) != wanted:
        assert time.monotonic() < deadline, got
        await asyncio.sleep(0.05)


async def test_keys_come_and_go_while_the_relay_runs(relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(json_answer({"id": "a"}))
    KeyStore(str(tmp_path / "keys.db")).create()
    relay = await relay_with(config_for(upstream, keys={"store": "keys.db"}))
    first = run(relay, "new", "alice")
    await status_with(relay, first, 200)
    second = run(relay, "rotate", "alice")
    await status_with(relay, second, 200)
    await status_with(relay, first, 200)
    run(relay, "rotate", "alice", "--grace", "0s")
    await status_with(relay, second, 401)
    third = run(relay, "rotate", "alice")
    await status_with(relay, third, 200)
    run(relay, "revoke", "alice")
    await status_with(relay, third, 401)
    assert yaml.safe_load(relay.config_file.read_text()) == relay.config
    written = relay.stderr() + relay.stdout() + (await relay.get("/metrics")).body.decode()
    assert not any(key in written or key[17:] in written for key in (first, second, third))
