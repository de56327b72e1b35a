"""Recording and alert rules for Prometheus, made from the service level that `metrics.slo` promises; printed by `relay rules`.

What counts is what the relay or an upstream did: requests that the caller got wrong, that a limit refused or that the
caller left are in neither numerator nor denominator. Budgets burn over two windows at once, a long one that says it matters
and a short one that says it is still going on.
"""

from collections.abc import Mapping
from typing import Any, Final

import yaml

from relay.config.tree import Slo
from relay.exchange import BAD, GOOD, AttemptResult, Outcome

BAD_OUTCOMES: Final = 'outcome=~"' + "|".join(outcome for outcome in Outcome if outcome in BAD) + '"'
COUNTED_OUTCOMES: Final = 'outcome=~"' + "|".join(outcome for outcome in Outcome if outcome in GOOD | BAD) + '"'
FAILED_ATTEMPTS: Final = (
    'result!~"' + "|".join((AttemptResult.SUCCESS, AttemptResult.CANCELLED, AttemptResult.HTTP_4XX)) + '"'
)  # a 4xx of no class of its own is the caller's fault
SLOW_SHARE: Final = 0.05
"""Share of streams that may start later than the promise: it is one about 95 % of them."""
WINDOWS: Final = ("5m", "30m", "1h", "6h")
FAST: Final = 14.4
"""Uses 2 % of a 30-day budget in one hour."""
SLOW: Final = 6
"""Uses 5 % of a 30-day budget in six hours."""
QUIET: Final = 0.02
"""Requests a second below which nobody is woken: one failure among so few says nothing."""

Document = dict[str, Any]


def make_rules(slo: Slo) -> Document:
    """Return the rule groups for `slo`, in Prometheus's own form."""
    return {
        "groups": [
            {"name": "relay-sli", "interval": "30s", "rules": _recordings(slo)},
            {"name": "relay-alerts", "rules": [*_budget_alerts(slo), *_state_alerts()]},
        ]
    }


