"""What the relay counts and measures, for Prometheus.

A `Summary` is observed once, when its exchange is over; nothing here is touched per event. Label values are closed
sets or names from the configuration, so no request can mint a series. Children are kept by their label values,
since looking one up in the library costs more than counting with it.
"""

import platform
from collections.abc import Callable, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from relay.config.tree import Config
from relay.exchange import BAD, GOOD, Attempt, AttemptResult, Exchange, Outcome, Summary
from relay.telemetry import families as f
from relay.telemetry.families import Family

NO_ROUTE: Final = "_none"
"""The route label of exchanges that ended before one was found."""
HEALTH_STATES: Final = ("healthy", "cooling", "probing")
INVARIANTS: Final = ("ended_is_at_most_started", "open_is_in_flight")

Connections = dict[str, tuple[int, int]]
"""Idle and open connections, by upstream."""


class Metrics:
    """The registry and everything in it: a `gateway.Observer`."""

    __slots__ = (
        "_children",
        "_connections",
        "_dropped",
        "_dropped_seen",
        "_ended",
        "_families",
        "_open",
        "_standings",
        "_started",
        "registry",
    )

    def __init__(
        self,
        config: Config,
        version: str,
        *,
        connections: Callable[[], Connections],
        dropped: Callable[[], int],
        standings: Callable[[], Sequence[tuple[str, str]]] = list,
    ) -> None:
        """Count for `config`; `connections`, `dropped` (log lines) and `standings` (targets and their states) are asked at each scrape."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation here
        self.registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._families: dict[Family, Any] = {}
        self._children: dict[tuple[Any, ...], Any] = {}
        self._connections = connections
        self._dropped = dropped
        self._standings = standings
        self._dropped_seen = 0
        self._started = 0
        self._ended = 0
        self._open: set[int] = set()
        self._of(f.BUILD, version, platform.python_version()).set(1)
        self._of(f.LOG_DROPPED)
        for invariant in INVARIANTS:
            self._of(f.VIOLATIONS, invariant)
        self.know(config)

    def know(self, config: Config) -> None:
        """Make the children of every configured route, so that rates see the first error."""
        for route in (*config.routes, NO_ROUTE):
            for stream in ("true", "false"):
                self._of(f.IN_FLIGHT, route, stream)
                for outcome in Outcome:
                    self._of(f.REQUESTS, "chat", route, stream, _USUAL_CODE[outcome], outcome)
        for name, route_ in config.routes.items():
            for won in ("true", "false") if route_.hedge is not None else ():
                self._of(f.HEDGES, name, won)
            for target in route_.all_targets:
                for result in AttemptResult:
                    self._of(f.ATTEMPTS, name, target.upstream.name, result)

    def loaded(self, *, is_good: bool, unix_time: float) -> None:
        """Take note of a configuration load."""
        self._of(f.RELOAD_SUCCESSFUL).set(1 if is_good else 0)
        if is_good:
            self._of(f.RELOAD_TIME).set(unix_time)

    def _of(self, family: Family, *labels: str) -> Any:
        """Return the child of `family` with these label values."""
        key = (family.name, *labels)
        child = self._children.get(key)
        if child is None:
            metric = self._families.get(family)
            if metric is None:
                metric = self._families[family] = family.make(self.registry)
            child = self._children[key] = metric.labels(*labels) if labels else metric
        return child

    # gateway.Observer

    def began(self) -> None:
        """Count an exchange in."""
        self._started += 1

    def routed(self, exchange: Exchange) -> None:
        """Count an exchange that is being served."""
        assert exchange.route is not None
        self._open.add(id(exchange))
        self._of(f.IN_FLIGHT, exchange.route.name, _flag(exchange.request.is_stream)).inc()

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """Do nothing: the outcome says it."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """Observe everything there is to know about an exchange."""
        route = summary.route or NO_ROUTE
        stream = _flag(summary.is_stream)
        self._ended += 1
        if id(exchange) in self._open:
            self._open.remove(id(exchange))
            self._of(f.IN_FLIGHT, route, stream).dec()
        self._check()
        if summary.is_quiet:
            return
        operation = summary.request.operation
        self._of(f.REQUESTS, operation, route, stream, str(summary.status), summary.outcome).inc()
        self._of(f.REQUEST_DURATION, operation, route, stream, _result(summary.outcome)).observe(summary.duration_seconds)
        if summary.request.key is not None:
            self._of(f.KEY_REQUESTS, summary.request.key.name, summary.outcome).inc()
        if summary.attempts:
            self._observe_attempts(summary, route)
            self._observe_times(summary, route, summary.upstream or "")
            self._observe_tokens(summary, route, summary.upstream or "")

    def _check(self) -> None:
        """Hold the identities against each other: started = ended + in flight, and nothing is served twice."""
        if self._ended > self._started:
            self._of(f.VIOLATIONS, "ended_is_at_most_started").inc()
        if len(self._open) > self._started - self._ended:
            self._of(f.VIOLATIONS, "open_is_in_flight").inc()

    def _observe_attempts(self, summary: Summary, route: str) -> None:
        previous: Attempt | None = None
        for attempt in summary.attempts:
            upstream = attempt.target.upstream.name
            result = attempt.result or AttemptResult.CANCELLED
            self._of(f.ATTEMPTS, route, upstream, result).inc()
            if attempt.is_resend:
                self._of(f.RESENDS, upstream).inc()
            elif previous is not None and previous.result not in (None, AttemptResult.CANCELLED):
                # One that was cancelled did not fail: another was quicker.
                self._of(f.FALLBACKS, route, previous.target.upstream.name, upstream, previous.result).inc()
            if attempt.hedge_won is not None:
                self._of(f.HEDGES, route, _flag(attempt.hedge_won)).inc()
            unread = attempt.meter.malformed_events + attempt.meter.oversized_events
            if unread:
                self._of(f.MALFORMED_EVENTS, upstream).inc(unread)
            previous = attempt

    def _observe_times(self, summary: Summary, route: str, upstream: str) -> None:
        if summary.overhead_seconds is not None:
            self._of(f.OVERHEAD, "request").observe(summary.overhead_seconds)
        if summary.backpressure_seconds:
            self._of(f.BACKPRESSURE, route).inc(summary.backpressure_seconds)
        if summary.ttft_seconds is not None:
            self._of(f.TIME_TO_FIRST_TOKEN, route, upstream).observe(summary.ttft_seconds)
            self._of(f.FIDELITY, route, "exact" if summary.rewritten is None else "rewritten", summary.rewritten or "").inc()
        if summary.upstream_ttft_seconds is not None:
            self._of(f.UPSTREAM_TIME_TO_FIRST_TOKEN, upstream).observe(summary.upstream_ttft_seconds)
        if summary.inter_token_seconds is not None:
            self._of(f.INTER_TOKEN_LATENCY, route, upstream).observe(summary.inter_token_seconds)

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
                self._of(f.TOKENS, route, upstream, kind, "reported").inc(amount)
                if key is not None:
                    self._of(f.KEY_TOKENS, key.name, kind).inc(amount)

    # The page

    def render(self, accept: str) -> tuple[bytes, bytes]:
        """Return the content type and the exposition that a scraper's `Accept` asks for."""
        for upstream, (idle, opened) in self._connections().items():
            self._of(f.CONNECTIONS, upstream, "idle").set(idle)
            self._of(f.CONNECTIONS, upstream, "active").set(max(opened - idle, 0))
        for target, current in self._standings():
            for state in HEALTH_STATES:
                self._of(f.TARGET_HEALTH, target, state).set(1 if state == current else 0)
        dropped = self._dropped()
        self._of(f.LOG_DROPPED).inc(dropped - self._dropped_seen)
        self._dropped_seen = dropped
        encode, content_type = choose_encoder(accept)
        return content_type.encode("ascii"), encode(self.registry)

    @property
    def in_flight(self) -> int:
        """Return how many exchanges have begun and not ended."""
        return self._started - self._ended


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
