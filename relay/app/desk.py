"""What is known of the targets, and what a person may do about them: by one process, and put together for several.

Health is each worker's own finding. Of several, a target's line tells the worst, and how many workers find it how; load adds up.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from relay.config.tree import Config
from relay.errors import ClientError
from relay.policy.breaker import Cause, Health
from relay.policy.slots import AllSlots
from relay.policy.targets import Targets

_WORST_FIRST = [health.value for health in (Health.COOLING, Health.PROBING, Health.HEALTHY)]


class Order(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What is asked for: a report on all targets, after one of them was put to rest or brought back."""

    target: str | None = None
    """None for the report alone."""
    seconds: float | None = None
    """How long it shall rest; None to bring it back."""


class Desk:
    """Carries orders out in one process."""

    __slots__ = ("_config", "_slots", "_targets")

    def __init__(self, config: Config, targets: Targets, slots: AllSlots) -> None:
        self._config = config
        self._targets = targets
        self._slots = slots

    def know(self, config: Config) -> None:
        """Tell of the targets of a new configuration."""
        self._config = config

    def carry_out(self, order: Order, now: float) -> dict[str, Any]:
        """Do what is asked and return the report. Raises ClientError: unknown_target."""
        if order.target is not None:
            check_known(self._config, order.target)
            if order.seconds is None:
                self._targets.bring_back(order.target, now)
            else:
                self._targets.rest(order.target, now, order.seconds)
        return self._report(now)

    def _report(self, now: float) -> dict[str, Any]:
        routes: dict[str, list[str]] = {}
        for route in self._config.routes.values():
            for target in route.all_targets:
                routes.setdefault(target.name, []).append(route.name)
        targets = []
        for standing in self._targets.standings(now):
            pace = self._targets.pace(standing.name)
            is_well = standing.health is Health.HEALTHY
            targets.append(
                {
                    "target": standing.name,
                    "routes": routes.get(standing.name, []),
                    "health": standing.health.value,
                    "rest_seconds": round(standing.rest_seconds, 3),
                    "cause": None if is_well else _cause(self._targets.cause(standing.name, now)),
                    "trips": standing.trips,
                    "time_to_first_token_seconds": None if pace is None else round(pace, 4),
                    "in_flight": self._targets.in_flight(standing.name),
                }
            )
        return {"targets": targets, "upstreams": self._upstreams(now)}

    def _upstreams(self, now: float) -> list[dict[str, Any]]:
        credentials = self._targets.credentials(now)
        loads = {load.upstream: load for load in self._slots.loads()}
        return [
            {
                "upstream": name,
                "in_flight": loads[name].held,
                "waiting": loads[name].waiting,
                "concurrency": upstream.limits.concurrency,
                "credentials": dict(credentials.get(name, {})),
            }
            for name, upstream in self._config.upstreams.items()
        ]


def check_known(config: Config, name: str) -> None:
    """Raise ClientError, unknown_target, unless a route has a target of that name."""
    if all(target.name != name for route in config.routes.values() for target in route.all_targets):
        raise ClientError("unknown_target")


def log_fields(order: Order) -> dict[str, Any]:
    """Return what the log tells of an order that changes something."""
    return {"action": "restore" if order.seconds is None else "rest", "target": order.target, "seconds": order.seconds}


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put the reports of several workers together."""
    return {
        "targets": [_target(entries) for entries in _by("target", reports, "targets")],
        "upstreams": [_upstream(entries) for entries in _by("upstream", reports, "upstreams")],
    }


def _by(name: str, reports: Iterable[dict[str, Any]], kind: str) -> Iterable[list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        for entry in report[kind]:
            found.setdefault(entry[name], []).append(entry)
    return found.values()


def _target(entries: list[dict[str, Any]]) -> dict[str, Any]:
    worst = min(entries, key=lambda entry: (_WORST_FIRST.index(entry["health"]), -entry["rest_seconds"]))
    paces = [entry["time_to_first_token_seconds"] for entry in entries if entry["time_to_first_token_seconds"] is not None]
    return {
        **worst,
        "trips": max(entry["trips"] for entry in entries),
        "time_to_first_token_seconds": round(sum(paces) / len(paces), 4) if paces else None,
        "in_flight": sum(entry["in_flight"] for entry in entries),
        "workers": dict(Counter(entry["health"] for entry in entries)),
    }


def _upstream(entries: list[dict[str, Any]]) -> dict[str, Any]:
    # Each worker has an opinion of every credential: the sum would count a credential once per worker.
    wary = max(entries, key=lambda entry: sum(count for state, count in entry["credentials"].items() if state != Health.HEALTHY.value))
    return {
        **wary,
        "in_flight": sum(entry["in_flight"] for entry in entries),
        "waiting": sum(entry["waiting"] for entry in entries),
    }


def _cause(cause: Cause | None) -> str:
    # Of a target that is well itself, the credentials rest.
    return "credentials" if cause is None else cause.value