def to_yaml(document: Document, head: str) -> str:
    """Write a document as a person would, under a comment line."""

    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, indentless=False)

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return f"# {head}\n" + yaml.dump(document, Dumper=Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def budget(slo: Slo) -> str:
    """Return the share of requests that may fail, as PromQL writes it."""
    return f"{round(1 - slo.availability, 8):.10g}"


def bound(slo: Slo) -> str:
    """Return the label `le` of the histogram bound that is the promise."""
    return repr(float(slo.ttft))


def _recordings(slo: Slo) -> list[Document]:
    return [
        _record("route:relay_requests:rate5m", "sum by (route) (rate(relay_requests_total[5m]))"),
        *(_record(f"route:relay_requests_bad:ratio_rate{window}", _bad_ratio(window)) for window in WINDOWS),
        *(_record(f"route:relay_ttft_slow:ratio_rate{window}", _slow_ratio(slo, window)) for window in WINDOWS),
        _record(
            "route_upstream:relay_ttft_seconds:p95_rate5m",
            "histogram_quantile(0.95, sum by (route, upstream, le) (rate(relay_time_to_first_token_seconds_bucket[5m])))",
        ),
        _record(
            "upstream:relay_upstream_attempts_failed:ratio_rate5m",
            f"sum by (upstream) (rate(relay_upstream_attempts_total{{{FAILED_ATTEMPTS}}}[5m]))\n"
            f'/ (sum by (upstream) (rate(relay_upstream_attempts_total{{result!="{AttemptResult.CANCELLED}"}}[5m])) > 0)\n',
        ),
    ]


def _bad_ratio(window: str) -> str:
    return (
        f"sum by (route) (rate(relay_requests_total{{{BAD_OUTCOMES}}}[{window}]))\n"
        f"/ (sum by (route) (rate(relay_requests_total{{{COUNTED_OUTCOMES}}}[{window}])) > 0)\n"
    )


def _slow_ratio(slo: Slo, window: str) -> str:
    return (
        f'1 - sum by (route) (rate(relay_time_to_first_token_seconds_bucket{{le="{bound(slo)}"}}[{window}]))\n'
        f"/ (sum by (route) (rate(relay_time_to_first_token_seconds_count[{window}])) > 0)\n"
    )


def _budget_alerts(slo: Slo) -> list[Document]:
    bad, slow = budget(slo), f"{SLOW_SHARE:g}"
    return [
        _burn("RelayErrorBudgetBurnFast", "bad", bad, "Route {{ $labels.route }} fails {{ $value | humanizePercentage }} of requests"),
        _burn("RelayErrorBudgetBurnSlow", "bad", bad, "Route {{ $labels.route }} is slowly using up its error budget"),
        _burn(
            "RelayTTFTBudgetBurnFast",
            "slow",
            slow,
            f"Route {{{{ $labels.route }}}}: {{{{ $value | humanizePercentage }}}} of streams start later than {slo.ttft:g} s",
        ),
        _burn("RelayTTFTBudgetBurnSlow", "slow", slow, "Route {{ $labels.route }} starts slowly"),
    ]


def _burn(name: str, what: str, share: str, summary: str) -> Document:
    series = "route:relay_requests_bad" if what == "bad" else "route:relay_ttft_slow"
    page = "error-budget" if what == "bad" else "ttft"
    if name.endswith("Fast"):
        parts = [f"{series}:ratio_rate1h > {FAST} * {share}", f"{series}:ratio_rate5m > {FAST} * {share}"]
        return _alert(name, _both(*parts, f"route:relay_requests:rate5m > {QUIET}"), "2m", "page", summary, page)
    parts = [f"{series}:ratio_rate6h > {SLOW} * {share}", f"{series}:ratio_rate30m > {SLOW} * {share}"]
    return _alert(name, _both(*parts), "15m", "ticket", summary, page)


def _both(*conditions: str) -> str:
    return "\nand ".join(f"({each})" for each in conditions) + "\n"


def _state_alerts() -> list[Document]:
    return [
        _alert(
            "RelayTargetCooling",
            'max by (instance, target) (relay_target_health{state="cooling"}) == 1',
            "5m",
            "ticket",
            "Target {{ $labels.target }} has been resting for 5 minutes",
            "cooldown",
        ),
        _alert(
            "RelayEventLoopBlocked",
            "histogram_quantile(0.99, sum by (instance, le) (rate(relay_event_loop_lag_seconds_bucket[5m]))) > 0.1",
            "5m",
            "ticket",
            "The event loop of {{ $labels.instance }} runs late",
            "loop-lag",
        ),
        _alert(
            "RelayConfigReloadFailed",
            "relay_config_last_reload_successful == 0",
            "1m",
            "ticket",
            "{{ $labels.instance }} still runs its previous configuration",
            "reload",
        ),
        _alert(
            "RelayInvariantViolated",
            "increase(relay_invariant_violations_total[1h]) > 0",
            "0m",
            "ticket",
            "The books of {{ $labels.instance }} do not balance: {{ $labels.invariant }}",
            "invariants",
        ),
        _alert(
            "RelayKeyNearLimit",
            "max by (key, limit) (relay_key_limit_used_ratio) > 0.9",
            "10m",
            "info",
            "Key {{ $labels.key }} uses over 90 % of its {{ $labels.limit }} limit",
            "keys",
        ),
        _alert("RelayDown", 'up{job="relay"} == 0', "1m", "page", "{{ $labels.instance }} cannot be scraped", "down"),
    ]


def _record(name: str, expr: str) -> Document:
    return {"record": name, "expr": expr}


def _alert(name: str, expr: str, pending: str, severity: str, summary: str, section: str) -> Document:
    annotations: Mapping[str, str] = {"summary": summary, "runbook_url": f"docs/runbook.md#{section}"}
    return {"alert": name, "expr": expr, "for": pending, "labels": {"severity": severity}, "annotations": dict(annotations)}
