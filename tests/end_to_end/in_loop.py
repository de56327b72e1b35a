"""A relay inside the test's own event loop: for what needs a changed constant, a broken part, or a look at its tasks.

Everything else about it is as in a process of its own: configuration from a file, real sockets, metrics by HTTP, the log in a file.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

from relay.app.application import App
from relay.config import Config, load
from tests.fakes.relay import ACCOUNTS, Metrics, RelayProcess


class RelayInLoop(RelayProcess):
    """`App` with a configuration of the test's own; `change` may alter the loaded tree, for what YAML cannot say yet."""

    def __init__(self, config: Mapping[str, Any], directory: Path, *, change: Callable[[Config], Config] = lambda config: config) -> None:
        super().__init__(config, directory)
        self._change = change
        self._log_file: BinaryIO
        self.app: App

    async def start(self) -> Self:
        """Listen."""
        self.write_config(self.config)
        self._log_file = self._stderr_file.open("wb")
        self.app = App(self._change(load(str(self.config_file), {})), reload=None, log_file=self._log_file)
        await self.app.start()
        return self

    def metrics_now(self) -> Metrics:
        """Return the metrics without asking for them: a relay that has drained answers nobody."""
        text = b"".join(self.app._metrics.render("")[1])
        return Metrics.parse(text.decode())

    async def drain(self) -> None:
        """Do what a SIGTERM does, until all that is served has ended."""
        self.app.stop()
        await self.app.run()

    async def stop(self, *, is_quiet: bool = True) -> None:
        """Check the accounts and close everything; without a traceback in the log, unless told otherwise."""
        metrics = self.metrics_now()
        assert self._last_page is None or not metrics.sunk_since(self._last_page, may_go=True)
        assert sum(map(metrics.sum, ACCOUNTS)) == metrics.sum("relay_requests_started_total")
        await self.app.close()
        self._log_file.close()
        if is_quiet:
            self.assert_quiet()


@asynccontextmanager
async def relay_in_loop(config: Mapping[str, Any], directory: Path, *, is_quiet: bool = True, **options: Any) -> AsyncIterator[RelayInLoop]:
    """Run a relay in this loop."""
    relay = await RelayInLoop(config, directory, **options).start()
    try:
        yield relay
    finally:
        await relay.stop(is_quiet=is_quiet)
