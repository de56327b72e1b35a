"""What all workers counted, as one page: the living as they told last, and what the dead had counted when they told last.

So a counter never goes back: what a worker had told before it was killed stays in the sum. What it counted after that is
lost with it, at most what came in since the last look.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from relay.config.tree import Config
from relay.telemetry import families as f
from relay.telemetry.exposition import OPENMETRICS, TEXT, CrewPage, expose, wants_openmetrics
from relay.telemetry.observations import NO_ROUTE
from relay.telemetry.registry import OTHER, Registry

EXIT_REASONS: Final = ("exit", "error", "killed")


class Sums:
    """The registry of the dead, and the way to add the living."""

    __slots__ = ("_base", "_bounds", "_loaded", "_process")

    def __init__(self, config: Config, pids: Callable[[], Mapping[str, int]]) -> None:
        """Count for `config`; tell of the processes that `pids` names as well."""
        self._bounds = {f.TIME_TO_FIRST_TOKEN: config.metrics.slo.ttft}
        self._base = Registry(f.all_families(), bounds=self._bounds)
        self._process = CrewPage(pids)
        self._loaded = (True, 0.0)
        for reason in EXIT_REASONS:
            self._base.number(f.WORKER_EXITS, reason)

    def loaded(self, *, is_good: bool, unix_time: float) -> None:
        """Take note of a configuration load."""
        self._loaded = (is_good, unix_time if is_good else self._loaded[1])

    def know(self, config: Config) -> None:
        """Forget what the dead counted for routes and upstreams that the configuration has no more."""
        self._base.keep(("route",), {*config.routes, NO_ROUTE, OTHER})
        self._base.keep(("upstream", "from_upstream", "to_upstream"), {*config.upstreams, OTHER})

    def ended(self, reason: str, pieces: Iterable[bytes]) -> None:
        """Count the end of a process, and keep what it counted."""
        self._base.number(f.WORKER_EXITS, reason).inc()
        self._base.merge(pieces, is_gone=True)

    def total(self, living: Iterable[Iterable[bytes]], ready: int, starting: int) -> Registry:
        """Return what all of them counted together."""
        total = Registry(f.all_families(), bounds=self._bounds)
        total.merge(self._base.dump())
        for pieces in living:
            total.merge(pieces)
        total.number(f.WORKERS, "ready").set(ready)
        total.number(f.WORKERS, "starting").set(starting)
        is_good, unix_time = self._loaded
        total.number(f.RELOAD_SUCCESSFUL).set(1 if is_good else 0)
        total.number(f.RELOAD_TIME).set(unix_time)
        return total

    async def render(self, total: Registry, accept: str) -> tuple[int, bytes, bytes]:
        """Return the page's status, content type and body in the format that `accept` asks for."""
        is_openmetrics = wants_openmetrics(accept)
        page = []
        for piece in self._slices(total, is_openmetrics=is_openmetrics):
            page.append(piece)
            await asyncio.sleep(0)
        return 200, OPENMETRICS if is_openmetrics else TEXT, b"".join(page)

    def _slices(self, total: Registry, *, is_openmetrics: bool) -> Iterator[bytes]:
        yield from expose(total, is_openmetrics=is_openmetrics)
        yield self._process.render(is_openmetrics=is_openmetrics)
