"""What the relay counts and measures, for Prometheus.

A `Summary` is observed once, when its exchange is over; nothing here is touched per event. Label values are closed
sets or names from the configuration, so no request can mint a series. Children are kept by their label values,
since looking one up in the library costs more than counting with it.
"""

import platform
from collections.abc import Callable, Iterable
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from relay.config.tree import Config
from relay.exchange import BAD, GOOD, Attempt, AttemptResult, Exchange, Operation, Outcome, Summary

T: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)
"""Waits for a first token, seconds."""
I: Final = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)  # noqa: E741  # named as in the documentation
"""Gaps between tokens, seconds."""
D: Final = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)
"""Whole requests, seconds."""
O: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)  # noqa: E741  # named as in the documentation
"""The relay's own time, seconds."""

NO_ROUTE: Final = "_none"
"""The route label of exchanges that ended before one was found."""


class Metrics:
    """The registry and everything in it."""

    def __init__(
        self, config: Config, version: str, connections: Callable[[], dict[str, tuple[int, int]]], dropped_logs: Callable[[], int]
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation here
        self.registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._children: dict[tuple[Any, ...], Any] = {}
        self._started = 0
        self._ended = 0
        self._open: set[int] = set()
        self._requests = Counter(
            "relay_requests_total",
            "Client requests finished, by route and outcome. A stream that broke after the 200 status counts as upstream_cut, "
            "upstream_stalled or upstream_error.",
            ("operation", "route", "stream", "code", "outcome"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "relay_requests_in_flight", "Client requests currently being served, by route.", ("route", "stream"), registry=registry
        )
        self._ttft = Histogram(
            "relay_time_to_first_token_seconds",
            "From request fully received to the first content-bearing event (text, reasoning or tool call) written to the client; "
            "streaming responses only.",
            ("route", "upstream"),
            buckets=T,
            registry=registry,
        )
        self._upstream_ttft = Histogram(
            "relay_upstream_time_to_first_token_seconds",
            "From sending one upstream attempt to its first content-bearing event; earlier failed attempts not included.",
            ("upstream",),
            buckets=T,
            registry=registry,
        )
        self._gap = Histogram(
            "relay_inter_token_latency_seconds",
            "Mean gap between consecutive content-bearing events of a stream, observed once per stream.",
            ("route", "upstream"),
            buckets=I,
            registry=registry,
        )
        self._duration = Histogram(
            "relay_request_duration_seconds",
            "From request fully received to last byte written, by result.",
            ("operation", "route", "stream", "result"),
            buckets=D,
            registry=registry,
        )
        self._overhead = Histogram(
            "relay_overhead_seconds",
            "Time spent in the relay itself and not waiting for an upstream, a queue or the client.",
            ("phase",),
            buckets=O,
            registry=registry,
        )
        self._tokens = Counter(
            "relay_tokens_total",
            "Tokens, by type. cached_input is part of input, and reasoning part of output: never add them up.",
            ("route", "upstream", "type", "source"),
            registry=registry,
        )
        self._attempts = Counter(
            "relay_upstream_attempts_total",
            "Calls made to an upstream, by result. One client request may make several.",
            ("route", "upstream", "result"),
            registry=registry,
        )
        self._resends = Counter(
            "relay_stale_connection_resends_total",
            "Requests sent again on a new connection because a kept-alive one died before it answered.",
            ("upstream",),
            registry=registry,
        )
        self._fallbacks = Counter(
            "relay_fallbacks_total",
            "Requests that moved on to another upstream, by cause.",
            ("route", "from_upstream", "to_upstream", "reason"),
            registry=registry,
        )
        self._keys = Counter("relay_key_requests_total", "Client requests finished, by key.", ("key", "outcome"), registry=registry)
        self._key_tokens = Counter("relay_key_tokens_total", "Tokens, by key and type.", ("key", "type"), registry=registry)
        self._fidelity = Counter(
            "relay_stream_fidelity_total",
            'Streams relayed byte for byte (mode="exact") or translated (mode="rewritten"), and why.',
            ("route", "mode", "why"),
            registry=registry,
        )
        self._malformed = Counter(
            "relay_malformed_events_total",
            "Events of upstreams that could not be read; they were passed on unchanged.",
            ("upstream",),
            registry=registry,
        )
        self._backpressure = Counter(
            "relay_client_backpressure_seconds_total", "Time streams waited for a slow client to take bytes.", ("route",), registry=registry
        )
        self._violations = Counter(
            "relay_invariant_violations_total",
            "Times an accounting identity of the relay did not hold. Anything but 0 is a bug.",
            ("invariant",),
            registry=registry,
        )
        self._reload_ok = Gauge("relay_config_last_reload_successful", "Whether the last configuration load succeeded.", registry=registry)
        self._reload_at = Gauge(
            "relay_config_last_reload_success_timestamp_seconds", "Unix time of the last successful configuration load.", registry=registry
        )
        build = Gauge("relay_build_info", "Always 1; the labels name the build.", ("version", "python"), registry=registry)
        build.labels(version, platform.python_version()).set(1)
        dropped = Gauge("relay_log_events_dropped", "Log events dropped because the log writer was behind.", registry=registry)
        dropped.set_function(dropped_logs)
        self._connections = Gauge(
            "relay_upstream_connections", "Open upstream connections, by state.", ("upstream", "state"), registry=registry
        )
        self._count_connections = connections
        for invariant in ("one_end", "started_is_ended_plus_in_flight"):
            self._violations.labels(invariant)
        self.know(config)

    def know(self, config: Config) -> None:
        """Make the children of every configured route, so that rates see the first error."""
        for route in (*config.routes, NO_ROUTE):
            for outcome in Outcome:
                for stream in ("true", "false"):
                    self._child(self._requests, "chat", route, stream, _USUAL_CODE[outcome], outcome.value)
            for stream in ("true", "false"):
                self._child(self._in_flight, route, stream)
        for name, route_ in config.routes.items():
            for target in route_.targets:
                for result in AttemptResult:
                    self._child(self._attempts, name, target.upstream.name, result.value)

    def loaded(self, *, is_good: bool, unix_time: float) -> None:
        """Take note of a configuration load."""
        self._reload_ok.set(1 if is_good else 0)
        if is_good:
            self._reload_at.set(unix_time)

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    # gateway.Observer

    def began(self) -> None:
        """Count an exchange in."""
        self._started += 1

    def routed(self, exchange: Exchange) -> None:
        """Count an exchange that is being served."""
        assert exchange.route is not None
        self._open.add(id(exchange))
        self._child(self._in_flight, exchange.route.name, _flag(exchange.request.is_stream)).inc()

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """Observe everything there is to know about an exchange."""
        self._ended += 1
        route = summary.route or NO_ROUTE
        stream = _flag(summary.is_stream)
        if id(exchange) in self._open:
            self._open.remove(id(exchange))
            self._child(self._in_flight, route, stream).dec()
        if self._ended > self._started or len(self._open) > self._started - self._ended:
            self._child(self._violations, "started_is_ended_plus_in_flight").inc()
        if summary.request.operation is Operation.MODELS:
            return
        operation = summary.request.operation.value
        self._child(self._requests, operation, route, stream, str(summary.status), summary.outcome.value).inc()
        self._child(self._duration, operation, route, stream, _result(summary.outcome)).observe(summary.duration_seconds)
        if summary.request.key is not None:
            self._child(self._keys, summary.request.key.name, summary.outcome.value).inc()
        if summary.attempts:
            self._observe_attempts(summary, route)

    def _observe_attempts(self, summary: Summary, route: str) -> None:
        previous: Attempt | None = None
        for attempt in summary.attempts:
            upstream = attempt.target.upstream.name
            result = attempt.result or AttemptResult.CANCELLED
            self._child(self._attempts, route, upstream, result.value).inc()
            if attempt.is_resend:
                self._child(self._resends, upstream).inc()
            elif previous is not None and previous.result is not None:
                self._child(self._fallbacks, route, previous.target.upstream.name, upstream, previous.result.value).inc()
            if attempt.meter.malformed_events:
                self._child(self._malformed, upstream).inc(attempt.meter.malformed_events)
            previous = attempt
        upstream = summary.upstream or ""
        if summary.overhead_seconds is not None:
            self._child(self._overhead, "request").observe(summary.overhead_seconds)
        if summary.backpressure_seconds:
            self._child(self._backpressure, route).inc(summary.backpressure_seconds)
        if summary.ttft_seconds is not None:
            self._child(self._ttft, route, upstream).observe(summary.ttft_seconds)
            self._child(self._fidelity, route, "exact" if summary.rewritten is None else "rewritten", summary.rewritten or "").inc()
        if summary.upstream_ttft_seconds is not None:
            self._child(self._upstream_ttft, upstream).observe(summary.upstream_ttft_seconds)
        if summary.inter_token_seconds is not None:
            self._child(self._gap, route, upstream).observe(summary.inter_token_seconds)
        self._observe_tokens(summary, route, upstream)

    def _observe_tokens(self, summary: Summary, route: str, upstream: str) -> None:
        usage = summary.usage
        if usage is None:
            return
        key = summary.request.key
        for kind, amount in (
            ("input", usage.input),
            ("output", usage.output),
            ("cached_input", usage.cached),
            ("reasoning", usage.reasoning),
        ):
            if amount:
                self._child(self._tokens, route, upstream, kind, "reported").inc(amount)
                if key is not None:
                    self._child(self._key_tokens, key.name, kind).inc(amount)

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """Do nothing: the outcome says it."""

    def violated(self, invariant: str) -> None:
        """Count a broken identity."""
        self._child(self._violations, invariant).inc()

    # The page

    def render(self, accept: str) -> tuple[bytes, bytes]:
        """Return the content type and the exposition that a scraper's `Accept` asks for."""
        for upstream, (idle, opened) in self._count_connections().items():
            self._child(self._connections, upstream, "idle").set(idle)
            self._child(self._connections, upstream, "active").set(max(opened - idle, 0))
        encode, content_type = choose_encoder(accept)
        return content_type.encode("ascii"), encode(self.registry)

    @property
    def in_flight(self) -> int:
        """Return how many exchanges are being served."""
        return self._started - self._ended


class Observers:
    """Tells several observers, in order."""

    __slots__ = ("_observers",)

    def __init__(self, observers: Iterable[Any]) -> None:
        self._observers = tuple(observers)

    def began(self) -> None:
        """An exchange has begun."""
        for observer in self._observers:
            observer.began()

    def routed(self, exchange: Exchange) -> None:
        """Its route is known."""
        for observer in self._observers:
            observer.routed(exchange)

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """It is over."""
        for observer in self._observers:
            observer.ended(exchange, summary)

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """A bug of ours ended it."""
        for observer in self._observers:
            observer.crashed(exchange, error)


_USUAL_CODE: Final = {
    Outcome.COMPLETE: "200",
    Outcome.INVALID_REQUEST: "400",
    Outcome.UNAUTHORIZED: "401",
    Outcome.RATE_LIMITED: "429",
    Outcome.REJECTED: "400",
    Outcome.OVERLOADED: "503",
    Outcome.UPSTREAM_FAILED: "502",
    Outcome.UPSTREAM_CUT: "200",
    Outcome.UPSTREAM_STALLED: "200",
    Outcome.UPSTREAM_ERROR: "200",
    Outcome.DRAINED: "200",
    Outcome.INTERNAL_ERROR: "500",
    Outcome.CLIENT_GONE: "499",
    Outcome.CLIENT_STALLED: "200",
    Outcome.LIMIT_REACHED: "200",
}


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _result(outcome: Outcome) -> str:
    return "good" if outcome in GOOD else "bad" if outcome in BAD else "not_counted"
