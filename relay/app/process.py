"""A relay as a process of its own: its event loop, its signals, its exit code."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable

from relay.app.application import App
from relay.app.listening import listen_message
from relay.app.reloading import Read
from relay.config.tree import Config
from relay.stores import RedisUnusable, StateFileUnusable


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
    """Leave what was made at start out of garbage collections from now on.

    It stays as long as the process; looking through all of it takes some 10 ms, in which no event would pass.
    """
    gc.collect()
    gc.freeze()


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
