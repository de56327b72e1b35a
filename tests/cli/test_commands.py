"""The command line: what each command prints and where, exit codes, which file is found, what is not imported."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay import __version__, cli
from relay.cli import extras, main
from relay.config import Config, ConfigInvalid, schema

GOOD = "upstreams: {mine: {base_url: 'http://127.0.0.1:9000/v1'}}\nroutes: {fast: mine/model}\n"
BAD = "upstreams: {mine: {base_url: 'http://127.0.0.1:9000/v1'}}\nroutes: {fast: mien/model}\nsever: {}\n"


class Served:
    """Stands in for the server: takes what the command line hands over, and announces an address."""

    def __init__(self) -> None:
        self.config: Config | None = None
        self.reload: Callable[[], Config] | None = None
        self.code: int | BaseException = 0

    def run(self, config: Config, *, reload: Callable[[], Config] | None, announce: Callable[[str], None]) -> int:
        self.config, self.reload = config, reload
        if isinstance(self.code, BaseException):
            raise self.code
        announce(f"http://{config.server.host}:{config.server.port}")
        return self.code


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    served = Served()
    monkeypatch.setitem(sys.modules, "relay.app", SimpleNamespace(run=served.run))
    return served


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder and home, no variables, no Ollama."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.os, "environ", {"HOME": str(tmp_path / "home")})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli, "_OLLAMA", ("127.0.0.1", 1))


def test_check_of_a_good_file_is_one_line_and_zero(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(GOOD)
    assert main(["check", "a.yaml"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("a.yaml: good: 1 upstream, 1 route, 0 keys\n", "")


def test_check_tells_warnings_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(GOOD + "keys: {alice: {key: sk-alice-plain}}\n")
    assert main(["check", "a.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == "a.yaml: good: 1 upstream, 1 route, 1 key, 1 warning\n"
    assert err.startswith("warning: a.yaml:3: keys.alice.key: stands in plain text")


def test_check_of_a_bad_file_lists_every_problem_on_stderr_and_gives_78(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(BAD)
    assert main(["check", "a.yaml"]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert 'a.yaml:2:16: routes.fast: no upstream named "mien"; did you mean "mine"?\n' in err
    assert 'a.yaml:3:1: sever: unknown setting; did you mean "server"?\n' in err
    assert err.endswith("a.yaml: 2 problems\n")


def test_an_unknown_flag_is_told_with_the_usage_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "alice", "--rps", "3"]) == 2
    assert capsys.readouterr().err.startswith("usage: relay keys new ")


OUTPUTS = [["schema"], ["schema", "--markdown"], ["rules"], ["version"], ["check", "a.yaml"], ["explain", "fast", "-c", "a.yaml"]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.parametrize("words", OUTPUTS, ids=" ".join)
@pytest.mark.parametrize("output", ["full", "closed"])
def test_output_that_cannot_be_written_leaves_no_traceback(words: list[str], output: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    command = 'exec "$@" >/dev/full' if output == "full" else 'exec "$@" >&-'
    made = subprocess.run(["sh", "-c", command, "sh", sys.executable, "-m", "relay", *words], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == (1 if output == "full" else 0)
    assert made.stderr == (f"relay {words[0]}: No space left on device\n" if output == "full" else "")


def test_no_key_is_made_that_nobody_would_see(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["keys", "new", "alice", "--store", "keys.db"]) == 2
    assert "nobody would see the key" in capsys.readouterr().err
    assert not Path("keys.db").exists()


def test_check_without_a_file_checks_the_one_that_serve_would_find(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert "no file given" in capsys.readouterr().err
    Path("relay.yaml").write_text(GOOD)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("relay.yaml: good")


def test_check_of_a_file_that_is_not_there_gives_78(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gone.yaml"]) == 78
    assert capsys.readouterr().err == "gone.yaml: cannot be read: No such file or directory\ngone.yaml: 1 problem\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["chekc"], 'did you mean "check"?'),
        (["sreve"], 'did you mean "serve"?'),
        (["xyz"], "there are serve, check, explain, keys, rules, schema, targets, usage, version"),
        (["serve", "--confg"], "unrecognized arguments"),
        (["--nonsense"], "unrecognized arguments"),
        (["check", "a", "b"], "unrecognized arguments"),
        (["relay.yaml"], "relay serve --config FILE"),
        (["help", "serv"], 'did you mean "serve"?'),
    ],
)
def test_wrong_usage_gives_2_and_says_what_was_likely_meant(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_help_may_be_asked_for_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["help"]) == 0
    assert len(set(capsys.readouterr().out.split("usage: relay [-h]"))) == 2  # nothing, and twice the same
    assert main(["help", "usage"]) == 0
    assert capsys.readouterr().out.startswith("usage: relay usage ")


def test_help_is_on_stdout_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("serve", "check", "explain", "schema", "version"))


def test_version_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"relay {__version__}, python 3.")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"relay {__version__}\n"
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["relay"] == __version__


def test_explain_tells_the_targets_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    Path("relay.yaml").write_text(GOOD)
    assert main(["explain", "fast"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("fast -> route fast: the name is its own\n  the only target:\n    1. mine/model  (http://127.0.0.1:9000/v1)\n")
    assert err == ""


def test_explain_as_json_with_a_request_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(GOOD)
    Path("request.json").write_text('{"model": "fast", "store": true}')
    assert main(["explain", "--config", "a.yaml", "--request", "request.json", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["route"], told["steps"][0]["target"], told["repeatable"]) == ("fast", "mine/model", False)


def test_explain_of_a_model_without_a_route_gives_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("relay.yaml").write_text(GOOD)
    assert main(["explain", "slow"]) == 1
    assert capsys.readouterr().out.startswith("slow -> error model_not_found: ")


def test_explain_without_a_file_reads_the_environment_and_makes_no_probe(
    ollama: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "anything"]) == 0
    assert "1. demo/anything" in capsys.readouterr().out
    assert ollama["paths"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--key", "bob"], "relay explain: the configuration has no keys\n"),
        (["--request", "gone.json"], "relay explain: gone.json: cannot be read: No such file or directory\n"),
    ],
)
def test_explain_of_something_that_is_not_there_gives_2(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("relay.yaml").write_text(GOOD)
    assert main(["explain", "fast", *options]) == 2
    assert capsys.readouterr() == ("", said)


def test_schema_is_printed_as_committed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == json.dumps(schema(), indent=2) + "\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "a.yaml"],
        ["explain", "fast", "-c", "a.yaml"],
        ["keys", "new", "bob"],
        ["keys", "list", "-c", "a.yaml"],
        ["version"],
        ["schema"],
        ["--help"],
    ],
)
def test_commands_that_do_not_serve_load_no_server(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    script = f"import sys; sys.path.insert(0, {str(Path(cli.__file__).parents[2])!r})\nfrom relay.cli import main\ncode = main({argv!r})\n"
    script += "assert 'aiohttp' not in sys.modules, 'loaded'\nsys.exit(code)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=tmp_path, timeout=30)


@pytest.mark.parametrize("argv", [[], ["serve"], ["--listen", "127.0.0.1:8080"], ["serve", "--listen", "127.0.0.1:8080"]])
def test_serve_is_the_default_and_needs_nothing(argv: list[str], served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert served.config is not None
    assert list(served.config.upstreams) == ["demo"]
    assert served.reload is None
    out, err = capsys.readouterr()
    assert out == ""
    assert "export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 " in err


@pytest.mark.parametrize("place", ["relay.yaml", "config/relay.yaml", "home/.config/relay/relay.yaml"])
def test_serve_finds_its_file_in_the_usual_places(place: str, served: Served) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text(GOOD)
    assert main([]) == 0
    assert served.config is not None
    assert served.config.source.endswith(place)


def test_file_in_the_folder_comes_before_the_others(served: Served) -> None:
    for place in ("relay.yaml", "config/relay.yaml"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text(GOOD)
    assert main([]) == 0
    assert served.config is not None
    assert served.config.source == "relay.yaml"


@pytest.mark.parametrize("flag", ["-c", "--config"])
def test_serve_with_a_file_can_read_it_again(flag: str, served: Served) -> None:
    Path("a.yaml").write_text(GOOD)
    assert main(["serve", flag, "a.yaml", "--listen", "127.0.0.1:9999"]) == 0
    assert served.config is not None
    assert served.reload is not None
    assert (served.config.source, served.config.server.port) == ("a.yaml", 9999)
    Path("a.yaml").write_text(GOOD.replace("fast", "slow"))
    again = served.reload()
    assert (list(again.routes), again.server.port) == (["slow"], 9999)
    Path("a.yaml").write_text(BAD)
    with pytest.raises(ConfigInvalid):
        served.reload()


def test_serve_with_a_bad_file_gives_78_and_starts_nothing(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Path("relay.yaml").write_text(BAD)
    assert main([]) == 78
    assert served.config is None
    assert "relay.yaml: 2 problems" in capsys.readouterr().err


def test_serve_beyond_loopback_without_keys_gives_78(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "0.0.0.0:8080"]) == 78
    assert served.config is None
    assert "there are no keys" in capsys.readouterr().err


def test_exit_code_of_the_server_is_passed_on(served: Served) -> None:
    served.code = 1
    assert main([]) == 1


def test_interrupt_gives_130(served: Served) -> None:
    served.code = KeyboardInterrupt()
    assert main([]) == 130


def test_module_runs_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BAD)
    root = Path(cli.__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "relay", "check", str(tmp_path / "a.yaml")], capture_output=True, cwd=root, timeout=30)
    assert done.returncode == 78
    assert done.stdout == b""


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A server at Ollama's address, answering as told."""
    told: dict[str, Any] = {"status": 200, "body": b'{"version":"0.30.1"}', "paths": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told["paths"].append(self.path)
            self.send_response(told["status"])
            self.end_headers()
            self.wfile.write(told["body"])

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(cli, "_OLLAMA", ("127.0.0.1", server.server_address[1]))
        yield told
        server.shutdown()
        thread.join()


def test_running_ollama_is_found_by_one_probe(served: Served, ollama: dict[str, Any]) -> None:
    assert main([]) == 0
    assert served.config is not None
    assert list(served.config.upstreams) == ["ollama"]
    assert ollama["paths"] == ["/api/version"]


@pytest.mark.parametrize(("status", "body"), [(404, b'{"version":"1"}'), (200, b"<html>hello</html>"), (200, b"")])
def test_other_server_at_that_address_is_no_ollama(served: Served, ollama: dict[str, Any], status: int, body: bytes) -> None:
    ollama.update(status=status, body=body)
    assert main([]) == 0
    assert served.config is not None
    assert list(served.config.upstreams) == ["demo"]


def test_file_makes_no_probe(served: Served, ollama: dict[str, Any]) -> None:
    Path("relay.yaml").write_text(GOOD)
    assert main([]) == 0
    assert ollama["paths"] == []


def test_serve_without_what_spans_need_says_what_to_install(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(GOOD + "tracing: {otlp: 'http://127.0.0.1:4318'}\n")
    monkeypatch.setattr(cli, "has_sdk", lambda: False)
    assert main(["serve", "--config", "a.yaml"]) == 1
    assert "pip install 'relay[otel]'" in capsys.readouterr().err
    assert served.config is None


def test_serve_goes_on_without_spans_that_only_the_environment_asks_for(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    monkeypatch.setitem(cli.os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setattr(cli, "has_sdk", lambda: False)
    assert main(["serve", "--config", "a.yaml"]) == 0
    assert served.config is not None and served.config.tracing.otlp == "http://127.0.0.1:4318"


def test_the_extra_for_spans_is_found_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras.has_sdk()
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert not extras.has_sdk()
