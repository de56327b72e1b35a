"""The upstreams' credentials, from the configuration or from a file that changes."""

import os
from pathlib import Path

import pytest

from relay.config.tree import Secret, Upstream
from relay.transport import credentials
from relay.transport.credentials import LOOK_SECONDS, Credentials


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(credentials, "monotonic", lambda: now[0])
    return now


def in_file(path: Path) -> Upstream:
    return Upstream(name="x", base_url="http://x/v1", api_key_file=str(path))


def replace(path: Path, value: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(value)
    os.replace(fresh, path)


def test_a_configured_credential_is_sent_as_it_stands() -> None:
    assert Credentials().current(Upstream(name="x", base_url="", api_key=Secret("sk-é"))) == "sk-é".encode()
    assert Credentials().current(Upstream(name="x", base_url="")) is None


def test_a_file_is_read_again_when_it_changes_and_looked_at_once_a_second(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "key"
    path.write_bytes(b" sk-one\n")
    keys = Credentials()
    assert keys.current(in_file(path)) == b"sk-one"
    replace(path, b"sk-two")
    assert keys.current(in_file(path)) == b"sk-one"
    clock[0] += LOOK_SECONDS
    assert keys.current(in_file(path)) == b"sk-two"


def test_a_file_that_goes_away_leaves_the_last_credential(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "key"
    keys = Credentials()
    assert keys.current(in_file(path)) is None
    path.write_bytes(b"sk-one")
    clock[0] += LOOK_SECONDS
    assert keys.current(in_file(path)) == b"sk-one"
    path.unlink()
    clock[0] += LOOK_SECONDS
    assert keys.current(in_file(path)) == b"sk-one"


@pytest.mark.parametrize("value", [b"sk-two\r\nX-Evil: 1", b"sk\x00two", b"two\nlines"])
def test_a_file_that_holds_line_breaks_never_reaches_a_header(tmp_path: Path, clock: list[float], value: bytes) -> None:
    """A44."""
    path = tmp_path / "key"
    path.write_bytes(b"sk-one")
    keys = Credentials()
    assert keys.current(in_file(path)) == b"sk-one"
    replace(path, value)
    clock[0] += LOOK_SECONDS
    assert keys.current(in_file(path)) == b"sk-one"
