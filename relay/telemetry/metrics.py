"""What the relay counts and measures, for Prometheus.

A `Summary` is observed once, when its exchange is over; nothing here is touched per event. Label values are closed
sets or names from the configuration, the latter capped, so no request can mint a series and no configuration too many.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Final

from relay.config.tree import Config, Route
from relay.exchange import AttemptResult, Blame, Exchange, Summary
from relay.telemetry import families as f
from relay.telemetry.exposition import OPENMETRICS, TEXT, ProcessPage, expose, wants_openmetrics
from relay.telemetry.observations import NO_KEY, NO_ROUTE, Observations, flag
from relay.telemetry.registry import OTHER, Number, Registry

HEALTH_STATES: Final = ("healthy", "cooling", "probing")
INVARIANTS: Final = ("ended_is_at_most_started", "open_is_in_flight")

Connections = dict[str, tuple[int, int]]
"""Idle and open connections, by upstream."""
Credentials = Mapping[str, Mapping[str, int]]
"""How many credentials are in which state, by upstream."""


class _Gone(Enum):
    """Series that are to be dropped: a scraper must have had the chance to read their last value."""

    NOTHING = "nothing"
    UNSEEN = "unseen"
    SHOWN = "shown"


class Metrics:
    """The registry and everything in it: a `gateway.Observer`."""

    __slots__ = (
        "_connections",
        "_credentials",
        "_drops",
        "_drops_seen",
        "_ended",
        "_gone",
        "_has_prices",
        "_keys",
        "_limits_degraded",
        "_observations",
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
        "_unmade",
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
        usage_dropped: Callable[[], int] = lambda: 0,
        spans_dropped: Callable[[], int] = lambda: 0,
        shares: Callable[[], Iterable[tuple[str, str, float]]] = list,
        reserved: Callable[[], Mapping[str, int]] = dict,
        limits_degraded: Callable[[], bool] = lambda: False,
        identities: Sequence[str] = (),
    ) -> None:
        """Count for `config`. Asked at each scrape: `connections`, `dropped` (log lines), `standings` (targets and their states),
        `credentials`, `queued` by route, `shares` (key, limit, used part), `reserved` (tokens by key). `identities` may be violated.
        """
        self.registry = registry = Registry(
            f.all_families(), bounds={f.TIME_TO_FIRST_TOKEN: config.metrics.slo.ttft}, cap=config.metrics.label_values
        )
        self._observations = Observations(registry)
        self.lagged = registry.histogram(f.LOOP_LAG).observe
        """Takes how late the event loop ran, in seconds."""
        self._process = ProcessPage()
        self._connections = connections
        self._queued = queued
        self._drops = ((f.LOG_DROPPED, dropped), (f.USAGE_DROPPED, usage_dropped), (f.SPANS_DROPPED, spans_dropped))
        self._drops_seen = [0] * len(self._drops)
        self._standings = standings
        self._credentials = credentials
        self._shares, self._reserved, self._limits_degraded = shares, reserved, limits_degraded
        self._standings_seen: dict[str, str] = {}
        self._targets: dict[str, list[tuple[str, str]]] = {}
        """Route and upstream of each place a target has, by the target's name."""
        self._started = self._ended = 0
        self._open: dict[int, Number] = {}
        """Exchanges being served, and the gauge that each is counted in."""
        self._routes = self._upstreams = self._keys = frozenset[str]()
        self._unmade: list[Route] = []
        """Configured routes whose series are still to be made, the first one last."""
        self._gone = _Gone.NOTHING
        """Whether there are series of what the configuration does not name any more."""
        registry.number(f.BUILD, version, platform.python_version(), config.commit).set(1)
        _make_alone(registry, identities)
        self.know(config)
        self._make_all()

    def know(self, config: Config) -> None:
        """Count for `config` from now on; series of routes and upstreams that are gone will be dropped.

        Those of its routes are made by `make_series`, or by the next page.
        """
        if not self._routes <= config.routes.keys() or not self._upstreams <= config.upstreams.keys():
            self._gone = _Gone.UNSEEN
        self._routes, self._upstreams = frozenset(config.routes), frozenset(config.upstreams)
        self.registry.clear(f.TARGET_HEALTH)
        self._targets.clear()
        self._standings_seen.clear()
        self._observations.forget()
        for stream in ("true", "false"):
            self.registry.number(f.IN_FLIGHT, NO_ROUTE, stream)
            self._observations.prepare("chat", NO_ROUTE, stream)
        self._unmade = list(config.routes.values())[::-1]
        self._has_prices = bool(config.prices)
        self.know_keys(config.key_names)

    def know_keys(self, names: Iterable[str]) -> None:
        """Count for these keys from now on; series of others will be dropped."""
        keys = frozenset(names)
        if not self._keys <= keys:
            self._gone = _Gone.UNSEEN
        self._keys = keys

    def make_series(self) -> Iterator[None]:
        """Make the series of the configured routes, one route between two yields, so that rates see the first error.

        A route takes some 0.2 ms, and there may be hundreds.
        """
        while self._unmade:
            self._make_route(self._unmade.pop())
            yield

    def _make_all(self) -> None:
        for _ in self.make_series():
            pass

    def _make_route(self, route: Route) -> None:
        number, fold = self.registry.number, self.registry.fold
        name = fold("route", route.name, is_observation=False)
        for stream in ("true", "false"):
            number(f.IN_FLIGHT, name, stream)
            self._observations.prepare("chat", name, stream)
        for won in ("true", "false") if route.hedge is not None else ():
            number(f.HEDGES, name, won)
        number(f.BACKPRESSURE, name)
        for blame in Blame:
            number(f.GAP, name, blame.value)
            number(f.STALLS, name, blame.value)
        for target in route.all_targets:
            upstream = fold("upstream", target.upstream.name, is_observation=False)
            self._targets.setdefault(target.name, []).append((name, upstream))
            number(f.RESENDS, upstream)
            number(f.MALFORMED_EVENTS, upstream)
            if self._has_prices:
                number(f.COST, name, upstream)
            for result in AttemptResult:
                number(f.ATTEMPTS, name, upstream, result.value)

    @property
    def is_leaving(self) -> bool:
        """Tell whether there are series of what is not configured any more."""
        return self._gone is not _Gone.NOTHING

    def _show(self) -> None:
        """Drop the series of what is not configured any more once a page has shown them, and take note that one does now."""
        if self._gone is _Gone.SHOWN:
            self._forget()
        elif self._gone is _Gone.UNSEEN:
            self._gone = _Gone.SHOWN

    def _forget(self) -> None:
        """Drop the series of routes, upstreams and keys that are not configured any more, but for routes that still serve."""
        registry = self.registry
        known = {*self._routes, NO_ROUTE, OTHER}
        leaving = {labels[0] for labels, gauge in registry.numbers(f.IN_FLIGHT) if gauge.value and labels[0] not in known}
        self._gone = _Gone.UNSEEN if leaving else _Gone.NOTHING
        forgotten = sum(counter.value for labels, counter in registry.numbers(f.REQUESTS) if labels[1] not in known | leaving)
        registry.number(f.FORGOTTEN).inc(forgotten)
        registry.keep(("route",), known | leaving)
        if not leaving:
            registry.keep(("upstream", "from_upstream", "to_upstream"), {*self._upstreams, OTHER})
            registry.keep(("key",), {*self._keys, NO_KEY, OTHER})
        self._observations.forget()

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
            self._gone = _Gone.UNSEEN
        gauge = self._open[id(exchange)] = self.registry.number(
            f.IN_FLIGHT, self.registry.fold("route", name), flag(exchange.request.is_stream)
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
        if summary.is_quiet:
            self.registry.number(f.MODEL_LISTS).inc()
        else:
            self._observations.observe(summary)
        if summary.route is not None and summary.route not in self._routes:
            self._gone = _Gone.UNSEEN
        key = summary.request.key
        if key is not None and key.name not in self._keys:
            self._gone = _Gone.UNSEEN
        for attempt in summary.attempts:
            if attempt.target.upstream.name not in self._upstreams:
                self._gone = _Gone.UNSEEN

    def _check(self) -> None:
        """Hold the identities against each other: started = ended + in flight, and nothing is served twice."""
        if self._ended > self._started:
            self.registry.number(f.VIOLATIONS, "ended_is_at_most_started").inc()
        if len(self._open) > self._started - self._ended:
            self.registry.number(f.VIOLATIONS, "open_is_in_flight").inc()

    # The page

    def render(self, accept: str) -> tuple[bytes, Iterator[bytes]]:
        """Return the content type, and slices of the exposition that a scraper's `Accept` asks for."""
        is_openmetrics = wants_openmetrics(accept)
        return OPENMETRICS if is_openmetrics else TEXT, self._slices(is_openmetrics=is_openmetrics)

    def _slices(self, *, is_openmetrics: bool) -> Iterator[bytes]:
        for _ in self.make_series():
            yield b""
        self._show()
        self._refresh()
        yield from expose(self.registry, is_openmetrics=is_openmetrics)
        yield self._process.render(is_openmetrics=is_openmetrics)

    def dump(self, *, forgets: bool = False) -> Iterator[bytes]:
        """Yield everything that was counted, in pieces that another registry merges; before that, forget what is not configured any more
        if told so: whoever shows the page knows whether it was shown.
        """
        if forgets:
            self._forget()
        self._refresh()
        yield from self.registry.dump()

    def _refresh(self) -> None:
        """Take over what others count."""
        self._make_all()
        number = self.registry.number
        number(f.STARTED).set(self._started)
        number(f.IN_FLIGHT, NO_ROUTE, "false").set(self.in_flight - len(self._open))
        self.registry.clear(f.CONNECTIONS)
        self.registry.clear(f.UPSTREAM_IN_FLIGHT)
        for upstream, (idle, opened) in self._connections().items():
            if opened or upstream in self._upstreams:
                name = self.registry.fold("upstream", upstream, is_observation=False)
                # A connection carries one call at a time.
                active = max(opened - idle, 0)
                number(f.CONNECTIONS, name, "idle").inc(idle)
                number(f.CONNECTIONS, name, "active").inc(active)
                number(f.UPSTREAM_IN_FLIGHT, name).inc(active)
        for gauge in self.registry.numbers(f.QUEUED):
            gauge[1].set(0)  # several routes may share one
        for route, count in self._queued().items():
            number(f.QUEUED, self.registry.fold("route", route, is_observation=False)).inc(count)
        for target, current in self._standings():
            if self._standings_seen.get(target) != current:
                self._standings_seen[target] = current
                for route, upstream in self._targets.get(target, ()):
                    for state in HEALTH_STATES:
                        number(f.TARGET_HEALTH, route, upstream, target, state).set(1 if state == current else 0)
        self._refresh_credentials()
        self._refresh_limits()
        for place, (family, ask) in enumerate(self._drops):
            dropped = ask()
            number(family).inc(dropped - self._drops_seen[place])
            self._drops_seen[place] = dropped
        self._count_overflow()

    def _refresh_credentials(self) -> None:
        self.registry.clear(f.CREDENTIALS)
        for upstream, counts in self._credentials().items():
            for health, count in counts.items():
                self.registry.number(f.CREDENTIALS, self.registry.fold("upstream", upstream, is_observation=False), health).inc(count)

    def _refresh_limits(self) -> None:
        """Tell how the limits stand; of keys that share a label the one nearest to its limit."""
        self.registry.number(f.LIMITER_DEGRADED).set(1 if self._limits_degraded() else 0)
        fold = partial(self.registry.fold, "key", is_observation=False)
        shares: dict[tuple[str, str], float] = {}
        for key, limit, share in self._shares():
            if key in self._keys:  # what a removed one still holds is nobody's limit
                labels = (fold(key), limit)
                shares[labels] = max(share, shares.get(labels, 0.0))
        tokens: dict[str, int] = {}
        for key, amount in self._reserved().items():
            if key in self._keys:
                tokens[fold(key)] = tokens.get(fold(key), 0) + amount
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


def _make_alone(registry: Registry, identities: Sequence[str]) -> None:
    """Make the series that belong to no route."""
    for counter in (f.LOG_DROPPED, f.USAGE_DROPPED, f.SPANS_DROPPED, f.MODEL_LISTS, f.FORGOTTEN):
        registry.number(counter)
    for invariant in (*INVARIANTS, *identities):
        registry.number(f.VIOLATIONS, invariant)
