"""What all workers counted, as one page: the living as they told last, and what the dead had counted when they told last.

So a counter never goes back: what a worker had told before it was killed stays in the sum. What it counted after that is
lost with it, at most what came in since the last look. What is not configured any more is left out of all workers' counts and
of the dead's at once, after a page has shown it and nothing of it is in flight.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from relay.config.tree import Config
from relay.telemetry import families as f
from relay.telemetry.exposition import OPENMETRICS, TEXT, CrewPage, expose, wants_openmetrics
from relay.telemetry.observations import NO_KEY, NO_ROUTE
from relay.telemetry.registry import OTHER, Family, Registry

_ENDS: Final = (f.REQUESTS, f.MODEL_LISTS, f.FORGOTTEN)
"""Where requests that have begun are counted when they end."""
EXIT_REASONS: Final = ("exit", "error", "killed")


class Sums:
    """The registry of the dead, and the way to add the living."""

    __slots__ = ("_base", "_bounds", "_config", "_is_leaving", "_loaded", "_process", "may_forget")

    def __init__(self, config: Config, pids: Callable[[], Mapping[str, int]]) -> None:
        """Count for `config`; tell of the processes that `pids` names as well."""
        self._bounds = {f.TIME_TO_FIRST_TOKEN: config.metrics.slo.ttft}
        self._base = Registry(f.all_families(), bounds=self._bounds)
        self._config = config
        self._is_leaving = False
        """Whether there may be series of what is not configured any more."""
        self.may_forget = False
        """Whether a page has shown those, and nothing of them is in flight."""
        self._process = CrewPage(pids)
        self._loaded = (True, 0.0)
        for reason in EXIT_REASONS:
            self._base.number(f.WORKER_EXITS, reason)
        self._base.number(f.LOST)

    def loaded(self, *, is_good: bool, unix_time: float) -> None:
        """Take note of a configuration load."""
        self._loaded = (is_good, unix_time if is_good else self._loaded[1])

    def know(self, config: Config) -> None:
        """Count for `config` from now on: what is configured no more is to be forgotten."""
        self._config = config
        self.leaving()

    def leaving(self) -> None:
        """Take note that there are series of what is not configured any more."""
        self._is_leaving = True

    def forget(self, living: Iterable[Iterable[bytes]]) -> None:
        """Forget what the dead counted for what is configured no more; the `living` have just done so."""
        self.may_forget = self._is_leaving = False
        config, base = self._config, self._base
        routes = {*config.routes, NO_ROUTE, OTHER}
        base.number(f.FORGOTTEN).inc(sum(series.value for labels, series in base.numbers(f.REQUESTS) if labels[1] not in routes))
        base.keep(("route",), routes)
        base.keep(("upstream", "from_upstream", "to_upstream"), {*config.upstreams, OTHER})
        # Workers may know of keys that were made since the configuration was read.
        alive = Registry(f.all_families())
        for pieces in living:
            alive.merge(pieces)
        base.keep(("key",), {*config.key_names, *(labels[0] for labels, _ in alive.numbers(f.KEY_REQUESTS)), NO_KEY, OTHER})

    def ended(self, reason: str, pieces: Iterable[bytes]) -> None:
        """Count the end of a process, and keep what it counted."""
        gone = Registry(f.all_families(), bounds=self._bounds)
        gone.merge(pieces, is_gone=True)
        self._base.number(f.WORKER_EXITS, reason).inc()
        open_then = gone.number(f.STARTED).value - sum(_sum(gone, family) for family in _ENDS)
        # What a worker tells is put together in steps: some may have begun and ended while it told.
        gone.number(f.STARTED).inc(max(-open_then, 0.0))
        self._base.number(f.LOST).inc(max(open_then, 0.0))
        self._base.merge(gone.dump())

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
        if self._is_leaving:
            in_flight = total.numbers(f.IN_FLIGHT)
            self.may_forget = not any(
                gauge.value for labels, gauge in in_flight if labels[0] not in {*self._config.routes, NO_ROUTE, OTHER}
            )
        return 200, OPENMETRICS if is_openmetrics else TEXT, b"".join(page)

    def _slices(self, total: Registry, *, is_openmetrics: bool) -> Iterator[bytes]:
        yield from expose(total, is_openmetrics=is_openmetrics)
        yield self._process.render(is_openmetrics=is_openmetrics)


def _sum(registry: Registry, family: Family) -> float:
    return sum(number.value for _, number in registry.numbers(family))
