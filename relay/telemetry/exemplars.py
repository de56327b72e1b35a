"""A recent trace beside each bucket of the times that people ask about: from a slow first token to the spans that tell why.

Only where spans are sent, and only of requests whose spans are: another trace could not be looked up. Only in OpenMetrics, which has a
place for them. Of several workers none: what they counted is one sum, and nobody's trace stands for it.
"""

from bisect import bisect_left
from collections.abc import Callable

from relay.exchange import Exchange, Summary
from relay.telemetry import families as f
from relay.telemetry.observations import NO_ROUTE, RESULTS, flag
from relay.telemetry.registry import Exemplar, Histogram, Registry


class Exemplars:
    """Keeps the last trace of each bucket: a `gateway.Observer`, told after the one that counts."""

    __slots__ = ("_clock", "_registry")

    def __init__(self, registry: Registry, *, clock: Callable[[], float]) -> None:
        """Put them to the histograms of `registry`; `clock` tells the Unix time of the loop's time 0."""
        self._registry = registry
        self._clock = clock

    def began(self) -> None:
        """Do nothing."""

    def routed(self, exchange: Exchange) -> None:
        """Do nothing."""

    def violated(self, identity: str) -> None:
        """Do nothing."""

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """Do nothing."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """Keep the trace of an exchange that is recorded."""
        request = summary.request
        trace = request.trace
        if trace is None or not trace.is_sampled or summary.is_quiet:
            return
        fold, histogram = self._registry.fold, self._registry.histogram
        route = NO_ROUTE if summary.route is None else fold("route", summary.route, is_observation=False)
        ended_at = self._clock() + request.received_at + summary.duration_seconds
        duration = histogram(f.REQUEST_DURATION, request.operation, route, flag(summary.is_stream), RESULTS[summary.outcome])
        _keep(duration, Exemplar(trace.id, summary.duration_seconds, ended_at))
        if summary.ttft_seconds is not None:
            upstream = fold("upstream", summary.upstream or "", is_observation=False)
            _keep(histogram(f.TIME_TO_FIRST_TOKEN, route, upstream), Exemplar(trace.id, summary.ttft_seconds, ended_at))


def _keep(histogram: Histogram, exemplar: Exemplar) -> None:
    if histogram.exemplars is None:
        histogram.exemplars = {}
    histogram.exemplars[bisect_left(histogram.bounds, exemplar.value)] = exemplar
