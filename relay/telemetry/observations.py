"""One ended exchange, told to the registry: what came of it, each attempt, its times, its tokens."""

from collections.abc import Mapping
from typing import Final

from relay.exchange import BAD, GOOD, Attempt, AttemptResult, Outcome, Summary, UsageSource
from relay.telemetry import families as f
from relay.telemetry.quotas import shares_left
from relay.telemetry.registry import OTHER, Number, Registry

NO_ROUTE: Final = "_none"
"""The route label of exchanges that ended before one was found."""
NO_KEY: Final = "_none"
"""The key label of callers without one, whom only a route's limits hold back."""
MAX_KINDS: Final = 4_096
"""Kinds of exchanges whose series are kept at hand."""


class _Series:
    """The series of one kind of exchange, looked up once: to look up each of them for every exchange takes 5 us."""

    __slots__ = ("duration", "is_complete", "key", "key_requests", "requests", "route", "tokens", "upstream")

    def __init__(self, registry: Registry, summary: Summary) -> None:
        route = self.route = NO_ROUTE if summary.route is None else registry.fold("route", summary.route)
        key = self.key = None if summary.request.key is None else registry.fold("key", summary.request.key.name)
        self.upstream = registry.fold("upstream", summary.upstream or "") if summary.attempts else ""
        operation, stream, outcome = summary.request.operation, flag(summary.is_stream), summary.outcome
        self.requests = registry.number(f.REQUESTS, operation, route, stream, str(summary.status), outcome)
        self.duration = registry.histogram(f.REQUEST_DURATION, operation, route, stream, RESULTS[outcome])
        self.key_requests = None if key is None else registry.number(f.KEY_REQUESTS, key, outcome)
        self.tokens: dict[tuple[str, str], tuple[Number, Number | None]] = {}
        """All tokens and the key's, by kind and source: made when there are some."""
        self.is_complete = OTHER not in (route, key, self.upstream)
        """Whether every name has a label of its own; where one has none, each exchange has to count as an overflow."""

    def count(self, registry: Registry, kind: str, source: str, amount: int) -> None:
        """Count tokens."""
        found = self.tokens.get((kind, source))
        if found is None:
            of_key = None if self.key is None else registry.number(f.KEY_TOKENS, self.key, kind)
            found = self.tokens[kind, source] = (registry.number(f.TOKENS, self.route, self.upstream, kind, source), of_key)
        found[0].value += amount
        if found[1] is not None:
            found[1].value += amount


