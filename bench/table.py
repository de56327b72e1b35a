"""Turns the readings of all rounds into figures, and the figures into one Markdown table.

Pure: no process is started and no clock is read here. A figure is the median over the rounds; CPU figures are the proxy's own, delays
have the direct connection's quantile taken off. `reach` is what the relay has to meet, `aim` what it hopes for; bounds
given as a multiple of nginx are not judged where nginx did not run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.proxies import TWICE
from bench.scenarios import SHORT_EVENTS

Readings = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Run -> proxy -> its rounds."""
Value = Callable[[Readings, str], float | None]
"""The figure of one proxy, or None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row: what is measured, in which unit, and the bounds on the relay's value."""

    scenario: str
    label: str
    unit: str
    value: Value
    reach: float | None
    """None for a figure that is only told."""
    aim: float | None = None
    is_times_nginx: bool = False

    def bound(self, limit: float | None) -> str:
        """Write one bound as a cell."""
        if limit is None:
            return ""
        return f"<= {limit:g} x nginx" if self.is_times_nginx else f"<= {limit:g} {self.unit}"


def _sound(readings: Readings, run: str, proxy: str) -> list[Mapping[str, Any]]:
    return [reading for reading in readings.get(run, {}).get(proxy, ()) if not reading.get("is_void")]


def _cpu_us_per(run: str, unit: str) -> Value:
    def value(readings: Readings, proxy: str) -> float | None:
        costs = [1e6 * reading["cpu_seconds"] / reading[unit] for reading in _sound(readings, run, proxy) if reading[unit]]
        return median(costs) if costs else None

    return value


def _beyond(whole: Value, part: Value, times: int) -> Value:
    def value(readings: Readings, proxy: str) -> float | None:
        total, each = whole(readings, proxy), part(readings, proxy)
        return None if total is None or each is None else total - times * each

    return value


def _added_ms(run: str, sample: str, quantile: str) -> Value:
    def at(readings: Readings, proxy: str) -> float | None:
        marks = [reading[sample][quantile] for reading in _sound(readings, run, proxy) if reading[sample]["count"]]
        return median(marks) if marks else None

    def value(readings: Readings, proxy: str) -> float | None:
        through, direct = at(readings, proxy), at(readings, "direct")
        return None if through is None or direct is None else through - direct

    return value


def _ms(run: str, sample: str, quantile: str, *, beyond: str | None = None) -> Value:
    """Return a quantile of one sample of the relay's own, less the same one of the sample `beyond`."""

    def value(readings: Readings, proxy: str) -> float | None:
        whole = [reading for reading in _sound(readings, run, proxy) if reading[sample]["count"]]
        marks = [reading[sample][quantile] - (reading[beyond][quantile] if beyond else 0.0) for reading in whole]
        return median(marks) if marks else None

    return value


def _telemetry(readings: Readings, proxy: str) -> float | None:
    costs = [reading["stream_us"] for reading in _sound(readings, "telemetry", proxy)]
    return median(costs) if costs else None


def _memory(field: str, unit_bytes: int) -> Value:
    def value(readings: Readings, proxy: str) -> float | None:
        sizes = [reading[field] / unit_bytes for reading in _sound(readings, "memory", proxy)]
        return median(sizes) if sizes else None

    return value


def _times(run: str, above: str, below: str) -> Value:
    """Return the CPU per event of one kind of relay as a multiple of another's: the median of the rounds' own ratios."""
    cost = _cpu_us_per(run, "events")

    def value(readings: Readings, proxy: str) -> float | None:
        if proxy != "relay":
            return None
        found = []
        for more, less in zip(_sound(readings, run, above), _sound(readings, run, below), strict=False):
            pair: Readings = {run: {above: [more], below: [less]}}
            much, little = cost(pair, above), cost(pair, below)
            if little and much is not None:
                found.append(much / little)
        return median(found) if found else None

    return value


def _milli(value: Value) -> Value:
    def scaled(readings: Readings, proxy: str) -> float | None:
        found = value(readings, proxy)
        return None if found is None else found / 1000

    return scaled


_SPARSE = _cpu_us_per("stream-sparse", "events")
_TLS = _cpu_us_per("stream-tls", "events")
_SHORT = _cpu_us_per("stream-overhead", "requests")
_BODY = _milli(_cpu_us_per("body-1mib", "requests"))

