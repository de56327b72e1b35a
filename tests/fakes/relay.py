"""A running `relay serve` as its own process, with its metrics and its log at hand.

Nothing here belongs to an event loop: the process is a plain Popen and its stderr a file, so one relay can serve a whole module of tests.
Every wait is bounded, and what the relay wrote to stderr is part of each failure.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.client import RawClient, Response
from tests.fakes.ports import free_port
from tests.fakes.upstream import ScriptedUpstream

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 15.0
STOP_SECONDS = 15.0
SETTLE_SECONDS = 10.0
POLL_SECONDS = 0.02
ACCOUNTS = (
    "relay_requests_total",
    "relay_requests_forgotten_total",
    "relay_requests_lost_total",
    "relay_model_lists_total",
    "relay_requests_in_flight",
)
"""What becomes of requests that began: these add up to relay_requests_started_total."""
NOISE = ("Traceback (most recent call last)", "never retrieved", "never awaited", "Unclosed", "ResourceWarning", '"connection_failure"')
"""What a healthy relay never writes."""


def config_for(upstream: ScriptedUpstream, **more: object) -> dict[str, Any]:
    """Configuration with every model going to a scripted upstream named `mine`; `more` adds or replaces top-level settings."""
    return {"upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}}, "routes": {"*": "mine/*"}, **more}


class Metrics:
    """Samples of one scrape, to be asked by name and labels; names are as exposed (`relay_requests_total`)."""

    def __init__(self, samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
        self._samples = samples

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text exposition; raises ValueError when it is not one."""
        samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name, frozenset(sample.labels.items())] = sample.value
        return cls(samples)

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample with these labels (it may have more) that is not 0, else 0; raises LookupError on several."""
        found = [value for value in self._matching(name, labels) if value]
        if len(found) > 1:
            raise LookupError(f"{name}{labels} names {len(found)} samples")
        return found[0] if found else 0.0

    def sum(self, name: str, **labels: str) -> float:
        """Add up every sample with these labels."""
        return sum(self._matching(name, labels))

    def has(self, name: str, **labels: str) -> bool:
        """Tell whether there is such a sample at all, be it 0."""
        return any(True for _ in self._matching(name, labels))

    def since(self, before: "Metrics") -> "Metrics":
        """Return what was added after an earlier scrape (gauges become differences too)."""
        return Metrics({key: value - before._samples.get(key, 0.0) for key, value in self._samples.items()})

    def nonzero(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the samples of a name that are not 0, for messages."""
        return {tuple(sorted(labels)): value for (found, labels), value in self._samples.items() if found == name and value}

    def sunk_since(self, before: "Metrics", *, may_go: bool = False) -> list[str]:
        """Return the relay's own counters that are lower than in an earlier scrape, or gone (unless they `may_go`)."""
        ends = ("_total", "_bucket", "_count", "_sum")
        counters = {key: value for key, value in before._samples.items() if key[0].startswith("relay_") and key[0].endswith(ends)}
        gone = float("inf") if may_go else -1.0
        return [f"{key}: {value} -> {self._samples.get(key)}" for key, value in counters.items() if self._samples.get(key, gone) < value]

    def _matching(self, name: str, labels: Mapping[str, str]) -> Iterator[float]:
        wanted = frozenset(labels.items())
        return (value for (found, own), value in self._samples.items() if found == name and wanted <= own)


