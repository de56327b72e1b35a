"""The runs: what load each puts on a proxy, for how long, and what is read meanwhile.

A run is repeated in rounds; within a round the proxies take turns, so that what else the machine does meets them all. Each
turn has a load generator of its own: it ramps up, warms up, then a window between two marks is measured.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import clocks, proxies, scrapes
from bench.load import quantiles
from bench.measure import Cores, cpu_seconds, machine_busy_seconds, probe_core, resident_bytes, wake_ups
from bench.process import Child
from bench.proxies import Proxy, Upstream
from bench.script import IDLE_EVENTS, JSON_MODEL, LOSERS_FILE, REFUSE_PREFIX, STALL_PREFIX, STALL_SECONDS, Script

Reading = dict[str, Any]
"""What one turn of one proxy gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A load: the pattern of the generator, and how many seconds of warm-up and window it gets."""

    name: str
    pattern: str
    connections: int
    model: str
    is_secure: bool = False
    rate: float = 0.0
    body_bytes: int = 1000
    warm_seconds: float = 1.0
    window_seconds: float = 4.0
    routes: dict[str, object] | None = None
    """Routes of a relay of its own, which alone is measured, once and with whole windows; None: everybody as they are."""
    with_direct: bool = False
    """Whether the upstream is also asked without a proxy, as the baseline of delays."""
    only: frozenset[str] = frozenset()
    """The proxies that take part; empty for all that people compare."""

    def is_for(self, proxy: str) -> bool:
        """Tell whether a proxy gets turns in this run."""
        if self.only:
            return proxy in self.only
        if self.routes is not None:
            return proxy == "relay"
        return proxy in proxies.COMPARED or (proxy == "direct" and self.with_direct)


_BRIEF = Script(events=5, interval_us=2_000)
_SPARSE = Script(events=10**6, interval_us=10_000)
SHORT_EVENTS = 5
"""Content events of the short streams: at 40 at a time, 10 ms apart, they make about the event rate of the sparse run."""

SERIES_ROUTES = 165
"""Routes of the scraped relay: each has about 62 series, so that there are 10,000."""

RUNS = {
    run.name: run
    for run in (
        Run(name="stream-sparse", pattern="hold", connections=40, model=_SPARSE.name(), with_direct=True),
        Run(name="stream-dense", pattern="hold", connections=300, model=replace(_SPARSE, interval_us=20_000).name()),
        Run(name="stream-tls", pattern="hold", connections=40, model=_SPARSE.name(secure=True), is_secure=True),
        Run(name="json", pattern="closed", connections=8, model=JSON_MODEL, window_seconds=2.5),
        Run(
            name="stream-overhead",
            pattern="closed",
            connections=40,
            model=Script(events=SHORT_EVENTS, interval_us=10_000).name(),
            window_seconds=3.0,
        ),
        Run(
            name="ttft",
            pattern="open",
            connections=16,
            model=Script(events=20, interval_us=10_000).name(),
            rate=20.0,
            window_seconds=5.0,
            with_direct=True,
        ),
        Run(
            name="memory",
            pattern="hold",
            connections=500,
            model=Script(events=IDLE_EVENTS, interval_us=3_600_000_000).name(),
            with_direct=False,
        ),
        Run(
            name="scrape",
            pattern="hold",
            connections=200,
            model=replace(_SPARSE, interval_us=50_000).name(),
            routes={**{f"route-{number}": "plain/m" for number in range(SERIES_ROUTES)}, "*": "plain/*"},
        ),
        Run(name="telemetry", pattern="script", connections=0, model="", routes={}),
        Run(name="clocks", pattern="script", connections=0, model="clock", routes={"*": "plain/*"}),
        Run(
            name="workers",
            pattern="hold",
            connections=40,
            model=_SPARSE.name(),
            window_seconds=2.5,
            only=frozenset({"relay", "workers", proxies.TWICE}),
        ),
        Run(name="body-1mib", pattern="closed", connections=2, model=JSON_MODEL, body_bytes=2**20, window_seconds=2.5),
        Run(
            name="fallback",
            pattern="open",
            connections=16,
            model=f"main-{_BRIEF.name()}",
            rate=40.0,
            window_seconds=5.0,
            routes={"main-*": [f"plain/{REFUSE_PREFIX}*", "plain/*"]},
        ),
        Run(
            name="hedging",
            pattern="open",
            connections=32,
            model=f"main-{_BRIEF.name()}",
            rate=40.0,
            warm_seconds=3.0,
            window_seconds=9.0,
            routes={"main-*": {"to": [f"plain/{STALL_PREFIX}*", "plain/*"], "hedge": {"after": "p95", "at_most": "10%"}}},
        ),
        Run(
            name="no-hedging",
            pattern="open",
            connections=64,
            model=f"main-{_BRIEF.name()}",
            rate=40.0,
            # What is sampled in the window began up to ten seconds before.
            warm_seconds=STALL_SECONDS,
            window_seconds=6.0,
            routes={"main-*": [f"plain/{STALL_PREFIX}*", "plain/*"]},
        ),
        Run(
            name="everything",
            pattern="hold",
            connections=40,
            model=_SPARSE.name(),
            window_seconds=3.0,
            only=frozenset({"full", "bare"}),
        ),
    )
}

_NEEDS = {
    "stream-tls": ("stream-sparse", "stream-tls"),
    "stream-overhead": ("stream-sparse", "stream-overhead"),
    "event-delay": ("stream-sparse",),
    "hedging": ("hedging", "no-hedging"),
}
SCENARIOS = (*(name for name in RUNS if name != "no-hedging"), "event-delay")
"""Every name that `--only` takes; the delay of events is read in the sparse run."""


def runs_for(scenarios: list[str]) -> list[Run]:
    """Return the runs that the scenarios need, each once, in the order of the table."""
    needed = {name for scenario in scenarios for name in _NEEDS.get(scenario, (scenario,))}
    return [run for name, run in RUNS.items() if name in needed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every run needs: the upstream, the cores, a folder for files, and how long windows are."""

    upstream: Upstream
    upstream_pid: int
    cores: Cores
    folder: Path
    haste: float
    """Factor on every window: 1, or less for a quick look."""
    ends_at: float
    """Loop time after which no further turn begins."""


