"""Spans that wait, and spans that are lost: all are accounted for."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from relay.exchange import Outcome, StreamMeter, Trace
from relay.telemetry import spans as spans_module
from relay.telemetry.spans import MAX_WORD, Spans
from tests.telemetry.summaries import attempt, ended

TRACE = Trace(id="4bf92f3577b34da6a3ce929d0e0e4736", is_sampled=True)


class Collector(SpanExporter):
    """Takes spans when it is let, and answers as it is told."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.spans: list[ReadableSpan] = []
        self.calls = 0
        self.may_go = threading.Event()
        self.result = result

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.calls += 1
        self.may_go.wait(10)
        self.spans += spans
        return self.result


def made(collector: Collector) -> Spans:
    return Spans(collector, "1", chance=lambda: 0.5, clock=lambda: 1e9)


def tell(spans: Spans, count: int, **request: object) -> None:
    for _ in range(count):
        spans.ended(*ended(Outcome.COMPLETE, attempt(span="00f067aa0ba902b7"), **{"trace": TRACE, **request}))


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(spans_module, "QUEUE_SPANS", 20)
    monkeypatch.setattr(spans_module, "BATCH_SPANS", 10)
    yield


@pytest.mark.usefixtures("small")
def test_what_finds_the_queue_full_is_counted_and_nobody_waits() -> None:
    collector = Collector()
    spans = made(collector)
    tell(spans, 100)
    assert spans.dropped >= 200 - 20 - 10
    collector.may_go.set()
    spans.close()
    assert len(collector.spans) + spans.dropped == 200


@pytest.mark.usefixtures("small")
def test_what_the_collector_refuses_is_counted() -> None:
    collector = Collector(SpanExportResult.FAILURE)
    collector.may_go.set()
    spans = made(collector)
    tell(spans, 5)
    until(lambda: spans.dropped == 10)
    spans.close()


@pytest.mark.usefixtures("small")
def test_a_stop_asks_a_collector_that_fails_once_and_gives_up_the_rest() -> None:
    collector = Collector(SpanExportResult.FAILURE)
    spans = made(collector)
    tell(spans, 5)
    until(lambda: collector.calls == 1)
    tell(spans, 5)
    threading.Timer(0.2, collector.may_go.set).start()
    spans.close()
    assert collector.calls <= 2
    assert spans.dropped == 20


def test_words_of_others_are_short_and_without_keys() -> None:
    collector = Collector()
    collector.may_go.set()
    spans = made(collector)
    meter = StreamMeter(response_model="m" * 1000, finish_reason="sk-canary0123456789", response_id="x")
    spans.ended(*ended(Outcome.COMPLETE, attempt(meter=meter, span="00f067aa0ba902b7"), trace=TRACE))
    spans.close()
    (call, _) = collector.spans
    assert call.attributes is not None
    assert call.attributes["gen_ai.response.model"] == "m" * MAX_WORD
    assert list(call.attributes["gen_ai.response.finish_reasons"]) == ["sk-***"]  # type: ignore[arg-type]
    assert call.attributes["gen_ai.response.id"] == "x"


def test_what_nobody_records_makes_no_span() -> None:
    collector = Collector()
    collector.may_go.set()
    spans = made(collector)
    tell(spans, 3, trace=Trace(id=TRACE.id))
    tell(spans, 3, trace=None)
    spans.close()
    assert collector.spans == []
