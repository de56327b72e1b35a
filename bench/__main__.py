"""The command line of the bench: `python -m bench [--quick] [--only NAMES] [--proxies NAMES] [--json FILE]`.

Prints one Markdown table to standard output and progress to standard error. Always ends with 0 once it ran: it reports, it
does not judge.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import limits, proxies, table
from bench.measure import Cores, choose_cores
from bench.process import raise_file_limit
from bench.proxies import Proxy
from bench.scenarios import SCENARIOS, Bench, repeat, runs_for, upstream_of

_ALIASES = {"aiohttp": "conventional"}
_PACED = {"stream-sparse": 4000.0, "stream-tls": 4000.0, "stream-dense": 15000.0, "workers": 4000.0, "everything": 4000.0}
"""Events per second that the timetables of these runs ask for."""
_ROUNDS = 3
_QUICK_HASTE = 0.3
_WHOLE_SECONDS, _QUICK_SECONDS = 600.0, 80.0
"""No turn begins later: the whole stays within 11 minutes, a quick look within 90 s."""
_NOT_QUICK = frozenset({"hedging", "fallback"})
"""Their windows cannot be shortened; left out of a quick look unless they are named."""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the relay beside nginx and a conventional proxy.")
    parser.add_argument("--quick", action="store_true", help="one round with short windows: a first look within 90 s")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--proxies", default="relay,nginx,aiohttp", metavar="NAME[,NAME]", help="of relay, nginx, aiohttp")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's readings here")
    given = parser.parse_args(argv)
    usual = [name for name in SCENARIOS if not (given.quick and name in _NOT_QUICK)]
    given.only = given.only.split(",") if given.only is not None else usual
    given.proxies = [_ALIASES.get(name, name) for name in given.proxies.split(",")]
    if unknown := [*(set(given.only) - set(SCENARIOS)), *(set(given.proxies) - set(proxies.NAMES))]:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return given


def _machine(cores: Cores) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop"))
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}; {cores.describe()}."


def _all_proxies(given: argparse.Namespace) -> list[str]:
    """Add what no person compares: other relays, where a run of theirs is asked for, and no proxy at all."""
    taking_part = frozenset().union(*(run.only for run in runs_for(given.only))) - set(given.proxies)
    others = [name for name in proxies.NAMES if name in taking_part] if "relay" in given.proxies else []
    return [*given.proxies, *others, "direct"]


async def _start_all(names: list[str], bench: Bench) -> tuple[dict[str, Proxy], dict[str, str]]:
    running: dict[str, Proxy] = {}
    absent: dict[str, str] = {}
    for name in names:
        proxy = await proxies.start(name, bench.folder / name, bench.upstream, bench.cores.proxy)
        if isinstance(proxy, str):
            absent[name] = proxy
        else:
            running[name] = proxy
    if "workers" in running:
        running[proxies.TWICE] = replace(running["workers"], load=proxies.WORKERS)
    return running, absent


async def _measure(given: argparse.Namespace, cores: Cores, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    rounds, haste, seconds = (1, _QUICK_HASTE, _QUICK_SECONDS) if given.quick else (_ROUNDS, 1.0, _WHOLE_SECONDS)
    ends_at = asyncio.get_running_loop().time() + seconds
    async with upstream_of(folder, cores) as (upstream, pid):
        bench = Bench(upstream=upstream, upstream_pid=pid, cores=cores, folder=folder, haste=haste, ends_at=ends_at)
        running, absent = await _start_all(_all_proxies(given), bench)
        try:
            readings = {run.name: await repeat(bench, run, running, rounds) for run in runs_for(given.only)}
        finally:
            for proxy in running.values():
                if proxy.child is not None:
                    await proxy.child.stop()
    return readings, absent


def _notes(readings: table.Readings, absent: dict[str, str]) -> list[str]:
    missing = [f"{name} not compared: {why}" for name, why in absent.items()]
    return (
        missing + table.doubts(readings, _PACED) + table.events_per_wake_up(readings) + table.core_speed(readings) + table.company(readings)
    )


def main(argv: list[str] | None = None) -> int:
    """Run the bench; returns 0."""
    given = _arguments(argv)
    cores = choose_cores()
    if cores.rest is not None:
        os.sched_setaffinity(0, cores.rest)  # the bench itself must not disturb the proxy either
    raise_file_limit()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        readings, absent = asyncio.run(_measure(given, cores, Path(folder)))
    print(f"{_machine(cores)}\n")
    print(table.render(readings, given.only))
    if notes := _notes(readings, absent):
        print("\n" + "\n".join(f"- {note}" for note in notes))
    print(f"\n{limits.report()}")
    if given.json is not None:
        names = proxies.COMPARED
        figures = [
            {"scenario": figure.scenario, "figure": figure.label, "unit": figure.unit, **table.values(figure, readings, names)}
            for figure in table.FIGURES
            if figure.scenario in given.only
        ]
        record = {"machine": _machine(cores), "figures": figures, "readings": readings, "absent": absent}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