FIGURES = (
    Figure(
        scenario="stream-sparse",
        label="CPU per event, 40 streams, 10 ms apart",
        unit="us",
        value=_SPARSE,
        reach=1.7,
        aim=1.4,
        is_times_nginx=True,
    ),
    Figure(
        scenario="stream-dense",
        label="CPU per event, 300 streams, 20 ms apart",
        unit="us",
        value=_cpu_us_per("stream-dense", "events"),
        reach=2.0,
        aim=1.5,
        is_times_nginx=True,
    ),
    Figure(scenario="stream-tls", label="CPU per event that TLS adds", unit="us", value=_beyond(_TLS, _SPARSE, 1), reach=15.0, aim=10.0),
    Figure(scenario="json", label="CPU per non-streaming request", unit="us", value=_cpu_us_per("json", "requests"), reach=200.0, aim=60.0),
    Figure(
        scenario="stream-overhead",
        label="CPU per stream beyond its events",
        unit="us",
        value=_beyond(_SHORT, _SPARSE, SHORT_EVENTS),
        reach=450.0,
        aim=220.0,
    ),
    Figure(scenario="ttft", label="added TTFT p50, 20 streams/s", unit="ms", value=_added_ms("ttft", "ttft", "p50_ms"), reach=0.8, aim=0.3),
    Figure(scenario="ttft", label="added TTFT p99, 20 streams/s", unit="ms", value=_added_ms("ttft", "ttft", "p99_ms"), reach=2.0, aim=0.6),
    Figure(
        scenario="event-delay",
        label="added delay per event p99",
        unit="ms",
        value=_added_ms("stream-sparse", "delay", "p99_ms"),
        reach=0.3,
        aim=None,
    ),
    Figure(scenario="clocks", label="how far the log's clocks are off, p99", unit="ms", value=_ms("clocks", "off", "p99_ms"), reach=5.0),
    Figure(scenario="telemetry", label="CPU of metrics and log per stream", unit="us", value=_telemetry, reach=25.0),
    Figure(
        scenario="scrape",
        label="p99 delay that a scrape of 10,000 series a second adds, 200 streams",
        unit="ms",
        value=_ms("scrape", "delay", "p99_ms", beyond="delay_alone"),
        reach=2.0,
    ),
    Figure(scenario="memory", label="memory per open idle stream", unit="KiB", value=_memory("stream_bytes", 1024), reach=30.0, aim=12.0),
    Figure(scenario="memory", label="memory of the process at rest", unit="MB", value=_memory("rest_bytes", 10**6), reach=60.0, aim=None),
    Figure(
        scenario="workers",
        label="CPU per event, two workers to one, each with that one's load",
        unit="x",
        value=_times("workers", TWICE, "relay"),
        reach=1.05,
        aim=1.0,
    ),
    Figure(
        scenario="workers",
        label="CPU per event, two workers to one, the same load in all",
        unit="x",
        value=_times("workers", "workers", "relay"),
        reach=None,
    ),
    Figure(
        scenario="everything",
        label="CPU per event, everything on to all off that can be",
        unit="x",
        value=_times("everything", "full", "bare"),
        reach=1.1,
        aim=1.0,
    ),
    Figure(
        scenario="fallback",
        label="added TTFT p50 of a first target that answers 503",
        unit="ms",
        value=_ms("fallback", "ttft_fallback", "p50_ms", beyond="ttft_first"),
        reach=1.0,
    ),
    Figure(
        scenario="hedging",
        label="TTFT p99, 5 % of attempts stall 10 s, with hedge",
        unit="ms",
        value=_ms("hedging", "ttft", "p99_ms"),
        reach=100.0,
        aim=50.0,
    ),
    Figure(
        scenario="hedging",
        label="TTFT p99, 5 % of attempts stall 10 s, without hedge",
        unit="ms",
        value=_ms("no-hedging", "ttft", "p99_ms"),
        reach=None,
    ),
    Figure(
        scenario="hedging",
        label="a loser's connection closed after, p99",
        unit="ms",
        value=_ms("hedging", "losers", "p99_ms"),
        reach=50.0,
    ),
    Figure(scenario="body-1mib", label="CPU per request with a 1 MiB body", unit="ms", value=_BODY, reach=2.0, aim=1.0),
)


def values(figure: Figure, readings: Readings, proxies: Sequence[str]) -> dict[str, float | None]:
    """Return the figure of each proxy."""
    return {proxy: figure.value(readings, proxy) for proxy in proxies}


def ratio(figure: Figure, readings: Readings) -> float | None:
    """Return the relay's figure as a multiple of nginx's; None where one is missing or nginx's is not above zero.

    Where the figure bounds this ratio it is the median of the rounds' own ratios: turns of one round lie close together in time, so that a
    machine that changes its speed from round to round moves both sides.
    """
    found = values(figure, readings, ("relay", "nginx"))
    relay, nginx = found["relay"], found["nginx"]
    if relay is None or nginx is None or nginx <= 0:
        return None
    return _paired(figure.value, figure.scenario, readings) if figure.is_times_nginx else relay / nginx


def _paired(value: Value, run: str, readings: Readings, *, at_equal_speed: bool = False) -> float | None:
    of_proxies = readings[run]
    found = []
    for relay, nginx in zip(of_proxies["relay"], of_proxies["nginx"], strict=False):
        pair: Readings = {run: {"relay": [relay], "nginx": [nginx]}}
        above, below = value(pair, "relay"), value(pair, "nginx")
        if above is not None and below:
            speed = nginx["probe_seconds"] / relay["probe_seconds"] if at_equal_speed else 1.0
            found.append(above / below * speed)
    return median(found) if found else None


