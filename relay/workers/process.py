"""The supervisor as a process of its own: its signals, its exit code; how many workers `auto` means."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from relay.app.listening import listen_message
from relay.app.reloading import Read
from relay.config.tree import Config
from relay.workers.supervisor import StartFailed, Supervisor

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use: a quota and a period in microseconds, or `max` (Linux cgroup v2)."""


def run(config: Config, *, reload: Read | None, announce: Callable[[str], None]) -> int:
    """Serve `config` with several workers until a signal ends it; `announce` the address once all listen. Returns an exit code."""
    count = config.server.workers or usable_cores(_QUOTA)
    return asyncio.run(_main(config, count, reload, announce))


async def _main(config: Config, count: int, reload: Read | None, announce: Callable[[str], None]) -> int:
    supervisor = Supervisor(config, count, reload=reload)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    try:
        try:
            url = await supervisor.start()
        except OSError as error:
            sys.stderr.write(listen_message(config, error))
            return 1
        except StartFailed:
            sys.stderr.write("relay: a worker could not start; what it wrote stands above\n")
            return 1
        if not supervisor.is_stopping:
            announce(url)
        await supervisor.run()
        if supervisor.has_given_up:
            sys.stderr.write("relay: a worker died over and over; what it wrote, and the log's lines of its ends, stand above\n")
            return 1
        return 0
    finally:
        await supervisor.close()


def usable_cores(quota: Path) -> int:
    """Return how many cores this process may use, at least 1: those it may run on, or what its container's `quota` file allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()[:2]
        return max(1, min(cores, -(-int(allowed) // int(period))))
    except (OSError, ValueError):
        return cores
