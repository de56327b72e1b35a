"""Real servers for tests: found on this machine, started on a free port, stopped with the test.

A program comes from PATH or from where `.ci/servers` unpacks it. Where neither has it the test is skipped, which fails a run on CI.
"""

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest
import yaml

from tests.fakes.ports import free_port

ROOT: Final = Path(__file__).parent.parent
UNPACKED: Final = ROOT / ".cache/servers/usr/bin"
START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.05


def find_program(name: str) -> str:
    """Return the path of a server's program; skips the test when the machine has none."""
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    if found is None:
        pytest.skip(f"{name} is not installed; .ci/servers fetches it")
    return found


@contextmanager
def running(command: Sequence[str], directory: Path, is_ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in `directory` until the block ends; enters when `is_ready`, and fails with what it wrote when that never comes."""
    log = directory / f"{Path(command[0]).name}.log"
    # What was unpacked finds its libraries beside it.
    libraries = ":".join(map(str, UNPACKED.parent.glob("lib/*-linux-gnu")))
    environ = {**os.environ, "LD_LIBRARY_PATH": libraries} if command[0].startswith(str(UNPACKED)) else None
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            code = process.poll()
            assert code is None and time.monotonic() < deadline, f"{command[0]} does not run ({code}):\n{log.read_text(errors='replace')}"
            time.sleep(POLL_SECONDS)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Prometheus:
    """A running Prometheus, to be asked."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.moment: float | None = None
        """The Unix time that queries are about; None is now."""

    @property
    def url(self) -> str:
        """Where its own pages begin."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_ready(self) -> bool:
        """Tell whether it serves."""
        try:
            return self._get("/-/ready")[0] == 200
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression at `moment`; raises ValueError with what Prometheus says against it."""
        when = {} if self.moment is None else {"time": self.moment}
        return self._ask("query", query=expression, **when)["result"]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return the series of an expression between two Unix times."""
        return self._ask("query_range", query=expression, start=start, end=end, step=step)["result"]

    def exemplars(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """Return the series of an expression that have exemplars between two Unix times, with these."""
        found: list[dict[str, Any]] = self._ask("query_exemplars", query=expression, start=start, end=end)
        return found

    def wait_for(self, expression: str, *, within: float = START_SECONDS) -> list[dict[str, Any]]:
        """Ask until there are samples, and return them; its first scrape comes about five seconds after its start."""
        deadline = time.monotonic() + within
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"nothing for {expression} within {within} s"
            time.sleep(POLL_SECONDS)
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its health and its last error."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _ask(self, what: str, **parameters: object) -> Any:
        status, body = self._get(f"/api/v1/{what}?{urlencode(parameters)}")
        answer = json.loads(body)
        if status != 200 or answer["status"] != "success":
            raise ValueError(answer.get("error", body))
        return answer["data"]

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@contextmanager
def running_prometheus(directory: Path, targets: Sequence[str], *, rules: str = "", interval: str = "1s") -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes `targets` (HOST:PORT) as job `relay` and evaluates `rules` as often."""
    (directory / "rules.yml").write_text(rules or "groups: []\n")
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "relay", "static_configs": [{"targets": list(targets)}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    server = Prometheus(free_port())
    command = [
        find_program("prometheus"),
        "--config.file=prometheus.yml",
        "--enable-feature=exemplar-storage",
        "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{server.port}",
    ]
    with running(command, directory, lambda: server.is_ready):
        yield server


class RedisServer:
    """A running redis-server, to be asked."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        """Its address for a configuration."""
        return f"redis://127.0.0.1:{self.port}/0"

    def ask(self, *command: str) -> bytes:
        """Return the raw answer to one command; raises OSError when there is nobody."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            sock.sendall(b"".join([b"*%d\r\n" % len(command), *(b"$%d\r\n%b\r\n" % (len(part), part.encode()) for part in command)]))
            return sock.recv(1 << 20)

    @property
    def is_ready(self) -> bool:
        """Tell whether it serves."""
        try:
            return self.ask("PING") == b"+PONG\r\n"
        except OSError:
            return False


@contextmanager
def running_redis(directory: Path, *, port: int | None = None) -> Iterator[RedisServer]:
    """Run a Redis that keeps nothing on disk."""
    server = RedisServer(port or free_port())
    command = [find_program("redis-server"), "--port", str(server.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running(command, directory, lambda: server.is_ready):
        yield server