def verdict(figure: Figure, value: float | None, times_nginx: float | None) -> str:
    """Judge the relay's value: aim, reached, missed, or why it cannot be judged."""
    if value is None:
        return "not measured"
    if figure.is_times_nginx:
        if times_nginx is None:
            return "not compared"
        value = times_nginx
    if figure.aim is not None and value <= figure.aim:
        return "aim"
    if figure.reach is None:
        return "told"
    return "reached" if value <= figure.reach else "missed"


def _cell(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def _ratio(found: Mapping[str, float | None], times_nginx: float | None) -> str:
    if not found["nginx"]:
        return "not compared"
    return "-" if times_nginx is None else f"{times_nginx:.2f}"


def render(readings: Readings, scenarios: Sequence[str]) -> str:
    """Return the Markdown table of the figures of these scenarios."""
    rows = [("figure", "reach", "aim", "relay", "x nginx", "conventional", "nginx", "verdict")]
    for figure in FIGURES:
        if figure.scenario not in scenarios:
            continue
        found = values(figure, readings, ("relay", "conventional", "nginx"))
        times_nginx = ratio(figure, readings)
        nginx = "not compared" if found["nginx"] is None else _cell(found["nginx"], figure.unit)
        rows.append(
            (
                figure.label,
                figure.bound(figure.reach),
                figure.bound(figure.aim),
                _cell(found["relay"], figure.unit),
                _ratio(found, times_nginx),
                _cell(found["conventional"], figure.unit),
                nginx,
                verdict(figure, found["relay"], times_nginx),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def doubts(readings: Readings, rates: Mapping[str, float]) -> list[str]:
    """Return what makes a figure less than trustworthy: failures, a load that could not keep its pace (`rates`: run -> units/s)."""
    found = []
    for run, of_proxies in readings.items():
        for proxy, rounds in of_proxies.items():
            errors = sum(reading["errors"] for reading in rounds)
            if errors:
                first = next(reading["first_errors"][0] for reading in rounds if reading["first_errors"])
                found.append(f"{run}, {proxy}: {errors} failed; the first: {first}")
            for reading in rounds:
                pace = reading["events"] / reading["seconds"] if "events" in reading else rates.get(run, 0.0)
                asked = rates.get(run, 0.0) * reading.get("load", 1)
                if pace < 0.95 * asked:
                    found.append(f"{run}, {proxy}: {pace:.0f} events/s of {asked:.0f} asked for")
                    break
    return found


def events_per_wake_up(readings: Readings) -> list[str]:
    """Return how many events one wake-up of a loop served where workers were compared: that is what the ratios hang on."""
    found = []
    for proxy, rounds in readings.get("workers", {}).items():
        served = [reading["events"] / reading["wake_ups"] for reading in rounds if reading.get("wake_ups")]
        if served:
            found.append(f"{_LOADS[proxy]} {median(served):.1f}")
    return [f"events that one wake-up of an event loop served: {', '.join(found)}"] if found else []


_LOADS = {
    "relay": "in one process",
    "workers": "in two workers with its load between them",
    TWICE: "in two workers with its load each",
}


_SPEED_SPREAD = 1.15
"""The slowest over the fastest probe of the proxy's core, above which the reader is told."""


def core_speed(readings: Readings) -> list[str]:
    """Return what to know of a core whose own speed changed meanwhile: how much, and the bounded ratios with that taken out."""
    rounds = [reading for of_proxies in readings.values() for of_proxy in of_proxies.values() for reading in of_proxy]
    probes = sorted(reading["probe_seconds"] for reading in rounds if reading.get("probe_seconds"))
    if not probes or probes[-1] < _SPEED_SPREAD * probes[0]:
        return []
    low, middle, high = (1e3 * seconds for seconds in (probes[0], median(probes), probes[-1]))
    found = [
        f"the proxy's core changed its own speed: a fixed piece of work beside each turn took {low:.1f} to {high:.1f} ms "
        f"(median {middle:.1f}); figures in us and ms move with it"
    ]
    for figure in FIGURES:
        if figure.is_times_nginx and ratio(figure, readings) is not None:
            equal = _paired(figure.value, figure.scenario, readings, at_equal_speed=True)
            found.append(f"{figure.label}: {equal:.2f} x nginx with that speed taken out of each turn (the table has it in)")
    return found


_OTHERS_SHARE = 0.1
"""Of one core, used by processes outside the bench during a turn: more, and no figure but memory is the proxy's alone."""


def company(readings: Readings) -> list[str]:
    """Return what to know of other work on the machine: in how many turns there was too much of it."""
    rounds = [reading for of_proxies in readings.values() for of_proxy in of_proxies.values() for reading in of_proxy]
    shares = [reading["others_share"] for reading in rounds if "others_share" in reading]
    crowded = [share for share in shares if share > _OTHERS_SHARE]
    if not crowded:
        return []
    return [
        f"other processes took up to {max(crowded):.0%} of a core, more than {_OTHERS_SHARE:.0%} in {len(crowded)} of {len(shares)} turns: "
        "TTFT and delays are partly theirs, and events that waited together cost less CPU each; run again on a quiet machine"
    ]
