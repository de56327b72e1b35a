"""Exemplars: which traces stand beside which buckets, and on which pages."""

from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay.exchange import Operation, Outcome, Trace
from relay.telemetry.exemplars import Exemplars
from relay.telemetry.metrics import Metrics
from relay.telemetry.registry import Registry
from tests.telemetry.summaries import CONFIG, attempt, ended
from tests.telemetry.test_exposition import page

OFFSET = 1_700_000_000.0
FIRST, SECOND = "0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736"
DURATION, TTFT = "relay_request_duration_seconds_bucket", "relay_time_to_first_token_seconds_bucket"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CONFIG, "test", connections=dict, dropped=lambda: 0)


def observe(metrics: Metrics, trace: Trace | None, *, ttft: float | None = 0.4, **more: Any) -> None:
    """Have a stream of two seconds counted and kept."""
    exchange, summary = ended(Outcome.COMPLETE, attempt(), trace=trace, **more)
    summary = replace(summary, ttft_seconds=ttft)
    metrics.began()
    metrics.ended(exchange, summary)
    Exemplars(metrics.registry, clock=lambda: OFFSET).ended(exchange, summary)


def told(registry: Registry) -> dict[tuple[str, str], tuple[str, float, float]]:
    """The exemplars of a page, by sample and bound: trace, value and Unix time."""
    found = {}
    for family in parse_openmetrics(page(registry, is_openmetrics=True)):
        for sample in family.samples:
            if sample.exemplar is not None:
                own = sample.exemplar
                found[sample.name, sample.labels["le"]] = (own.labels["trace_id"], own.value, float(own.timestamp))
    return found


def test_a_recorded_trace_stands_beside_its_buckets(metrics: Metrics) -> None:
    observe(metrics, Trace(id=FIRST, is_sampled=True))
    assert told(metrics.registry) == {
        (DURATION, "2.0"): (FIRST, 2.0, OFFSET + 12.0),
        (TTFT, "0.5"): (FIRST, 0.4, OFFSET + 12.0),
    }


def test_the_last_trace_of_a_bucket_stays_and_other_buckets_keep_theirs(metrics: Metrics) -> None:
    for trace, ttft in ((FIRST, 0.4), (SECOND, 0.45), (SECOND, 999.0)):
        observe(metrics, Trace(id=trace, is_sampled=True), ttft=ttft)
    found = told(metrics.registry)
    assert found[TTFT, "0.5"][:2] == (SECOND, 0.45)
    assert found[TTFT, "+Inf"][:2] == (SECOND, 999.0)


@pytest.mark.parametrize("trace", [None, Trace(id=FIRST)])
def test_a_trace_that_is_not_recorded_is_not_told(metrics: Metrics, trace: Trace | None) -> None:
    observe(metrics, trace)
    assert told(metrics.registry) == {}


def test_an_answer_without_a_first_token_has_its_duration_only(metrics: Metrics) -> None:
    observe(metrics, Trace(id=FIRST, is_sampled=True), ttft=None, is_stream=False)
    assert set(told(metrics.registry)) == {(DURATION, "2.0")}


def test_a_list_of_models_is_nobodys_business(metrics: Metrics) -> None:
    observe(metrics, Trace(id=FIRST, is_sampled=True), ttft=None, operation=Operation.MODELS, route=None)
    assert told(metrics.registry) == {}


def test_counts_and_the_plain_page_are_as_without(metrics: Metrics) -> None:
    before = page(metrics.registry, is_openmetrics=False)
    observe(metrics, Trace(id=FIRST, is_sampled=True))
    plain = page(metrics.registry, is_openmetrics=False)
    assert plain != before and FIRST not in plain
    with_traces = {
        (s.name, *s.labels.items()): s.value
        for family in parse_openmetrics(page(metrics.registry, is_openmetrics=True))
        for s in family.samples
    }
    without = {(s.name, *s.labels.items()): s.value for family in parse_text(plain) for s in family.samples}
    assert with_traces == without
