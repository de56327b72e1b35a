"""A registry as text for a scraper: Prometheus text 0.0.4, or OpenMetrics 1.0 when the scraper asks for it.

Rendering 10,000 series takes some milliseconds, in which no event would pass. So it comes in slices, and what asks for
it leaves the event loop to others for a while between two of them.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.utils import floatToGoString

from relay.telemetry.registry import Exemplar, Family, Histogram, Kind, Registry

SLICE_LINES: Final = 100
"""Lines of one slice: about 0.05 ms, and 0.2 ms the first time, when the names of the series are put together."""
PAUSE_SECONDS: Final = 0.001
"""Between two slices: most of the time belongs to the streams, and a page of 10,000 series is still there within half a second."""
TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"


def wants_openmetrics(accept: str) -> bool:
    """Tell whether an `Accept` header asks for OpenMetrics."""
    return any(part.split(";", 1)[0].strip().lower() == "application/openmetrics-text" for part in accept.split(","))


def expose(registry: Registry, *, is_openmetrics: bool) -> Iterator[bytes]:
    """Yield the exposition of `registry` in slices; the end mark of OpenMetrics is not among them."""
    lines: list[str] = []
    for family, found in registry.families():
        lines.append(_head(family, is_openmetrics=is_openmetrics))
        for labels, series in found:
            if not series.lines:
                series.lines = _beginnings(family, labels, series.bounds if isinstance(series, Histogram) else None)
            if isinstance(series, Histogram) and series.exemplars is not None and is_openmetrics:
                lines.extend(_with_exemplars(series, series.exemplars))
            elif isinstance(series, Histogram):
                total = 0
                for line, count in zip(series.lines, series.counts, strict=False):  # two more lines than buckets
                    total += count
                    lines.append(f"{line}{total}\n")
                lines.append(f"{series.lines[-2]}{total}\n")
                lines.append(f"{series.lines[-1]}{series.sum!r}\n")
            else:
                lines.append(f"{series.lines[0]}{_text(series.value)}\n")
            if len(lines) >= SLICE_LINES:
                yield "".join(lines).encode("utf-8")
                lines.clear()
    yield "".join(lines).encode("utf-8")


class ProcessPage:
    """What the Python library tells of a process: CPU, memory, descriptors, garbage collection, interpreter."""

    __slots__ = ("_registry",)

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, *, is_openmetrics: bool) -> bytes:
        """Return the exposition; as OpenMetrics it ends with the end mark."""
        page: bytes = generate_openmetrics(self._registry) if is_openmetrics else generate_latest(self._registry)  # type: ignore[no-untyped-call]  # the library has no annotation here
        return page


class CrewPage:
    """The same of several processes, told apart by a label."""

    __slots__ = ("_pids", "_platform")

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        """Ask `pids` at each scrape for the processes, by the value of the label `worker`."""
        self._pids = pids
        self._platform = PlatformCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        """Yield the families, as a registry of the library does."""
        yield from self._platform.collect()
        families: dict[str, Metric] = {}
        for worker, pid in self._pids().items():
            for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():  # empty for one that has ended
                found = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    found.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
        yield from families.values()

    def render(self, *, is_openmetrics: bool) -> bytes:
        """Return the exposition; as OpenMetrics it ends with the end mark."""
        page: bytes = generate_openmetrics(self) if is_openmetrics else generate_latest(self)  # type: ignore[no-untyped-call]  # `collect` is all they call
        return page


def _with_exemplars(series: Histogram, exemplars: Mapping[int, Exemplar]) -> Iterator[str]:
    total = 0
    for place, count in enumerate(series.counts):
        total += count
        found = exemplars.get(place)
        told = "" if found is None else f' # {{trace_id="{found.trace}"}} {found.value!r} {found.unix_time:.3f}'
        yield f"{series.lines[place]}{total}{told}\n"
    yield f"{series.lines[-2]}{total}\n"
    yield f"{series.lines[-1]}{series.sum!r}\n"


def _text(value: float) -> str:
    return repr(value) if value % 1 else f"{value:.0f}"


def _head(family: Family, *, is_openmetrics: bool) -> str:
    name, words = family.name, family.help.replace("\\", "\\\\").replace("\n", "\\n")
    if is_openmetrics:
        name, words = name.removesuffix("_total"), words.replace('"', '\\"')
    return f"# HELP {name} {words}\n# TYPE {name} {family.kind.value}\n"


def _beginnings(family: Family, labels: tuple[str, ...], bounds: tuple[float, ...] | None) -> tuple[str, ...]:
    pairs = [f'{name}="{_escape(value)}"' for name, value in zip(family.labels, labels, strict=True)]
    joined = ",".join(pairs)
    alone = f"{{{joined}}}" if joined else ""
    if family.kind is not Kind.HISTOGRAM or bounds is None:
        return (f"{family.name}{alone} ",)
    before = f"{joined}," if joined else ""
    texts = [*map(floatToGoString, bounds), "+Inf"]
    buckets = [f'{family.name}_bucket{{{before}le="{text}"}} ' for text in texts]
    return (*buckets, f"{family.name}_count{alone} ", f"{family.name}_sum{alone} ")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
