"""What the relay counts and measures, for Prometheus.

A `Summary` is observed once, when its exchange is over; nothing here is touched per event. Label values are closed
sets or names from the configuration, the latter capped, so no request can mint a series and no configuration too many.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from relay.config.tree import Config
from relay.exchange import BAD, GOOD, Attempt, AttemptResult, Blame, Exchange, Outcome, Summary
from relay.telemetry import families as f
from relay.telemetry.exposition import OPENMETRICS, TEXT, ProcessPage, expose, wants_openmetrics
from relay.telemetry.quotas import shares_left
from relay.telemetry.registry import OTHER, Number, Registry

NO_ROUTE: Final = "_none"
"""The route label of exchanges that ended before one was found."""
NO_KEY: Final = "_none"
"""The key label of callers without one, whom only a route's limits hold back."""
HEALTH_STATES: Final = ("healthy", "cooling", "probing")
INVARIANTS: Final = ("ended_is_at_most_started", "open_is_in_flight")

Connections = dict[str, tuple[int, int]]
"""Idle and open connections, by upstream."""
Credentials = Mapping[str, Mapping[str, int]]
"""How many credentials are in which state, by upstream."""


class Metrics:
    """The registry and everything in it: a `gateway.Observer`."""

    __slots__ = (
        "_connections",
        "_credentials",
        "_dropped",
        "_dropped_seen",
        "_ended",
        "_leaving",
        "_open",
        "_process",
        "_queued",
        "_reserved",
        "_routes",
        "_shares",
        "_standings",
        "_standings_seen",
        "_started",
        "_targets",
        "_upstreams",
        "lagged",
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
        credentials: Callable[[], Credentials] = dict,
        queued: Callable[[], Mapping[str, int]] = dict,
        shares: Callable[[], Iterable[tuple[str, str, float]]] = list,
        reserved: Callable[[], Mapping[str, int]] = dict,
        identities: Sequence[str] = (),
    ) -> None:
        """Count for `config`. Asked at each scrape: `connections`, `dropped` (log lines), `standings` (targets and their states),
        `credentials`, requests `queued` by route, `shares` (key, limit, what is used of it) and `reserved` (tokens by key).
        `identities` may be `violated`.
        """
        self.registry = registry = Registry(
            f.all_families(), bounds={f.TIME_TO_FIRST_TOKEN: config.metrics.slo.ttft}, cap=config.metrics.label_values
        )
        self.lagged = registry.histogram(f.LOOP_LAG).observe
        """Takes how late the event loop ran, in seconds."""
        self._process = ProcessPage()
        self._connections = connections
        self._queued = queued
        self._dropped = dropped
        self._standings = standings
        self._credentials = credentials
        self._shares = shares
        self._reserved = reserved
        self._standings_seen: dict[str, str] = {}
        self._targets: dict[str, list[tuple[str, str]]] = {}
        """Route and upstream of each place a target has, by the target's name."""
        self._dropped_seen = 0
        self._started = 0
        self._ended = 0
        self._open: dict[int, Number] = {}
        """Exchanges being served, and the gauge that each is counted in."""
        self._routes: frozenset[str] = frozenset()
        self._upstreams: frozenset[str] = frozenset()
        self._leaving: set[str] = set()
        """Routes that the configuration has no more, and that still serve."""
        registry.number(f.BUILD, version, platform.python_version()).set(1)
        registry.number(f.LOG_DROPPED)
        for invariant in (*INVARIANTS, *identities):
            registry.number(f.VIOLATIONS, invariant)
        self.know(config)

    def know(self, config: Config) -> None:
        """Make the series of every configured route, so that rates see the first error, and drop those of routes that are gone."""
        number, fold = self.registry.number, self.registry.fold
        self._routes, self._upstreams = frozenset(config.routes), frozenset(config.upstreams)
        self._drop_gone()
        self._count_overflow()
        self.registry.clear(f.TARGET_HEALTH)
        self._targets.clear()
        self._standings_seen.clear()
        for name in (*config.routes, NO_ROUTE):
            route = fold("route", name) if name != NO_ROUTE else name
            for stream in ("true", "false"):
                number(f.IN_FLIGHT, route, stream)
                for outcome in Outcome:
                    number(f.REQUESTS, "chat", route, stream, _USUAL_CODE[outcome], outcome.value)
        for name, configured in config.routes.items():
            route = fold("route", name)
            for won in ("true", "false") if configured.hedge is not None else ():
                number(f.HEDGES, route, won)
            number(f.BACKPRESSURE, route)
            for blame in Blame:
                number(f.GAP, route, blame.value)
                number(f.STALLS, route, blame.value)
            for target in configured.all_targets:
                upstream = fold("upstream", target.upstream.name)
                self._targets.setdefault(target.name, []).append((route, upstream))
                for result in AttemptResult:
                    number(f.ATTEMPTS, route, upstream, result.value)
        self.registry.overflow.clear()  # those were no observations

    def _drop_gone(self) -> None:
        """Drop the series of routes and upstreams that are not configured any more, once nothing is in flight for them."""
        known = {*self._routes, NO_ROUTE, OTHER}
        self._leaving = {labels[0] for labels, gauge in self.registry.numbers(f.IN_FLIGHT) if gauge.value and labels[0] not in known}
        self.registry.keep(("route",), known | self._leaving)
        if not self._leaving:
            self.registry.keep(("upstream", "from_upstream", "to_upstream"), {*self._upstreams, OTHER})

    def loaded(self, *, is_good: bool, unix_time: float) -> None:
        """Take note of a configuration load."""
        self.registry.number(f.RELOAD_SUCCESSFUL).set(1 if is_good else 0)
        if is_good:
            self.registry.number(f.RELOAD_TIME).set(unix_time)

    def connected(self, upstream: str, seconds: float) -> None:
        """Take note of how long a new connection took."""
        self.registry.histogram(f.CONNECT, self.registry.fold("upstream", upstream)).observe(seconds)

    # gateway.Observer

    def began(self) -> None:
        """Count an exchange in."""
        self._started += 1

    def routed(self, exchange: Exchange) -> None:
        """Count an exchange that is being served."""
        assert exchange.route is not None
        name = exchange.route.name
        if name not in self._routes:
            # Its request came in under a configuration that a reload has replaced.
            self._leaving.add(name)
        gauge = self._open[id(exchange)] = self.registry.number(
            f.IN_FLIGHT, self.registry.fold("route", name), _flag(exchange.request.is_stream)
        )
        gauge.inc()

    def violated(self, identity: str) -> None:
        """Count that an accounting identity does not hold."""
        self.registry.number(f.VIOLATIONS, identity).inc()

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """Do nothing: the outcome says it."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """Observe everything there is to know about an exchange."""
        self._ended += 1
        gauge = self._open.pop(id(exchange), None)
        if gauge is not None:
            gauge.dec()
        self._check()
        if not summary.is_quiet:
            self._observe(summary)
        if self._leaving and gauge is not None and not gauge.value:
            self._drop_gone()

    def _observe(self, summary: Summary) -> None:
        registry = self.registry
        route = NO_ROUTE if summary.route is None else registry.fold("route", summary.route)
        stream = _flag(summary.is_stream)
        operation, outcome = summary.request.operation.value, summary.outcome.value
        registry.number(f.REQUESTS, operation, route, stream, str(summary.status), outcome).inc()
        registry.histogram(f.REQUEST_DURATION, operation, route, stream, _RESULTS[outcome]).observe(summary.duration_seconds)
        if summary.request.key is not None:
            registry.number(f.KEY_REQUESTS, registry.fold("key", summary.request.key.name), outcome).inc()
        if summary.queued_seconds:
            registry.histogram(f.QUEUE_WAIT, route).observe(summary.queued_seconds)
        if summary.refused_by is not None:
            name = NO_KEY if summary.request.key is None else registry.fold("key", summary.request.key.name)
            registry.number(f.KEY_RATE_LIMITED, name, summary.refused_by).inc()
        if summary.attempts:
            upstream = registry.fold("upstream", summary.upstream or "")
            self._observe_attempts(summary, route)
            self._observe_times(summary, route, upstream)
            self._observe_tokens(summary, route, upstream)

    def _check(self) -> None:
        """Hold the identities against each other: started = ended + in flight, and nothing is served twice."""
        if self._ended > self._started:
            self.registry.number(f.VIOLATIONS, "ended_is_at_most_started").inc()
        if len(self._open) > self._started - self._ended:
            self.registry.number(f.VIOLATIONS, "open_is_in_flight").inc()

    def _observe_attempts(self, summary: Summary, route: str) -> None:
        number, fold = self.registry.number, self.registry.fold
        previous: Attempt | None = None
        for attempt in summary.attempts:
            upstream = fold("upstream", attempt.target.upstream.name)
            number(f.ATTEMPTS, route, upstream, (attempt.result or AttemptResult.CANCELLED).value).inc()
            if attempt.is_resend:
                number(f.RESENDS, upstream).inc()
            elif previous is not None and previous.result not in (None, AttemptResult.CANCELLED):
                # One that was cancelled did not fail: another was quicker.
                if previous.target.name == attempt.target.name:
                    number(f.RETRIES, route, upstream, previous.result.value).inc()
                else:
                    number(f.FALLBACKS, route, fold("upstream", previous.target.upstream.name), upstream, previous.result.value).inc()
            if attempt.hedge_won is not None:
                number(f.HEDGES, route, _flag(attempt.hedge_won)).inc()
            first = attempt.meter.first_content_at
            if first is not None and attempt.sent_at is not None:
                self.registry.histogram(f.UPSTREAM_TIME_TO_FIRST_TOKEN, upstream).observe(first - attempt.sent_at)
            if attempt.head is not None:
                for limit, share in shares_left(attempt.head.headers).items():
                    number(f.UPSTREAM_LIMIT_LEFT, upstream, limit).set(share)
            unread = attempt.meter.malformed_events + attempt.meter.oversized_events
            if unread:
                number(f.MALFORMED_EVENTS, upstream).inc(unread)
            previous = attempt

    def _observe_times(self, summary: Summary, route: str, upstream: str) -> None:
        number, histogram = self.registry.number, self.registry.histogram
        if summary.overhead is not None:
            for phase, seconds in (
                ("request", summary.overhead.request),
                ("event", summary.overhead.event),
                ("finish", summary.overhead.finish),
            ):
                if seconds is not None:
                    histogram(f.OVERHEAD, phase).observe(seconds)
        if summary.gaps is not None:
            number(f.GAP, route, "upstream").inc(summary.gaps.upstream)
            number(f.GAP, route, "relay").inc(summary.gaps.relay)
            number(f.GAP, route, "client").inc(summary.gaps.client)
            for blame in summary.gaps.stalls:
                number(f.STALLS, route, blame.value).inc()
        if summary.backpressure_seconds:
            number(f.BACKPRESSURE, route).inc(summary.backpressure_seconds)
        if summary.ttft_seconds is not None:
            histogram(f.TIME_TO_FIRST_TOKEN, route, upstream).observe(summary.ttft_seconds)
            number(f.FIDELITY, route, "exact" if summary.rewritten is None else "rewritten", summary.rewritten or "").inc()
        if summary.inter_token_seconds is not None:
            histogram(f.INTER_TOKEN_LATENCY, route, upstream).observe(summary.inter_token_seconds)
        if summary.token_seconds is not None:
            histogram(f.TIME_PER_OUTPUT_TOKEN, route, upstream).observe(summary.token_seconds)

    def _observe_tokens(self, summary: Summary, route: str, upstream: str) -> None:
        usage = summary.usage
        if usage is None or summary.usage_source is None:
            return
        source = summary.usage_source.value
        number = self.registry.number
        key = None if summary.request.key is None else self.registry.fold("key", summary.request.key.name)
        for kind, amount in (
            ("input", usage.input),
            ("output", usage.output),
            ("cached_input", usage.cached),
            ("reasoning", usage.reasoning),
        ):
            if kind in ("input", "output"):
                self.registry.histogram(f.REQUEST_TOKENS, route, kind).observe(amount)
            if amount:
                number(f.TOKENS, route, upstream, kind, source).inc(amount)
                if key is not None:
                    number(f.KEY_TOKENS, key, kind).inc(amount)

    # The page

    def render(self, accept: str) -> tuple[bytes, Iterator[bytes]]:
        """Return the content type, and slices of the exposition that a scraper's `Accept` asks for."""
        is_openmetrics = wants_openmetrics(accept)
        return OPENMETRICS if is_openmetrics else TEXT, self._slices(is_openmetrics=is_openmetrics)

    def _slices(self, *, is_openmetrics: bool) -> Iterator[bytes]:
        self._refresh()
        yield from expose(self.registry, is_openmetrics=is_openmetrics)
        yield self._process.render(is_openmetrics=is_openmetrics)

    def dump(self) -> Iterator[bytes]:
        """Yield everything that was counted, in pieces that another registry merges."""
        self._refresh()
        yield from self.registry.dump()

    def _refresh(self) -> None:
        """Take over what others count."""
        number = self.registry.number
        self.registry.clear(f.CONNECTIONS)
        self.registry.clear(f.UPSTREAM_IN_FLIGHT)
        for upstream, (idle, opened) in self._connections().items():
            if opened or upstream in self._upstreams:
                name = self.registry.fold("upstream", upstream)
                # A connection carries one call at a time.
                active = max(opened - idle, 0)
                number(f.CONNECTIONS, name, "idle").inc(idle)
                number(f.CONNECTIONS, name, "active").inc(active)
                number(f.UPSTREAM_IN_FLIGHT, name).inc(active)
        for route, count in self._queued().items():
            number(f.QUEUED, self.registry.fold("route", route)).set(count)
        for target, current in self._standings():
            if self._standings_seen.get(target) != current:
                self._standings_seen[target] = current
                for route, upstream in self._targets.get(target, ()):
                    for state in HEALTH_STATES:
                        number(f.TARGET_HEALTH, route, upstream, target, state).set(1 if state == current else 0)
        self._refresh_credentials()
        self._refresh_limits()
        dropped = self._dropped()
        number(f.LOG_DROPPED).inc(dropped - self._dropped_seen)
        self._dropped_seen = dropped
        self._count_overflow()

    def _refresh_credentials(self) -> None:
        self.registry.clear(f.CREDENTIALS)
        for upstream, counts in self._credentials().items():
            for health, count in counts.items():
                self.registry.number(f.CREDENTIALS, self.registry.fold("upstream", upstream), health).inc(count)

    def _refresh_limits(self) -> None:
        """Tell how the limits stand; of keys that share a label the one nearest to its limit."""
        fold = self.registry.fold
        shares: dict[tuple[str, str], float] = {}
        for key, limit, share in self._shares():
            labels = (fold("key", key), limit)
            shares[labels] = max(share, shares.get(labels, 0.0))
        tokens: dict[str, int] = {}
        for key, amount in self._reserved().items():
            tokens[fold("key", key)] = tokens.get(fold("key", key), 0) + amount
        self.registry.clear(f.KEY_LIMIT_USED)
        self.registry.clear(f.TOKENS_RESERVED)
        for labels, share in shares.items():
            self.registry.number(f.KEY_LIMIT_USED, *labels).set(share)
        for name, amount in tokens.items():
            self.registry.number(f.TOKENS_RESERVED, name).set(amount)

    def _count_overflow(self) -> None:
        for label, count in self.registry.overflow.items():
            self.registry.number(f.LABEL_OVERFLOW, label).inc(count)
        self.registry.overflow.clear()

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


_RESULTS: Final = {outcome.value: "good" if outcome in GOOD else "bad" if outcome in BAD else "not_counted" for outcome in Outcome}
"""The label `result`, by outcome."""
