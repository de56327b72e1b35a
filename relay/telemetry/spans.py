"""Spans for OpenTelemetry: one of the relay's own for each request it records, and one for each call to an upstream.

They are made when an exchange is over, from its summary: nothing is attached to a task, nothing happens while a stream runs. Names
and attributes follow the conventions for generative AI. A prompt or an answer is in no span. Spans wait in a bounded queue, are sent by
a thread, and are dropped and counted when the collector does not keep up.

Needs the extra `otel`; only who exports traces imports this module.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from relay.exchange import BAD, JSON_OPERATIONS, Attempt, AttemptResult, Exchange, Operation, Summary, Trace
from relay.telemetry.redaction import redact

QUEUE_SPANS: Final = 4096
"""A few seconds of a busy relay; about 4 MB."""
EXPORT_SECONDS: Final = 5.0
"""How long the collector may take for one batch."""
BATCH_SPANS: Final = 512
DELAY_MILLISECONDS: Final = 1000
NAMES: Final[Mapping[Operation, str]] = {Operation.COMPLETIONS: "text_completion", Operation.RESPONSES: "chat"}
"""What the conventions call an operation, where it is not our word."""
MAX_WORD: Final = 256
"""Of what a client or an upstream chose: the longest model names are half of it."""

Attributes = dict[str, str | int | float | bool | list[str]]


def make_exporter(endpoint: str) -> SpanExporter:
    """Return an exporter to a collector's OTLP/HTTP address; headers and certificates come from OpenTelemetry's own variables."""
    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)


class Counting(SpanExporter):
    """An exporter that counts what it is handed and what of it does not arrive. Counts may be read from any thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.taken = 0
        self.lost = 0
        self.is_closing = False
        """Whether to send the rest while that works, and to give it up once it does not."""
        self._has_failed = False
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, or count it as lost."""
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            if not (self.is_closing and self._has_failed):
                result = self._exporter.export(spans)
        finally:
            self._has_failed = result is not SpanExportResult.SUCCESS
            if self._has_failed:
                self.lost += len(spans)
        return result

    def shutdown(self) -> None:
        """Close what sends."""
        self._exporter.shutdown()


class Spans:
    """Makes spans of exchanges: a `gateway.Observer`."""

    __slots__ = ("_chance", "_clock", "_exporter", "_made", "_overflow", "_processor", "_resource", "_scope")

    def __init__(self, exporter: SpanExporter, version: str, *, chance: Callable[[], float], clock: Callable[[], float]) -> None:
        """Hand spans to `exporter`; `clock` tells the Unix time of the loop's time 0, `chance` gives numbers in [0, 1)."""
        self._exporter = Counting(exporter)
        self._made = self._overflow = 0
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=QUEUE_SPANS,
            schedule_delay_millis=DELAY_MILLISECONDS,
            max_export_batch_size=BATCH_SPANS,
            export_timeout_millis=EXPORT_SECONDS * 1000,
        )
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes before our own name.
        self._resource = Resource({"service.name": "relay", "service.version": version}).merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope("relay", version)
        self._chance = chance
        self._clock = clock

    def began(self) -> None:
        """Do nothing."""

    def routed(self, exchange: Exchange) -> None:
        """Do nothing."""

    def violated(self, identity: str) -> None:
        """Do nothing."""

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """Do nothing: the outcome says it."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """Make the spans of an exchange that is recorded."""
        trace = summary.request.trace
        if trace is None or not trace.is_sampled or summary.is_quiet:
            return
        offset = self._clock()
        own = _context(trace, 1 + int(self._chance() * (2**64 - 2)))
        end = summary.request.received_at + summary.duration_seconds
        for attempt, until in _with_ends(summary.attempts, end):
            if attempt.span is not None:
                self._put(self._client(summary, attempt, trace, own, offset, until))
        self._put(self._server(summary, trace, own, offset, end))

    @property
    def dropped(self) -> int:
        """Return how many spans will never arrive."""
        return self._overflow + self._exporter.lost

    def _put(self, span: ReadableSpan) -> None:
        # The processor drops in silence what finds its queue full, so it is never filled.
        if self._made - self._exporter.taken >= QUEUE_SPANS:
            self._overflow += 1
            return
        self._made += 1
        self._processor.on_end(span)

    def close(self) -> None:
        """Send what is queued while the collector takes it: one batch that fails is the last, after EXPORT_SECONDS at most."""
        self._exporter.is_closing = True
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the library has no annotation here

    def _server(self, summary: Summary, trace: Trace, own: SpanContext, offset: float, end: float) -> ReadableSpan:
        request = summary.request
        path = request.path if request.operation in JSON_OPERATIONS else "/v1/*"
        attributes: Attributes = {
            "http.request.method": request.method,
            "http.route": path,
            "http.response.status_code": summary.status,
            "relay.request_id": request.id,
            "relay.outcome": summary.outcome.value,
            "relay.attempts": len(summary.attempts),
        }
        if summary.route is not None:
            attributes["relay.route"] = summary.route
        if request.key is not None:
            attributes["relay.key"] = request.key.name
        is_bad = summary.outcome in BAD
        if is_bad:
            attributes["error.type"] = summary.error_code or summary.outcome.value
        return ReadableSpan(
            f"{request.method} {path}",
            own,
            None if trace.parent is None else _context(trace, int(trace.parent, 16), is_remote=True),
            self._resource,
            attributes,
            list(_fallbacks(summary.attempts, offset)),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR if is_bad else StatusCode.UNSET),
            start_time=_nanoseconds(request.received_at + offset),
            end_time=_nanoseconds(end + offset),
            instrumentation_scope=self._scope,
        )

    def _client(self, summary: Summary, attempt: Attempt, trace: Trace, own: SpanContext, offset: float, until: float) -> ReadableSpan:
        assert attempt.span is not None
        result = attempt.result or AttemptResult.CANCELLED
        is_bad = result not in (AttemptResult.SUCCESS, AttemptResult.CANCELLED)
        attributes = _of_call(summary, attempt)
        if is_bad:
            attributes["error.type"] = attempt.error_code or result.value
        first = attempt.meter.first_content_at
        return ReadableSpan(
            f"{attributes['gen_ai.operation.name']} {attributes.get('gen_ai.request.model', '')}".rstrip(),
            _context(trace, int(attempt.span, 16)),
            own,
            self._resource,
            attributes,
            [] if first is None else [Event("first_token", timestamp=_nanoseconds(first + offset))],
            kind=SpanKind.CLIENT,
            status=Status(StatusCode.ERROR if is_bad else StatusCode.UNSET),
            start_time=_nanoseconds(attempt.started_at + offset),
            end_time=_nanoseconds(until + offset),
            instrumentation_scope=self._scope,
        )


def _of_call(summary: Summary, attempt: Attempt) -> Attributes:
    request, upstream, meter = summary.request, attempt.target.upstream, attempt.meter
    address = urlsplit(upstream.base_url)
    attributes: Attributes = {
        "gen_ai.operation.name": NAMES.get(request.operation, request.operation.value),
        "gen_ai.provider.name": upstream.vendor,
        "gen_ai.request.stream": summary.is_stream,
        "server.address": address.hostname or "",
        "relay.upstream": upstream.name,
        "relay.result": (attempt.result or AttemptResult.CANCELLED).value,
    }
    if address.port is not None:
        attributes["server.port"] = address.port
    model = request.model if attempt.target.model is None or attempt.target.model.endswith("*") else attempt.target.model
    if model is not None:
        attributes["gen_ai.request.model"] = _word(model)
    if attempt.head is not None:
        attributes["http.response.status_code"] = attempt.head.status
    if meter.response_id is not None:
        attributes["gen_ai.response.id"] = _word(meter.response_id)
    if meter.response_model is not None:
        attributes["gen_ai.response.model"] = _word(meter.response_model)
    if meter.finish_reason is not None:
        attributes["gen_ai.response.finish_reasons"] = [_word(meter.finish_reason)]
    if meter.first_event_at is not None and attempt.sent_at is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = meter.first_event_at - attempt.sent_at
    if meter.usage is not None:
        attributes["gen_ai.usage.input_tokens"] = meter.usage.input
        attributes["gen_ai.usage.output_tokens"] = meter.usage.output
        attributes["gen_ai.usage.cache_read.input_tokens"] = meter.usage.cached
    return attributes


def _word(value: str) -> str:
    return redact(value)[:MAX_WORD]


def _fallbacks(attempts: tuple[Attempt, ...], offset: float) -> Iterator[Event]:
    for before, attempt in pairwise(attempts):
        if not attempt.is_resend and attempt.hedge_won is None and before.result is not None:
            told = {"from": before.target.upstream.name, "to": attempt.target.upstream.name, "reason": before.result.value}
            yield Event("fallback", told, timestamp=_nanoseconds(attempt.started_at + offset))


def _with_ends(attempts: tuple[Attempt, ...], end: float) -> Iterator[tuple[Attempt, float]]:
    """Yield each attempt and when it was over: when its bytes stopped, else when the next began, else with the exchange."""
    for number, attempt in enumerate(attempts, 1):
        following = attempts[number].started_at if number < len(attempts) else end
        yield attempt, max(attempt.started_at, attempt.body_ended_at or following)


def _context(trace: Trace, span: int, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace.id, 16), span, is_remote, TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(unix_time: float) -> int:
    return int(unix_time * 1e9)
