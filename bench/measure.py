"""What the operating system says of a process tree: CPU time and resident memory; which cores belong to whom, and how fast they run.

CPU comes from `/proc/PID/task/*/schedstat`, whose first number is nanoseconds on a core (the ticks of `/proc/PID/stat`
are 10 ms coarse); it includes the kernel's work on behalf of the process, such as sending over loopback. Time of a child or thread
that ended within a window is lost. Elsewhere than on Linux psutil's user and system times stand in.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which cores the proxy and which the upstream and the load may use; None where nothing is pinned."""

    proxy: frozenset[int] | None
    rest: frozenset[int] | None

    def describe(self) -> str:
        """Say it in words."""
        if self.proxy is None or self.rest is None:
            return "nothing pinned (one core, or no way to pin): the proxies shared their core with the load"
        return f"proxy pinned to core {min(self.proxy)}, upstream and load to core {min(self.rest)}"


def choose_cores() -> Cores:
    """Give the first core to the proxy and the second to everybody else, where there are two."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores(proxy=None, rest=None)
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        return Cores(proxy=None, rest=None)
    return Cores(proxy=frozenset(usable[:1]), rest=frozenset(usable[1:2]))


_PROBE_STEPS = 40_000
"""One to two milliseconds: long against a timer interrupt, short against the seconds for which a shared core keeps its speed."""


def probe_core(cores: frozenset[int] | None) -> float:
    """Return the CPU seconds that a fixed piece of work takes on the proxy's core right now.

    A virtual machine's core can run at very different speeds from one second to the next without any steal time
    being told; only such a piece of work shows it.
    """
    before = os.sched_getaffinity(0) if cores is not None else None
    if cores is not None:
        os.sched_setaffinity(0, cores)
    try:
        started = time.thread_time()
        total = 0
        for step in range(_PROBE_STEPS):
            total += step * step
        return time.thread_time() - started
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):  # a child may end between the two looks
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _on_core_seconds(process: psutil.Process) -> float:
    tasks = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if not tasks:
        times = process.cpu_times()
        return times.user + times.system
    total = 0
    for task in tasks:
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end between the two looks
            total += int(task.read_text().split()[0])
    return total / 1e9


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its living children have used so far."""
    return sum(map(_on_core_seconds, _tree(pid)))


def wake_ups(pid: int) -> int:
    """Return how often the main threads of a process and its living children, where event loops run, have gone to sleep so far."""
    return sum(process.num_ctx_switches().voluntary for process in _tree(pid))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its living children."""
    return sum(process.memory_info().rss for process in _tree(pid))


def machine_busy_seconds() -> float:
    """Return the CPU time that the whole machine has used so far, over all cores (in steps of 10 ms on Linux)."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
