"""A relay as a process of its own: its event loop, its signals, its exit code."""

import asyncio
import contextlib
import ctypes
import gc
import signal
import sys
from collections.abc import Callable
from typing import Final

from relay.app.application import App
from relay.app.listening import listen_message
from relay.app.reloading import Read
from relay.config.tree import Config
from relay.stores import RedisUnusable, StateFileUnusable

LARGE_BODY_BYTES: Final = 4 * 2**20
"""Allocations from this size on go back to the system at once, as by default those from 128 KiB on do."""
KEPT_BYTES: Final = 16 * 2**20
"""Free memory that is kept at most: a few large bodies and their copies."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Numbers of malloc.h (mallopt(3))."""


def run(config: Config, *, reload: Read | None, announce: Callable[[str], None]) -> int:
    """Serve `config` until a signal ends it; call `announce` with the address once it listens. Returns an exit code."""
    with asyncio.Runner(loop_factory=loop_factory(config.server.loop)) as runner:
        return runner.run(_main(config, reload, announce))


async def _main(config: Config, reload: Read | None, announce: Callable[[str], None]) -> int:
    app = App(config, reload=reload)
    try:
        try:
            url = await app.start()
        except (RedisUnusable, StateFileUnusable) as error:
            sys.stderr.write(f"relay: {error}\n")
            return 1
        except OSError as error:
            sys.stderr.write(listen_message(config, error))
            return 1
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, app.stop)
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        settle_memory()
        announce(url)
        await app.run()
        return 0
    finally:
        await app.close()


def settle_memory() -> None:
    """Leave what was made at start out of garbage collections from now on, and keep some memory at hand for bodies.

    It stays as long as the process; looking through all of it takes some 10 ms, in which no event would pass.
    """
    gc.collect()
    gc.freeze()
    _keep_memory()


def _keep_memory() -> None:
    """Have glibc's allocator keep what a large body took until the next one comes; other allocators are left as they are.

    By its own rules it may give every megabyte back to the system at the end of a request and fetch it anew, page by page, for the next
    one: then a body of 1 MiB takes 2.2 ms instead of 0.8.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, LARGE_BODY_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def loop_factory(wanted: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop that the configuration asks for; None for asyncio's own. Raises ImportError."""
    if wanted == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if wanted == "uvloop":
            raise
        return None
    return uvloop.new_event_loop
