"""Routes: from what was written to targets whose upstreams are objects, each with the timeouts that hold for it.

Timeouts are laid over one another, the narrower over the wider: all upstreams, one upstream, one route, one target. `write`
and `total` belong to the exchange, so they have no narrower place than the route; where a route says nothing about them,
the longest of its upstreams' holds, for none of them shall be cut by another's bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from relay.config import models
from relay.config.allowance import limits_of
from relay.config.problems import Path, did_you_mean, shown
from relay.config.report import Report
from relay.config.tree import (
    AffinityKind,
    FallbackCause,
    Heartbeat,
    Hedge,
    OnDisconnect,
    OnLimit,
    Route,
    Strategy,
    Target,
    Timeouts,
    Upstream,
)

_OF_EXCHANGE: Final = ("write", "total")
_Located = tuple[Path, models.Target]
"""A target and where it was written."""


def merge_timeouts(base: Timeouts, given: models.Timeouts | models.TargetTimeouts) -> Timeouts:
    """Return `base` with what `given` really says; `auto` keeps the base's number."""
    said = {name: getattr(given, name) for name in given.model_fields_set}
    if "first_token" in said:
        said["first_token_auto"] = said["first_token"] is None
        if said["first_token"] is None:
            del said["first_token"]
    return replace(base, **said)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteBuilder:
    """Builds routes against the upstreams of a file."""

    named: Mapping[str, object]
    """Every upstream that was written, also one with a mistake."""
    upstreams: Mapping[str, Upstream]
    """Those that can be called."""
    report: Report

    def build(self, name: str, given: models.Route) -> Route | None:
        """Return the route; None when its mistakes, noted in the report, leave no target."""
        path: Path = ("routes", name)
        chosen = given.balance if "balance" in given.model_fields_set else given.to
        section = "balance" if "balance" in given.model_fields_set else "to"
        self._check_choice(path, given)
        first = self._located(path, section, chosen)
        then = self._located(path, "fallback", given.fallback)
        self._check_twice(name, first + then)
        targets = self._targets(name, first, given)
        fallbacks = self._targets(name, then, given)
        if not targets:
            return None
        timeouts = _exchange_timeouts(given, targets + fallbacks)
        self._check_hedge(path, given, targets)
        return Route(
            name=name,
            targets=_bounded(targets, timeouts),
            fallbacks=_bounded(fallbacks, timeouts),
            timeouts=timeouts,
            strategy=Strategy(given.strategy) if given.strategy else Strategy.WEIGHTED if section == "balance" else Strategy.ORDERED,
            affinity=given.affinity,
            fallback_on=frozenset(map(FallbackCause, given.fallback_on)),
            retries=given.retries,
            limits=limits_of(given.limits),
            on_limit=OnLimit(given.on_limit),
            on_disconnect=_on_disconnect(given.on_disconnect),
            # Reading on is for the usage at the end.
            always_asks_usage=given.usage == "always" or given.on_disconnect is not None,
            hedge=None if given.hedge is None else Hedge(after=given.hedge.after, at_most=given.hedge.at_most),
            heartbeat=None if given.heartbeat is None else Heartbeat(after=given.heartbeat.after, every=given.heartbeat.every),
        )

    def _located(self, path: Path, section: str, written: list[models.Target]) -> list[_Located]:
        return [(self._place(path, section, index), each) for index, each in enumerate(written)]

    def _place(self, path: Path, section: str, index: int) -> Path:
        """Return where a target was written, whichever form its route has."""
        forms: tuple[Path, ...] = ((*path, section, index), (*path, section), (*path, index), path)
        found = next((form for form in forms if form in self.report.values), path)
        return (*found, "to") if found != path and (*found, "to") in self.report.values else found

    def _targets(self, name: str, written: list[_Located], given: models.Route) -> tuple[Target, ...]:
        found: list[Target] = []
        for place, each in written:
            upstream, model = each.to
            if upstream not in self.named:
                if self.named and not self.report.is_full:
                    self.report.add(place, f'no upstream named "{shown(upstream)}"{did_you_mean(upstream, self.named)}')
            elif "*" in model and not name.endswith("*"):
                self.report.add(place, "the model holds a *, which only a route whose name ends in * can fill")
            elif upstream in self.upstreams:
                origin = self.upstreams[upstream]
                timeouts = merge_timeouts(merge_timeouts(origin.timeouts, given.timeouts), each.timeouts)
                found.append(Target(upstream=origin, model=model, weight=each.weight, timeouts=timeouts))
        return tuple(found)

    def _check_twice(self, name: str, written: list[_Located]) -> None:
        seen: set[tuple[str, str]] = set()
        for place, each in written:
            if each.to in seen:
                self.report.add(place, f'is already a target of "{shown(name)}"; a target is tried once')
            seen.add(each.to)

    def _check_choice(self, path: Path, given: models.Route) -> None:
        """Refuse what contradicts itself and what would have no effect."""
        said = given.model_fields_set
        report = self.report
        if "to" in said and "balance" in said:
            report.add((*path, "balance"), "stands beside `to`; keep one of the two")
        elif not said.intersection(("to", "balance")):
            if path not in report.holed:
                report.add(path, "leads nowhere: add `to: [upstream/model, ...]`, tried in order, or `balance: [...]`")
            return
        for section in ("to", "balance", "fallback"):
            if section in said and not getattr(given, section):
                report.add((*path, section), "is empty")
        self._check_balance(path, given)
        if given.fallback_on and len(given.to) + len(given.balance) + len(given.fallback) == 1:
            report.add((*path, "fallback_on"), "has no effect: the route has no second target")

    def _check_hedge(self, path: Path, given: models.Route, targets: tuple[Target, ...]) -> None:
        if given.hedge is None:
            return
        if len(given.to) + len(given.balance) + len(given.fallback) == 1:
            self.report.add((*path, "hedge"), "has no effect: the route has no second target")
        after = given.hedge.after
        if after is not None and all(each.timeouts is not None and after >= each.timeouts.first_token for each in targets):
            self.report.add((*path, "hedge", "after"), "is not shorter than timeouts.first_token: no backup would ever start")

    def _check_balance(self, path: Path, given: models.Route) -> None:
        report = self.report
        is_balanced = "balance" in given.model_fields_set
        is_kept = given.affinity.kind is not AffinityKind.NONE
        if not is_balanced and given.strategy not in (None, Strategy.ORDERED.value):
            report.add((*path, "strategy"), "chooses among the targets of `balance`; those of `to` are tried in order")
        if is_balanced and given.strategy == Strategy.ORDERED.value:
            report.add((*path, "strategy"), "targets that are tried in order stand in `to`, not in `balance`")
        if is_kept and not is_balanced:
            report.add((*path, "affinity"), "has no effect on targets that are tried in order; use `balance`")
        elif is_kept and len(given.balance) == 1:
            report.add((*path, "affinity"), "has no effect: `balance` has one target")
        takes_weight = is_balanced and (is_kept or given.strategy != Strategy.FASTEST.value)
        for section in ("to", "balance", "fallback"):
            if section == "balance" and takes_weight:
                continue
            for index, each in enumerate(getattr(given, section)):
                if "weight" in each.model_fields_set:
                    reason = "the fastest target is chosen" if section == "balance" else "these targets are tried in order"
                    report.add(self._weight_place(path, section, index), f"has no effect: {reason}")

    def _weight_place(self, path: Path, section: str, index: int) -> Path:
        full: Path = (*path, section, index, "weight")
        return full if full in self.report.values else (*path, index, "weight")


def _on_disconnect(given: models.OnDisconnect | None) -> OnDisconnect | None:
    return None if given is None else OnDisconnect(drain=given.drain, max_tokens=given.max_tokens)


def _exchange_timeouts(given: models.Route, targets: tuple[Target, ...]) -> Timeouts:
    base = merge_timeouts(targets[0].upstream.timeouts, given.timeouts)
    longest = {name: max(getattr(each.timeouts, name) for each in targets) for name in _OF_EXCHANGE}
    return replace(base, **longest)


def _bounded(targets: tuple[Target, ...], timeouts: Timeouts) -> tuple[Target, ...]:
    return tuple(replace(each, timeouts=replace(each.timeouts or timeouts, write=timeouts.write, total=timeouts.total)) for each in targets)