@asynccontextmanager
async def upstream_of(folder: Path, cores: Cores) -> AsyncIterator[tuple[Upstream, int]]:
    """Run the scripted upstream; yields where it listens, and its process id."""
    child = await Child.start([sys.executable, "-m", "bench.upstream", str(folder)], cores=cores.rest, complaints=folder / "upstream.log")
    try:
        ports = await child.hear(within=15)
        yield Upstream(plain_port=ports["plain"], secure_port=ports["secure"], ca_file=str(folder / "ca.pem")), child.pid
    finally:
        await child.stop()


@asynccontextmanager
async def _load(bench: Bench, run: Run, proxy: Proxy, seed: int) -> AsyncIterator[Child]:
    spec = {
        "port": proxy.secure_port if run.is_secure else proxy.plain_port,
        "key": proxies.KEY,
        "model": run.model,
        "pattern": run.pattern,
        "connections": run.connections * proxy.load,
        "rate": run.rate,
        "body_bytes": run.body_bytes,
        "is_numbered": run.routes is not None,
        "ramp_seconds": (0.8 if run.pattern == "hold" else 0.2) * min(1.0, 2 * bench.haste),
        "seed": seed,
    }
    argv = [sys.executable, "-m", "bench.load", json.dumps(spec)]
    child = await Child.start(argv, cores=bench.cores.rest, complaints=bench.folder / "load.log")
    try:
        await child.hear(within=30)
        yield child
    finally:
        await child.stop()


async def _ask(child: Child, word: str) -> Reading:
    child.say(word)
    return await child.hear(within=10)


