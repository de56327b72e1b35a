"""A new configuration in place of the old one: built whole and swapped in, or refused whole."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from relay.config.tree import Config

FIXED_SETTINGS: Final = ("max_header", "max_connections", "cors_origins", "trusted_proxies", "loop", "workers")
"""Settings of `server` that the listeners were made with."""

Read = Callable[[], Config]
"""Reads the configuration file again. Raises ConfigInvalid."""


class Reloads:
    """Reads the file and has it adopted, one at a time; whoever asks meanwhile gets another round, so that the newest file wins."""

    __slots__ = ("_adopt", "_is_wanted", "_log", "_read", "_refused", "_task")

    def __init__(self, read: Read | None, adopt: Callable[[Config], Awaitable[None]], refused: Callable[[], None], log: Any) -> None:
        """Call `adopt` with what `read` returns; when either raises, `refused`."""
        self._read = read
        self._adopt = adopt
        self._refused = refused
        self._log = log
        self._is_wanted = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Begin a reload."""
        if self._read is None:
            self._log.warning("reload", message="there is no configuration file to read again")
            return
        self._is_wanted = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(self._read))

    def cancel(self) -> None:
        """Leave off."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, read: Read) -> None:
        while self._is_wanted:
            self._is_wanted = False
            try:
                await self._adopt(await asyncio.to_thread(read))
            except Exception as error:  # whatever is wrong with the new file, the old configuration stays
                self._refused()
                self._log.error("reload", message=str(error), result="refused")
        self._task = None


def fixed_changes(config: Config, bound: Config) -> list[str]:
    """Name the settings in which `config` differs from what the listeners were made with: a reload cannot change them."""
    server, metrics = bound.server, bound.metrics
    fixed = [f"server.{name}" for name in FIXED_SETTINGS if getattr(config.server, name) != getattr(server, name)]
    if (config.server.host, config.server.port) != (server.host, server.port):
        fixed.append("server.listen")
    if (config.metrics.host, config.metrics.port) != (metrics.host, metrics.port):
        fixed.append("metrics.listen")
    if config.metrics.slo.ttft != metrics.slo.ttft:
        fixed.append("metrics.slo.ttft")  # a bound of a histogram, which cannot move while it counts
    if config.metrics.label_values != metrics.label_values:
        fixed.append("metrics.label_values")
    if config.usage != bound.usage:
        fixed.append("usage")
    if config.tracing != bound.tracing:
        fixed.append("tracing")
    if config.logs_prompts != bound.logs_prompts:
        fixed.append("logging.prompts")
    if config.state_dir != bound.state_dir:
        fixed.append("state_dir")
    if config.redis != bound.redis:
        fixed.append("redis")
    return fixed
