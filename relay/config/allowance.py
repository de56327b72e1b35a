"""Limits and prices: from what was written to the tree, and what they say of routes and models checked."""

from collections.abc import Iterator, Mapping

from relay.config import models
from relay.config.problems import did_you_mean, shown
from relay.config.report import Report
from relay.config.sections import Draft
from relay.config.tree import Key, Limits, Price, Route, Target


def limits_of(given: models.Limits | models.KeyLimits) -> Limits | None:
    """Return the limits, None when there is none."""
    made = Limits(rpm=given.rpm, tpm=given.tpm, concurrency=given.concurrency, budget=given.budget)
    return None if made == Limits() else made


def route_limits_of(given: models.KeyLimits) -> dict[str, Limits]:
    """Return a key's limits on single routes."""
    return {route: found for route, each in given.per_route.items() if (found := limits_of(each)) is not None}


def check_per_route(name: str, given: models.KeyLimits, draft: Draft, report: Report) -> None:
    """Note routes that are not there, and limits that limit nothing."""
    for route, each in given.per_route.items():
        path = ("keys", name, "limits", "per_route", route)
        if route not in draft.routes:
            if draft.routes and not report.is_full:
                report.add(path, f'no route named "{shown(route)}"{did_you_mean(route, draft.routes)}', at_name=True)
        elif limits_of(each) is None:
            report.add(path, "holds no limit", at_name=True)


def prices_of(draft: Draft, report: Report) -> dict[str, Price]:
    """Return the prices by upstream/model."""
    made: dict[str, Price] = {}
    for name, given in draft.prices.items():
        upstream, slash, model = name.partition("/")
        if not slash or not model or "*" in upstream or "*" in model[:-1]:
            report.add(("prices", name), "expected a model written as upstream/model; a * may stand only at its end", at_name=True)
        elif upstream not in draft.upstreams and not report.is_full:
            report.add(("prices", name), f'no upstream named "{shown(upstream)}"{did_you_mean(upstream, draft.upstreams)}', at_name=True)
        elif given is not None:
            made[name] = Price(input=given.input, output=given.output, cached=given.input if given.cached is None else given.cached)
    return made


def check_priced(routes: Mapping[str, Route], keys: Mapping[bytes, Key], prices: Mapping[str, Price], report: Report) -> None:
    """Refuse a budget in money that can be spent on a target whose price is not known: it would hold nothing back."""
    stored = {key.name for key in keys.values() if key.is_stored}
    for path, reached in _money_budgets(routes, keys):
        for target in (target for route in reached for target in route.all_targets):
            if _is_priced(target, prices):
                continue
            if path[0] == "keys" and path[1] in stored:
                # It may have come while the relay ran, and must not keep it from starting again; it is refused there.
                what = f'the key "{shown(path[1])}" has a budget in USD'
                report.warn(("keys", "store"), f'{what}, but `prices` has nothing for "{shown(_name(target))}"')
            else:
                report.add(path, f'is in USD, but `prices` has nothing for "{shown(_name(target))}"; 0 is a price too')
            break


def _money_budgets(routes: Mapping[str, Route], keys: Mapping[bytes, Key]) -> Iterator[tuple[tuple[str, ...], list[Route]]]:
    for name, route in routes.items():
        if _is_money(route.limits):
            yield ("routes", name, "limits", "budget"), [route]
    for key in keys.values():
        if _is_money(key.limits):
            reached = [route for name, route in routes.items() if key.routes is None or name in key.routes]
            yield ("keys", key.name, "limits", "budget"), reached
        for name, limits in key.route_limits.items():
            if _is_money(limits) and name in routes:
                yield ("keys", key.name, "limits", "per_route", name, "budget"), [routes[name]]


def _is_money(limits: Limits | None) -> bool:
    return limits is not None and limits.budget is not None and limits.budget.is_money


def _name(target: Target) -> str:
    return f"{target.upstream.name}/{target.model or '*'}"


def _is_priced(target: Target, prices: Mapping[str, Price]) -> bool:
    name = _name(target)
    return name in prices or any(each.endswith("*") and name.startswith(each[:-1]) for each in prices)