async def take_turn(bench: Bench, run: Run, proxy: Proxy, number: int) -> Reading:
    """Put the run's load on the proxy once and return what its window showed (CPU in seconds)."""
    async with _load(bench, run, proxy, number) as load:
        await asyncio.sleep(run.warm_seconds * min(1.0, 2 * bench.haste))
        probes = [probe_core(bench.cores.proxy)]
        await asyncio.sleep(0.05)  # what queued up behind the probe must not stand among the samples
        before = await _ask(load, "reset")
        cpu, wakes = _spent(proxy)
        upstream_cpu = cpu_seconds(bench.upstream_pid)
        everybody = machine_busy_seconds()
        clock = asyncio.get_running_loop().time()
        await asyncio.sleep(run.window_seconds * bench.haste)
        after = await _ask(load, "mark")
        cpu, wakes = (end - start for end, start in zip(_spent(proxy), (cpu, wakes), strict=True))
        seconds = asyncio.get_running_loop().time() - clock
        upstream_cpu = cpu_seconds(bench.upstream_pid) - upstream_cpu
        everybody = machine_busy_seconds() - everybody
        report = await _ask(load, "stop")
        probes.append(probe_core(bench.cores.proxy))
    load_cpu = (after["cpu_ns"] - before["cpu_ns"]) / 1e9 + upstream_cpu
    return {
        "probe_seconds": sum(probes) / len(probes),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "wake_ups": wakes,
        "load": proxy.load,
        "busy_share": cpu / seconds,
        "load_share": load_cpu / seconds,
        "others_share": max(0.0, everybody - cpu - load_cpu) / seconds,
        "events": after["events"] - before["events"],
        "requests": after["requests"] - before["requests"],
        "errors": after["errors"],
        "first_errors": report["first_errors"],
        "ttft": report["ttft"],
        "ttft_first": report["ttft_first"],
        "ttft_fallback": report["ttft_fallback"],
        "delay": report["delay"],
    }


def _spent(proxy: Proxy) -> tuple[float, int]:
    return (0.0, 0) if proxy.child is None else (cpu_seconds(proxy.child.pid), wake_ups(proxy.child.pid))


async def weigh(bench: Bench, run: Run, named: Proxy, number: int) -> Reading:
    """Start a fresh process of the named proxy, and return its memory at rest and what each open idle stream adds (bytes)."""
    name = named.name
    proxy = await proxies.start(name, bench.folder / f"{name}-memory-{number}", bench.upstream, bench.cores.proxy)
    if isinstance(proxy, str) or proxy.child is None:
        raise RuntimeError(f"{name} {proxy}")
    try:
        await asyncio.sleep(0.5)
        at_rest = resident_bytes(proxy.child.pid)
        warm_up = replace(run, connections=20)
        async with _load(bench, warm_up, proxy, number) as load:
            await _ask(load, "stop")
        await asyncio.sleep(0.3)
        before = resident_bytes(proxy.child.pid)
        async with _load(bench, run, proxy, number) as load:
            await asyncio.sleep(1.0)
            after = resident_bytes(proxy.child.pid)
            report = await _ask(load, "stop")
    finally:
        await proxy.child.stop()
    return {
        "rest_bytes": at_rest,
        "stream_bytes": (after - before) / run.connections,
        "errors": report["errors"],
        "first_errors": report["first_errors"],
    }


@asynccontextmanager
async def _own_relay(bench: Bench, run: Run, upstream: Upstream) -> AsyncIterator[tuple[Proxy, Path]]:
    """Run a relay with the run's own routes; yields it and its folder."""
    folder = bench.folder / f"relay-{run.name}"
    folder.mkdir()
    recipe = proxies.relay_with(folder, upstream, run.routes or {})
    proxy = await proxies.start_recipe("relay", recipe, folder, bench.cores.proxy)
    if isinstance(proxy, str) or proxy.child is None:
        raise RuntimeError(f"relay {proxy}")
    try:
        yield proxy, folder
    finally:
        await proxy.child.stop()


async def take_own_turn(bench: Bench, run: Run) -> Reading:
    """Put the run's load on a relay with the run's own routes; return what the window showed, and how long losers stayed open (ms)."""
    losers = bench.folder / LOSERS_FILE
    losers.unlink(missing_ok=True)
    async with _own_relay(bench, run, bench.upstream) as (proxy, _):
        reading = await take_turn(replace(bench, haste=1.0), run, proxy, 0)
    lines = losers.read_text().split() if losers.exists() else []
    return {**reading, "losers": quantiles([round(float(line) * 1e6) for line in lines])}