class Observations:
    """Counts exchanges into a registry."""

    __slots__ = ("_overheads", "_prepared", "_registry", "_series")

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._prepared: set[tuple[str, str, str]] = set()
        self._series: dict[tuple[object, ...], _Series] = {}
        self._overheads = [registry.histogram(f.OVERHEAD, phase) for phase in ("request", "event", "finish")]

    def prepare(self, operation: str, route: str, stream: str) -> None:
        """Make the counters of every outcome that requests of this kind can have, so that rates see the first failure."""
        self._prepared.add((operation, route, stream))
        for outcome, code in _USUAL_CODE.items():
            self._registry.number(f.REQUESTS, operation, route, stream, code, outcome)

    def forget(self) -> None:
        """Look up and prepare every series again when it is needed: some have been dropped."""
        self._prepared.clear()
        self._series.clear()

    def observe(self, summary: Summary) -> None:
        """Observe everything there is to know about an exchange."""
        registry = self._registry
        series = self._of(summary)
        series.requests.value += 1
        series.duration.observe(summary.duration_seconds)
        if series.key_requests is not None:
            series.key_requests.value += 1
        if summary.queued_seconds:
            registry.histogram(f.QUEUE_WAIT, series.route).observe(summary.queued_seconds)
        if summary.refused_by is not None:
            registry.number(f.KEY_RATE_LIMITED, series.key or NO_KEY, summary.refused_by).inc()
        if summary.attempts:
            self._observe_attempts(summary, series.route)
            self._observe_times(summary, series.route, series.upstream)
            self._observe_tokens(summary, series)
            if len(summary.attempts) > 1:
                self._observe_lost(summary, series)

    def _of(self, summary: Summary) -> _Series:
        request = summary.request
        key = None if request.key is None else request.key.name
        kind = (request.operation, summary.route, summary.is_stream, summary.status, summary.outcome, key, summary.upstream)
        found = self._series.get(kind)
        if found is None:
            found = _Series(self._registry, summary)
            label = (request.operation, found.route, flag(summary.is_stream))
            if label not in self._prepared:
                self.prepare(*label)
            if found.is_complete and len(self._series) < MAX_KINDS:
                self._series[kind] = found
        return found

    def _observe_attempts(self, summary: Summary, route: str) -> None:
        number, fold = self._registry.number, self._registry.fold
        previous: Attempt | None = None
        for attempt in summary.attempts:
            upstream = fold("upstream", attempt.target.upstream.name)
            number(f.ATTEMPTS, route, upstream, attempt.result or AttemptResult.CANCELLED).inc()
            if attempt.is_resend:
                number(f.RESENDS, upstream).inc()
            elif previous is not None and previous.result not in (None, AttemptResult.CANCELLED):
                # One that was cancelled did not fail: another was quicker.
                if previous.target.name == attempt.target.name:
                    number(f.RETRIES, route, upstream, previous.result).inc()
                else:
                    number(f.FALLBACKS, route, fold("upstream", previous.target.upstream.name), upstream, previous.result).inc()
            if attempt.hedge_won is not None:
                number(f.HEDGES, route, flag(attempt.hedge_won)).inc()
            first = attempt.meter.first_content_at
            if first is not None and attempt.sent_at is not None:
                self._registry.histogram(f.UPSTREAM_TIME_TO_FIRST_TOKEN, upstream).observe(first - attempt.sent_at)
            if attempt.head is not None:
                for limit, share in shares_left(attempt.head.headers).items():
                    number(f.UPSTREAM_LIMIT_LEFT, upstream, limit).set(share)
            unread = attempt.meter.malformed_events + attempt.meter.oversized_events
            if unread:
                number(f.MALFORMED_EVENTS, upstream).inc(unread)
            previous = attempt

    def _observe_times(self, summary: Summary, route: str, upstream: str) -> None:
        number, histogram = self._registry.number, self._registry.histogram
        if summary.overhead is not None:
            overhead = summary.overhead
            for phase, seconds in zip(self._overheads, (overhead.request, overhead.event, overhead.finish), strict=True):
                if seconds is not None:
                    phase.observe(seconds)
        if summary.gaps is not None:
            number(f.GAP, route, "upstream").inc(summary.gaps.upstream)
            number(f.GAP, route, "relay").inc(summary.gaps.relay)
            number(f.GAP, route, "client").inc(summary.gaps.client)
            for blame in summary.gaps.stalls:
                number(f.STALLS, route, blame).inc()
        if summary.backpressure_seconds:
            number(f.BACKPRESSURE, route).inc(summary.backpressure_seconds)
        if summary.ttft_seconds is not None:
            histogram(f.TIME_TO_FIRST_TOKEN, route, upstream).observe(summary.ttft_seconds)
            number(f.FIDELITY, route, "exact" if summary.rewritten is None else "rewritten", summary.rewritten or "").inc()
        if summary.inter_token_seconds is not None:
            histogram(f.INTER_TOKEN_LATENCY, route, upstream).observe(summary.inter_token_seconds)
        if summary.token_seconds is not None:
            histogram(f.TIME_PER_OUTPUT_TOKEN, route, upstream).observe(summary.token_seconds)

    def _observe_tokens(self, summary: Summary, series: _Series) -> None:
        usage, source = summary.usage, summary.usage_source
        if usage is None or source is None:
            return
        registry = self._registry
        registry.histogram(f.REQUEST_TOKENS, series.route, "input").observe(usage.input)
        registry.histogram(f.REQUEST_TOKENS, series.route, "output").observe(usage.output)
        for kind, amount in (
            ("input", usage.input),
            ("output", usage.output),
            ("cached_input", usage.cached),
            ("reasoning", usage.reasoning),
        ):
            if amount:
                series.count(registry, kind, source, amount)
        if summary.cost:
            registry.number(f.COST, series.route, series.upstream).inc(summary.cost / _BILLION)

    def _observe_lost(self, summary: Summary, series: _Series) -> None:
        """Count what attempts used that another one beat, at the upstreams that were called."""
        registry = self._registry
        for attempt in summary.attempts:
            if attempt.lost is None:
                continue
            upstream = registry.fold("upstream", attempt.target.upstream.name)
            for kind, amount in (("input", attempt.lost.input), ("output", attempt.lost.output)):
                if amount:
                    registry.number(f.TOKENS, series.route, upstream, kind, UsageSource.ESTIMATED).inc(amount)
                    if series.key is not None:
                        registry.number(f.KEY_TOKENS, series.key, kind).inc(amount)
            if attempt.lost_cost:
                registry.number(f.COST, series.route, upstream).inc(attempt.lost_cost / _BILLION)


def flag(value: bool) -> str:
    """Return the label value of a yes or no."""
    return "true" if value else "false"


_BILLION: Final = 1e9
"""Costs are counted in billionths of a dollar."""
_USUAL_CODE: Final[Mapping[Outcome, str]] = {
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
RESULTS: Final = {outcome.value: "good" if outcome in GOOD else "bad" if outcome in BAD else "not_counted" for outcome in Outcome}
"""The label `result`, by outcome."""
