"""One ended exchange, told to the registry: what came of it, each attempt, its times, its tokens."""

from collections.abc import Mapping
from typing import Final

from relay.exchange import BAD, GOOD, Attempt, AttemptResult, Outcome, Summary
from relay.telemetry import families as f
from relay.telemetry.quotas import shares_left
from relay.telemetry.registry import Registry

NO_ROUTE: Final = "_none"
"""The route label of exchanges that ended before one was found."""
NO_KEY: Final = "_none"
"""The key label of callers without one, whom only a route's limits hold back."""


class Observations:
    """Counts exchanges into a registry."""

    __slots__ = ("_prepared", "_registry")

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._prepared: set[tuple[str, str, str]] = set()

    def prepare(self, operation: str, route: str, stream: str) -> None:
        """Make the counters of every outcome that requests of this kind can have, so that rates see the first failure."""
        self._prepared.add((operation, route, stream))
        for outcome, code in _USUAL_CODE.items():
            self._registry.number(f.REQUESTS, operation, route, stream, code, outcome.value)

    def forget(self) -> None:
        """Prepare every kind of request again when it comes: series have been dropped."""
        self._prepared.clear()

    def observe(self, summary: Summary) -> None:
        """Observe everything there is to know about an exchange."""
        registry = self._registry
        route = NO_ROUTE if summary.route is None else registry.fold("route", summary.route)
        stream = flag(summary.is_stream)
        operation, outcome = summary.request.operation.value, summary.outcome.value
        if (operation, route, stream) not in self._prepared:
            self.prepare(operation, route, stream)
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

    def _observe_attempts(self, summary: Summary, route: str) -> None:
        number, fold = self._registry.number, self._registry.fold
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
        number = self._registry.number
        key = None if summary.request.key is None else self._registry.fold("key", summary.request.key.name)
        for kind, amount in (
            ("input", usage.input),
            ("output", usage.output),
            ("cached_input", usage.cached),
            ("reasoning", usage.reasoning),
        ):
            if kind in ("input", "output"):
                self._registry.histogram(f.REQUEST_TOKENS, route, kind).observe(amount)
            if amount:
                number(f.TOKENS, route, upstream, kind, source).inc(amount)
                if key is not None:
                    number(f.KEY_TOKENS, key, kind).inc(amount)
        if summary.cost:
            number(f.COST, route, upstream).inc(summary.cost / _BILLION)


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
_RESULTS: Final = {outcome.value: "good" if outcome in GOOD else "bad" if outcome in BAD else "not_counted" for outcome in Outcome}
"""The label `result`, by outcome."""