async def scrape(bench: Bench, run: Run) -> Reading:
    """Load a relay with 10,000 series; return the delays of events in a window without scrapes, and in one with a scrape each second."""
    whole = replace(bench, haste=1.0)
    async with _own_relay(bench, run, bench.upstream) as (proxy, _):
        page = await scrapes.read_page(proxy.plain_port)
        alone = await take_turn(whole, run, proxy, 0)
        task = asyncio.create_task(scrapes.each_second(proxy.plain_port))
        try:
            scraped = await take_turn(whole, run, proxy, 1)
        finally:
            task.cancel()
            ended = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(ended, asyncio.CancelledError):
            raise RuntimeError(f"a scrape failed: {ended}")
    series = sum(not line.startswith(b"#") for line in page.splitlines())
    return {**scraped, "delay_alone": alone["delay"], "cpu_alone_seconds": alone["cpu_seconds"], "series": series}


async def compare_clocks(bench: Bench, run: Run) -> Reading:
    """Put a relay before an upstream of our own; return by how many milliseconds the clocks of its log are off."""
    sent: dict[str, dict[str, float]] = {}
    async with clocks.scripted(sent) as port, _own_relay(bench, run, replace(bench.upstream, plain_port=port)) as (proxy, folder):
        await clocks.ask_all(proxy.plain_port)
        lines = await clocks.read_log(folder / "stderr.log", clocks.STREAMS)
    off = [round(difference * 1e6) for difference in clocks.differences(sent, lines)]
    return {"off": quantiles(off), "errors": 0, "first_errors": []}


async def tell(bench: Bench, run: Run) -> Reading:
    """Return the CPU in microseconds of what metrics and log do for one request, on the proxy's core."""
    argv = [sys.executable, "-m", "bench.telemetry"]
    child = await Child.start(argv, cores=bench.cores.proxy, complaints=bench.folder / "telemetry.log")
    try:
        return {**await child.hear(within=30), "errors": 0, "first_errors": []}
    finally:
        await child.stop()


_OWN_TURNS = {"scrape": scrape, "clocks": compare_clocks, "telemetry": tell}
"""Runs that are measured in a way of their own."""


async def repeat(bench: Bench, run: Run, running: Mapping[str, Proxy], rounds: int) -> dict[str, list[Reading]]:
    """Give each proxy its turn, round after round; a proxy whose turn came to nothing gets no further one in this run."""
    readings: dict[str, list[Reading]] = {name: [] for name in running}
    for number in range(rounds if run.routes is None else 1):
        for name, proxy in running.items():
            if not run.is_for(name) or any(reading.get("is_void") for reading in readings[name]):
                continue
            reading = await _try_turn(bench, run, proxy, number)
            readings[name].append(reading)
            print(f"  {run.name} {number + 1}/{rounds} {name}: {_brief(reading)}", file=sys.stderr, flush=True)
    return readings


async def _try_turn(bench: Bench, run: Run, proxy: Proxy, number: int) -> Reading:
    if asyncio.get_running_loop().time() > bench.ends_at:
        return _void("not run: out of time")
    try:
        if run.routes is not None:
            return await _OWN_TURNS.get(run.name, take_own_turn)(bench, run)
        return await (weigh if run.name == "memory" else take_turn)(bench, run, proxy, number)
    except RuntimeError as why:
        return _void(str(why))


def _void(why: str) -> Reading:
    return {"errors": 1, "first_errors": [why], "is_void": True}


def _brief(reading: Reading) -> str:
    if reading.get("is_void"):
        return f"void, {reading['first_errors'][0]}"
    if "rest_bytes" in reading:
        return f"{reading['rest_bytes'] / 2**20:.1f} MiB at rest, {reading['stream_bytes'] / 1024:.1f} KiB per stream"
    if "off" in reading:
        return f"{reading['off']['count']} clocks, off by {reading['off']['p99_ms']:.2f} ms at p99"
    if "stream_us" in reading:
        return f"{reading['stream_us']:.1f} us per stream, {reading['json_us']:.1f} us per plain answer"
    told = f"{reading['events']} events, {reading['requests']} requests"
    told += f", proxy {reading['busy_share']:.0%}, load {reading['load_share']:.0%}, others {reading['others_share']:.0%} of a core"
    return told + (f", {reading['errors']} errors: {reading['first_errors']}" if reading["errors"] else "")