class RelayProcess:
    """`python -m relay serve` with a configuration of the test's own, on a free loopback port."""

    def __init__(
        self,
        config: str | Mapping[str, Any],
        directory: Path,
        *,
        env: Mapping[str, str] | None = None,
        flags: tuple[str, ...] = (),
        module: str = "relay",
    ) -> None:
        """Prepare; `env` adds to a clean environment without keys, `flags` are the interpreter's (`-X dev`), `module` is what it runs."""
        tree = yaml.safe_load(config) if isinstance(config, str) else dict(config)
        server = dict(tree.get("server") or {})
        server.setdefault("listen", f"127.0.0.1:{free_port()}")
        self.config = {**tree, "server": server}
        self.port = int(str(server["listen"]).rpartition(":")[2])
        self.config_file = directory / f"relay-{self.port}.yaml"
        self._stderr_file = directory / f"relay-{self.port}.stderr"
        self._stdout_file = directory / f"relay-{self.port}.stdout"
        self._env = {"PATH": os.environ["PATH"], "HOME": str(directory), "LANG": "C.UTF-8", **(env or {})}
        self._flags = flags
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[dict[str, Any]] = []
        self._log_offset = 0
        self._last_page: Metrics | None = None
        """What counters must not fall below: the page before, unless the file or the process is another one since."""

    @property
    def url(self) -> str:
        """A base URL for an SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running.pid

    @property
    def process(self) -> psutil.Process:
        """The process as psutil sees it: memory, descriptors, connections, CPU."""
        return psutil.Process(self.pid)

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "start the relay first"
        return self._process

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace the configuration file (the listener stays); the relay reads it again when it is told to."""
        self._last_page = None  # a name that was taken out may come back, from 0
        self.config = {**config, "server": {**config.get("server", {}), "listen": self.config["server"]["listen"]}}
        self.config_file.write_text(yaml.safe_dump(self.config, sort_keys=False))

    async def start(self) -> Self:
        """Start, and wait until /healthz answers; raises AssertionError with the relay's own words when it does not."""
        self.launch()
        try:
            await self._until_healthy()
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Start without waiting: for relays that are expected to refuse."""
        self.write_config(self.config)
        self._lines, self._log_offset = [], 0
        command = [sys.executable, *self._flags, "-m", self._module, "serve", "--config", str(self.config_file)]
        with self._stderr_file.open("wb") as stderr, self._stdout_file.open("wb") as stdout:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)

    async def _until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            code = self._running.poll()
            assert code is None, f"the relay ended with {code} before it served:\n{self.stderr()}"
            assert time.monotonic() < deadline, f"the relay does not answer /healthz after {START_SECONDS} s:\n{self.stderr()}"
            try:
                if (await self.get("/healthz", within=2)).status == 200:
                    return
            except (OSError, EOFError):
                await asyncio.sleep(POLL_SECONDS)

    async def connect(self, *, receive_buffer: int | None = None) -> RawClient:
        """Open a raw connection; the caller closes it."""
        return await RawClient.open(self.port, receive_buffer=receive_buffer)

    async def get(self, target: str, *, within: float = 5.0) -> Response:
        """Ask for a target on a connection of its own."""
        async with await self.connect() as client:
            await client.request("GET", target, [("Connection", "close")])
            return await client.read_response(method="GET", within=within)

    async def post(self, target: str, value: object, headers: tuple[tuple[str, str], ...] = ()) -> Response:
        """Send JSON on a connection of its own and take the answer."""
        async with await self.connect() as client:
            return await client.exchange(target, value, headers)

    async def metrics(self) -> Metrics:
        """Scrape /metrics, and check that no counter went back since it was last asked for."""
        before = self._last_page
        response = await self.get("/metrics")
        assert response.status == 200, response.body[:500]
        return self._checked(response, before)

    def _checked(self, response: Response, before: Metrics | None) -> Metrics:
        """Read a page that was asked for when `before` was the last one."""
        page = self._last_page = Metrics.parse(response.body.decode())
        # Series of routes, upstreams and keys that are not configured any more are dropped.
        sunk = [] if before is None else page.sunk_since(before, may_go=True)
        assert not sunk, f"counters went back: {sunk[:20]}"
        return page

    async def _page(self) -> Response | None:
        """Ask for the metrics where they are, None when nobody answers: it drains, it is gone, or it is full."""
        own = (self.config.get("metrics") or {}).get("listen")
        port = self.port if own is None else int(str(own).rpartition(":")[2])
        try:
            async with await RawClient.open(port) as client:
                await client.request("GET", "/metrics", [("Connection", "close")])
                response = await client.read_response(method="GET", within=SETTLE_SECONDS)
        except (OSError, EOFError, TimeoutError):
            return None
        return response if response.status == 200 else None

    def stderr(self) -> str:
        """Return everything written to stderr so far."""
        return self._stderr_file.read_text(errors="replace") if self._stderr_file.exists() else ""

    def stdout(self) -> str:
        """Return everything written to stdout so far."""
        return self._stdout_file.read_text(errors="replace") if self._stdout_file.exists() else ""

    def logs(self, event: str | None = None, **fields: object) -> list[dict[str, Any]]:
        """Return the JSON lines of the log, only those with this event and these fields; other lines (the start message) are left out."""
        self._read_log()
        found = [line for line in self._lines if event is None or line.get("event") == event]
        return [line for line in found if all(line.get(name) == value for name, value in fields.items())]

    def _read_log(self) -> None:
        """Take the lines that are new since the last look: the log of a module with many cases is long."""
        with self._stderr_file.open("rb") as file:
            file.seek(self._log_offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._log_offset += len(whole) + len(newline)
        parsed = (_parse_line(line) for line in whole.decode(errors="replace").split("\n"))
        self._lines += [line for line in parsed if line is not None]

    async def wait_log(
        self, event: str = "request", *, count: int = 1, within: float = SETTLE_SECONDS, **fields: object
    ) -> list[dict[str, Any]]:
        """Wait for `count` lines of an event with these fields, and return them; raises AssertionError."""
        deadline = time.monotonic() + within
        while len(found := self.logs(event, **fields)) < count:
            assert time.monotonic() < deadline, f"no {count} lines {event} {fields}:\n{self.stderr()[-4000:]}"
            await asyncio.sleep(POLL_SECONDS)
        return found

    async def settled(self, *, within: float = SETTLE_SECONDS) -> Metrics:
        """Wait until nothing is in flight and every end is counted and logged; return the metrics of that moment."""
        deadline = time.monotonic() + within
        while True:
            metrics = await self.metrics()
            finished = metrics.sum("relay_requests_total") + metrics.sum("relay_requests_forgotten_total")
            logged = len(self.logs("request"))
            in_flight = metrics.nonzero("relay_requests_in_flight")
            if not in_flight and finished == logged:
                return metrics
            state = f"in flight {in_flight}, ended {finished}, logged {logged}"
            assert time.monotonic() < deadline, f"not at rest after {within} s: {state}\n{self.stderr()[-4000:]}"
            await asyncio.sleep(POLL_SECONDS)

    async def assert_identities(self) -> None:
        """Check the accounts at rest: nothing in flight, one log line for each counted end, no violation counted."""
        metrics = await self.settled()
        assert not metrics.nonzero("relay_upstream_in_flight"), metrics.nonzero("relay_upstream_in_flight")
        assert not metrics.nonzero("relay_invariant_violations_total"), metrics.nonzero("relay_invariant_violations_total")
        ids = [line.get("request_id") for line in self.logs("request")]
        assert len(ids) == len(set(ids)), "a request was logged twice"

    async def assert_accounts(self) -> None:
        """Check that every request that began is finished, counted under one outcome, or in flight, and that no counter went back.

        It is asked in a relay that still answers.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            before = self._last_page
            response = await self._page()
            if response is None:
                return
            metrics = self._checked(response, before)
            started = metrics.sum("relay_requests_started_total")
            told = {name: metrics.sum(name) for name in ACCOUNTS}
            if sum(told.values()) == started:  # a page is put together in steps, between which requests begin and end
                return
            assert time.monotonic() < deadline, f"{started} requests began, but {told}"
            await asyncio.sleep(POLL_SECONDS)

    def assert_quiet(self) -> None:
        """Check that no traceback and no complaint of the interpreter was written."""
        text = self.stderr()
        found = [word for word in NOISE if word in text]
        assert not found, f"the relay wrote {found}:\n{text[-8000:]}"

    async def stop(self, *, is_quiet: bool = True) -> None:
        """Check the accounts, send SIGTERM, and expect exit code 0 and, unless told otherwise, a log without tracebacks. Idempotent."""
        if self._process is None:
            return
        process = self._process
        if process.poll() is None:
            await self.assert_accounts()
            process.send_signal(signal.SIGTERM)
        code = await self.wait_exit()
        self._process = None
        assert code == 0, f"the relay ended with {code}:\n{self.stderr()[-8000:]}"
        if is_quiet:
            self.assert_quiet()

    async def wait_exit(self, *, within: float = STOP_SECONDS) -> int:
        """Wait for the end and return the exit code; kills and raises AssertionError when it does not come."""
        process = self._running
        deadline = time.monotonic() + within
        while (code := process.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the relay did not end within {within} s:\n{self.stderr()[-8000:]}")
            await asyncio.sleep(POLL_SECONDS)
        return code

    def kill(self) -> None:
        """End it at once, whatever state it is in. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=5)
            self._process = None


def _parse_line(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None  # a line of the start message that looks like JSON
    return value if isinstance(value, dict) else None
