"""Both formats against the Python library's own writer and parsers, and against promtool."""

import shutil
import subprocess
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay.telemetry.exposition import SLICE_LINES, ProcessPage, expose, wants_openmetrics
from relay.telemetry.families import all_families
from relay.telemetry.registry import Family, Kind, Registry

COUNTER = Family(name="relay_a_total", help='A "quoted" \\ word.', labels=("route",))
GAUGE = Family(name="relay_b", help="B.", labels=("route", "state"))
PLAIN = Family(name="relay_c_total", help="C.")
TIMES = Family(name="relay_d_seconds", help="D.", labels=("route",), buckets=(0.0001, 0.1, 1, 10, 1048576))
FAMILIES = (COUNTER, GAUGE, PLAIN, TIMES)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def page(registry: Registry, *, is_openmetrics: bool) -> str:
    text = b"".join(expose(registry, is_openmetrics=is_openmetrics)).decode()
    return text + "# EOF\n" if is_openmetrics else text


def read(text: str, parse: Callable[[str], Iterable[object]]) -> tuple[dict[str, tuple[str, str]], Samples]:
    heads, samples = {}, {}
    for family in parse(text):
        heads[family.name] = (family.type, family.documentation)  # type: ignore[attr-defined]
        for sample in family.samples:  # type: ignore[attr-defined]
            samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return heads, samples


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e"), max_size=8)
VALUES = st.floats(0, 1e12)


@pytest.mark.parametrize("is_openmetrics", [False, True])
@given(observed=st.lists(st.tuples(NAMES, NAMES, VALUES), min_size=1, max_size=5))
def test_the_page_says_what_the_library_would_say(is_openmetrics: bool, observed: list[tuple[str, str, float]]) -> None:
    disable_created_metrics()
    mine, library = Registry(FAMILIES), CollectorRegistry(auto_describe=False)
    counter = Counter("relay_a", COUNTER.help, COUNTER.labels, registry=library)
    gauge = Gauge("relay_b", GAUGE.help, GAUGE.labels, registry=library)
    plain = Counter("relay_c", PLAIN.help, registry=library)
    times = Histogram("relay_d_seconds", TIMES.help, TIMES.labels, buckets=TIMES.buckets, registry=library)
    for route, state, value in observed:
        mine.number(COUNTER, route).inc(value)
        mine.number(GAUGE, route, state).set(value)
        mine.number(PLAIN).inc(value)
        mine.histogram(TIMES, route).observe(value)
        counter.labels(route).inc(value)
        gauge.labels(route, state).set(value)
        plain.inc(value)
        times.labels(route).observe(value)
    parse = parse_openmetrics if is_openmetrics else parse_text
    theirs = (generate_openmetrics if is_openmetrics else generate_latest)(library).decode()
    assert read(page(mine, is_openmetrics=is_openmetrics), parse) == read(theirs, parse)


def filled(routes: int = 3) -> Registry:
    """A registry with something in every family."""
    made = Registry(all_families())
    for number in range(routes):
        for family in all_families():
            labels = [f"{label}-{number}" for label in family.labels]
            if family.kind is Kind.HISTOGRAM:
                made.histogram(family, *labels).observe(0.5 * number)
            else:
                made.number(family, *labels).inc(number + 0.25)
    return made


def test_slices_are_bounded_and_whole_lines() -> None:
    made = filled(40)
    slices = list(expose(made, is_openmetrics=False))
    assert len(slices) > 5
    for piece in slices:
        assert piece.count(b"\n") <= SLICE_LINES + 30  # the histogram that fills it is written whole
        assert piece.endswith(b"\n")


def test_series_that_come_and_go_between_two_slices_do_no_harm() -> None:
    made = filled(40)
    slices = expose(made, is_openmetrics=False)
    first = next(slices)
    made.keep(("route",), {"route-1"})
    made.number(next(family for family in all_families() if family.name == "relay_requests_in_flight"), "new", "true").inc()
    assert read((first + b"".join(slices)).decode(), parse_text)


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4", True),
        ("text/html, Application/OpenMetrics-Text; version=1.0.0", True),
    ],
)
def test_the_format_is_what_the_scraper_asks_for(accept: str, is_openmetrics: bool) -> None:
    assert wants_openmetrics(accept) is is_openmetrics


@pytest.mark.parametrize("is_openmetrics", [False, True])
def test_the_process_is_told_of_too(is_openmetrics: bool) -> None:
    text = ProcessPage().render(is_openmetrics=is_openmetrics).decode()
    _, samples = read(text, parse_openmetrics if is_openmetrics else parse_text)
    names = {name for name, _ in samples}
    assert {"process_cpu_seconds_total", "process_open_fds", "python_info", "python_gc_collections_total"} <= names
    assert text.endswith("# EOF\n") is is_openmetrics


def test_promtool_finds_nothing_to_say_about_the_page() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = page(filled(), is_openmetrics=False).encode() + ProcessPage().render(is_openmetrics=False)
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=30, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
