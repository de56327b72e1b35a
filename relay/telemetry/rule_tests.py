"""Cases for `promtool test rules` that prove the rules of one service level; printed by `relay rules --tests`.

Each group of series is a route with one trouble; a case says which alerts fire at a moment, and so which do not.
"""

from typing import Any, Final

from relay.config.tree import Slo
from relay.telemetry.rules import FAST, SLOW, SLOW_SHARE, Document, bound, budget, make_rules

MINUTES: Final = 480
"""Long enough for the six-hour window to be full."""
PER_MINUTE: Final = 60
BROKEN: Final = 0.9
"""Share of failures that no budget allows at any burn rate."""


def make_rule_tests(slo: Slo, rule_file: str) -> Document:
    """Return promtool's document: cases over the rules of `slo`, which stand in `rule_file`."""
    return {
        "rule_files": [rule_file],
        "evaluation_interval": "1m",
        "tests": [_failing(slo), _starting_late(slo), _leaking(slo), _innocent(), _quiet(), _states()],
    }


def _failing(slo: Slo) -> Document:
    series = _requests("fast", complete=PER_MINUTE * (1 - BROKEN), upstream_cut=PER_MINUTE * BROKEN, rate_limited=600)
    burn = {"severity": "page", "route": "fast"}
    samples = [_sample("route:relay_requests_bad:ratio_rate5m", BROKEN, route="fast")]
    return _case(
        "nine of ten requests fail, and many more are refused by a limit",
        series,
        [
            (60, "RelayErrorBudgetBurnFast", [(burn, {"route": "fast", "value": _percent(BROKEN)})]),
            (60, "RelayTTFTBudgetBurnFast", []),
        ],
        slo,
        [(60, "route:relay_requests_bad:ratio_rate5m", samples)],
    )


def _starting_late(slo: Slo) -> Document:
    late = PER_MINUTE * BROKEN
    series = _requests("fast", complete=PER_MINUTE) | _first_tokens("fast", slo, late=late)
    burn = {"severity": "page", "route": "fast"}
    return _case(
        "nine of ten streams start late",
        series,
        [
            (60, "RelayTTFTBudgetBurnFast", [(burn, {"route": "fast", "value": _percent(BROKEN)})]),
            (60, "RelayErrorBudgetBurnFast", []),
        ],
        slo,
    )


def _leaking(slo: Slo) -> Document:
    rate = (FAST + SLOW) / 2
    bad = PER_MINUTE * rate * float(budget(slo))
    series = _requests("fast", complete=PER_MINUTE - bad, upstream_failed=bad)
    series |= _first_tokens("fast", slo, late=PER_MINUTE * rate * SLOW_SHARE)
    ticket = ({"severity": "ticket", "route": "fast"}, {"route": "fast"})
    return _case(
        "both budgets burn, slower than a page needs and faster than a ticket",
        series,
        [
            (MINUTES, "RelayErrorBudgetBurnFast", []),
            (MINUTES, "RelayErrorBudgetBurnSlow", [ticket]),
            (MINUTES, "RelayTTFTBudgetBurnFast", []),
            (MINUTES, "RelayTTFTBudgetBurnSlow", [ticket]),
        ],
        slo,
    )


def _innocent() -> Document:
    series = _requests("fast", complete=1, rate_limited=600, invalid_request=600, client_gone=600)
    return _case("what callers do wrong burns nothing", series, [(MINUTES, f"RelayErrorBudgetBurn{how}", []) for how in ("Fast", "Slow")])


def _quiet() -> Document:
    series = _requests("rare", complete=0, upstream_failed=0.5)
    return _case("few requests, all failing, page nobody", series, [(60, "RelayErrorBudgetBurnFast", [])])


