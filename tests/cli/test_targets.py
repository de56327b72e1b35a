"""`relay targets` where there is nothing to ask, or the wrong thing; what it does with a relay is in end_to_end/test_admin.py."""

from pathlib import Path

import pytest

from relay.cli import main
from tests.fakes.ports import refusing_port

UPSTREAM = "upstreams: {mine: {base_url: 'http://127.0.0.1:9000/v1'}}\nroutes: {fast: mine/model}\n"


def test_without_a_relay_it_says_where_it_looked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with refusing_port() as port:
        file = tmp_path / "a.yaml"
        file.write_text(UPSTREAM + f"server: {{listen: '127.0.0.1:{port}'}}\n")
        assert main(["targets", "-c", str(file)]) == 1
        assert f"no relay answers at http://127.0.0.1:{port}: " in capsys.readouterr().err


def test_metrics_of_their_own_are_where_it_looks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with refusing_port() as port:
        file = tmp_path / "a.yaml"
        file.write_text(UPSTREAM + f"metrics: {{listen: '127.0.0.1:{port}'}}\n")
        assert main(["targets", "-c", str(file)]) == 1
        assert f"http://127.0.0.1:{port}: " in capsys.readouterr().err


def test_metrics_for_others_leave_no_admin_endpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(UPSTREAM + "metrics: {listen: '0.0.0.0:9464'}\n")
    assert main(["targets", "-c", str(file)]) == 1
    assert "on loopback alone" in capsys.readouterr().err


def test_a_relay_with_workers_is_asked_like_any_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with refusing_port() as port:
        file = tmp_path / "a.yaml"
        file.write_text(UPSTREAM + f"server: {{workers: 2, listen: '127.0.0.1:{port}'}}\n")
        assert main(["targets", "-c", str(file)]) == 1
        assert f"no relay answers at http://127.0.0.1:{port}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"), [(["rest", "mine"], "expected UPSTREAM/MODEL"), (["rest", "mine/x", "--for", "10"], "--for: expected a duration")]
)
def test_what_cannot_be_meant_is_not_asked(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", *words, "--url", "http://127.0.0.1:1"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-c", "FILE", "rest", "a/b"], ["rest", "a/b", "-c", "FILE"], ["restore", "-c", "FILE", "a/b"]])
def test_options_may_stand_before_the_action_and_after_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]) -> None:
    with refusing_port() as port:
        file = tmp_path / "a.yaml"
        file.write_text(UPSTREAM + f"server: {{listen: '127.0.0.1:{port}'}}\n")
        assert main(["targets", *(str(file) if word == "FILE" else word for word in words)]) == 1
        assert f"http://127.0.0.1:{port}: Connection refused\n" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "nothing://", "http://", "http://[::1", "http://127.0.0.1:x"])
def test_an_address_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert main(["targets", "--url", url]) == 2
    assert "expected an address" in capsys.readouterr().err
