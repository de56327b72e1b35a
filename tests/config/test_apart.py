"""A configuration that another process reads: the same tree, the same mistakes, and no trace of what read it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config import Config, ConfigInvalid, load
from relay.config.apart import begin, read_again

TEXT = """
upstreams: {mine: {base_url: 'http://127.0.0.1:9000/v1', api_key: '${UPSTREAM_KEY}'}}
routes: {fast: mine/model}
keys: {team: {key: made-up-and-long-enough, limits: {rpm: 5}}}
"""
UNREADABLE = "routes: {fast: nowhere/model}\n"
Way = Callable[[str, str | None], Config]


def at_start(path: str, listen: str | None) -> Config:
    return begin(path, os.environ, listen=listen)()


@pytest.fixture(params=[at_start, read_again])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-made-up")
    found: Way = request.param
    return found


def written(folder: Path, text: str) -> str:
    path = folder / "relay.yaml"
    path.write_text(text)
    return str(path)


def test_it_is_the_tree_that_reading_here_gives(way: Way, tmp_path: Path) -> None:
    path = written(tmp_path, TEXT)
    found = way(path, "127.0.0.1:9999")
    assert found == load(path, os.environ, listen="127.0.0.1:9999")
    key = found.upstreams["mine"].api_key
    assert key is not None
    assert (key.reveal(), found.server.port) == ("sk-made-up", 9999)
    assert found.routes["fast"].targets[0].upstream is found.upstreams["mine"]


def test_mistakes_are_told_as_reading_here_tells_them(way: Way, tmp_path: Path) -> None:
    path = written(tmp_path, UNREADABLE)
    with pytest.raises(ConfigInvalid) as here:
        load(path, os.environ)
    with pytest.raises(ConfigInvalid) as apart:
        way(path, None)
    assert str(apart.value) == str(here.value)
    assert apart.value.problems == here.value.problems


def test_a_process_with_threads_reads_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.active_count", lambda: 2)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    path = written(tmp_path, TEXT)
    assert begin(path, {"UPSTREAM_KEY": "sk-made-up"})() == load(path, {"UPSTREAM_KEY": "sk-made-up"})


def test_without_another_process_to_be_had_it_reads_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError

    monkeypatch.setattr("threading.active_count", lambda: 1)
    monkeypatch.setattr(os, "fork", fork)
    path = written(tmp_path, TEXT)
    assert begin(path, {"UPSTREAM_KEY": "sk-made-up"})() == load(path, {"UPSTREAM_KEY": "sk-made-up"})


def test_a_fork_that_dies_without_a_word_is_done_without(tmp_path: Path) -> None:
    path = written(tmp_path, UNREADABLE)
    # In an interpreter of its own, which surely has no other thread.
    script = f"""
from relay.config import apart
apart.attempt = lambda *given: apart.os._exit(3)
try:
    apart.begin({path!r}, {{}})()
except apart.ConfigInvalid as invalid:
    print(invalid)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "relay.yaml: 1 problem" in done.stdout


def test_a_reading_that_fails_says_what_it_said_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.config.apart.python_command", lambda module: [sys.executable, "-c", "raise SystemExit('first\\nthe last')"])
    with pytest.raises(RuntimeError, match="failed with 1: the last"):
        read_again(str(tmp_path / "relay.yaml"), None)


def test_a_reading_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "relay.yaml"
    os.mkfifo(fifo)
    monkeypatch.setattr("relay.config.apart.READ_SECONDS", 1.0)
    with pytest.raises(RuntimeError, match="no process could read it"):
        read_again(str(fifo), None)


@pytest.mark.parametrize("serves", ["relay.app.process", "relay.workers.worker", "relay.workers", "relay.cli"])
def test_who_serves_imports_nothing_that_reads(serves: str) -> None:
    script = f"import sys, {serves}; print(*({{'pydantic', 'yaml', 'sqlite3'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