def _states() -> Document:
    series = {
        'relay_target_health{instance="a", target="openai/x", state="cooling"}': "1x20",
        'relay_target_health{instance="a", target="openai/y", state="cooling"}': "0x20",
        'relay_target_health{instance="a", target="openai/y", state="healthy"}': "1x20",
        'relay_config_last_reload_successful{instance="a"}': "1x4 0x16",
        'relay_invariant_violations_total{instance="a", invariant="open_is_in_flight"}': "0x9 1x11",
        'relay_event_loop_lag_seconds_bucket{instance="a", le="0.1"}': "0+10x20",
        'relay_event_loop_lag_seconds_bucket{instance="a", le="0.25"}': "0+11x20",
        'relay_event_loop_lag_seconds_bucket{instance="a", le="+Inf"}': "0+11x20",
        'relay_event_loop_lag_seconds_bucket{instance="b", le="0.1"}': "0+11x20",
        'relay_event_loop_lag_seconds_bucket{instance="b", le="+Inf"}': "0+11x20",
        'relay_key_limit_used_ratio{instance="a", key="alice", limit="tpm"}': "0.95x20",
        'relay_key_limit_used_ratio{instance="a", key="bob", limit="rpm"}': "0.9x20",
        'up{job="relay", instance="a"}': "1x20",
        'up{job="relay", instance="b"}': "0x20",
    }
    cooling = ({"severity": "ticket", "instance": "a", "target": "openai/x"}, {"target": "openai/x"})
    refused = ({"severity": "ticket", "instance": "a"}, {"instance": "a"})
    limit = {"key": "alice", "limit": "tpm"}
    books = {"instance": "a", "invariant": "open_is_in_flight"}
    return _case(
        "states",
        series,
        [
            (4, "RelayTargetCooling", []),
            (6, "RelayTargetCooling", [cooling]),
            (3, "RelayEventLoopBlocked", []),
            (15, "RelayEventLoopBlocked", [({"severity": "ticket", "instance": "a"}, {"instance": "a"})]),
            (9, "RelayKeyNearLimit", []),
            (11, "RelayKeyNearLimit", [({"severity": "info", **limit}, limit)]),
            (4, "RelayConfigReloadFailed", []),
            (7, "RelayConfigReloadFailed", [refused]),
            (9, "RelayInvariantViolated", []),
            (12, "RelayInvariantViolated", [({"severity": "ticket", **books}, books)]),
            (3, "RelayDown", [({"severity": "page", "job": "relay", "instance": "b"}, {"instance": "b"})]),
        ],
    )


def _requests(route: str, **per_minute: float) -> dict[str, str]:
    return {f'relay_requests_total{{route="{route}", outcome="{outcome}"}}': _rising(rate) for outcome, rate in per_minute.items()}


def _first_tokens(route: str, slo: Slo, *, late: float) -> dict[str, str]:
    labels = f'route="{route}", upstream="openai"'
    name = "relay_time_to_first_token_seconds"
    return {
        f'{name}_bucket{{{labels}, le="{bound(slo)}"}}': _rising(PER_MINUTE - late),
        f'{name}_bucket{{{labels}, le="+Inf"}}': _rising(PER_MINUTE),
        f"{name}_count{{{labels}}}": _rising(PER_MINUTE),
    }


def _rising(per_minute: float) -> str:
    return f"0+{per_minute:.10g}x{MINUTES}"


def _percent(share: float) -> str:
    return f"{share * 100:.4g}%"


def _sample(name: str, value: float, **labels: str) -> Document:
    inner = ", ".join(f'{label}="{text}"' for label, text in labels.items())
    return {"labels": f"{name}{{{inner}}}", "value": value}


def _case(
    name: str,
    series: dict[str, str],
    alerts: list[tuple[int, str, list[tuple[dict[str, str], dict[str, str]]]]],
    slo: Slo | None = None,
    samples: list[tuple[int, str, list[Document]]] | None = None,
) -> Document:
    """Build one case: `alerts` are (minute, name, [(labels, what the annotations are filled with)])."""
    known = _annotations(slo or Slo())
    case: Document = {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": alert,
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": _filled(known[alert], words)} for labels, words in firing],
            }
            for minute, alert, firing in alerts
        ],
    }
    if samples:
        case["promql_expr_test"] = [{"expr": expr, "eval_time": f"{minute}m", "exp_samples": found} for minute, expr, found in samples]
    return case


def _annotations(slo: Slo) -> dict[str, dict[str, Any]]:
    rules = [rule for group in make_rules(slo)["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule["annotations"] for rule in rules if "alert" in rule}


def _filled(annotations: dict[str, str], words: dict[str, str]) -> dict[str, str]:
    """Put words where the template names a label or the value."""
    summary = annotations["summary"].replace("{{ $value | humanizePercentage }}", words.get("value", ""))
    for word, text in words.items():
        summary = summary.replace(f"{{{{ $labels.{word} }}}}", text)
    return {**annotations, "summary": summary}
