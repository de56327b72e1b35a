"""Writes grafana/dashboards/relay.json: `python -m grafana.build`, or with `--config FILE` for the promise of that configuration.

Grafana's classic form (schema 39). Identifiers and places are counted off in the order of the rows, so the same rows make the
same bytes.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from grafana import parts, traffic
from grafana.board import WIDTH, Panel, Query, Row
from grafana.selectors import S
from relay.config import load
from relay.config.tree import Slo

FILE: Final = Path(__file__).parent / "dashboards/relay.json"
SOURCE: Final[Mapping[str, str]] = {"type": "prometheus", "uid": "${datasource}"}
NO_TRAFFIC: Final[Mapping[str, Any]] = {"type": "special", "options": {"match": "null+nan", "result": {"text": "No traffic", "index": 9}}}
Json = dict[str, Any]


def build(slo: Slo) -> Json:
    """Return the dashboard for a promise."""
    return {
        "uid": "relay-overview",
        "title": "Relay",
        "description": "Is it up, is it slow, whose fault is it, who is using it.",
        "tags": ["relay"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_reloads()]},
        "templating": {"list": list(_variables())},
        "links": [],
        "panels": list(_laid_out(make_rows(slo))),
    }


def make_rows(slo: Slo) -> tuple[Row, ...]:
    """Return the rows, from what everybody asks to what few do."""
    return (
        traffic.overview(slo),
        traffic.latency(slo),
        traffic.throughput(),
        traffic.errors(slo),
        parts.upstreams(),
        parts.keys(),
        parts.internals(),
    )


def render(slo: Slo) -> str:
    """Return the dashboard as the text of its file."""
    return json.dumps(build(slo), indent=2, ensure_ascii=False) + "\n"


def _reloads() -> Json:
    return {
        "name": "Configuration loaded",
        "datasource": dict(SOURCE),
        "enable": True,
        "iconColor": "blue",
        "expr": f"changes(relay_config_last_reload_success_timestamp_seconds{{{S}}}[$__rate_interval]) > 0",
        "titleFormat": "Configuration loaded",
        "textFormat": "{{instance}}",
        "step": "30s",
    }


def _variables() -> Iterator[Json]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
    }
    yield _variable("job", "Job", "relay_build_info", "")
    yield _variable("instance", "Instance", "relay_build_info", 'job=~"$job"')
    yield _variable("route", "Route", "relay_requests_total", S)
    yield _variable("upstream", "Upstream", "relay_upstream_attempts_total", S)
    yield _variable("key", "Key", "relay_key_requests_total", S)


def _variable(name: str, label: str, metric: str, selector: str) -> Json:
    series = f"{metric}{{{selector}}}" if selector else metric
    query = f"label_values({series}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": dict(SOURCE),
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _laid_out(rows: tuple[Row, ...]) -> Iterator[Json]:
    """Number and place the panels: from left to right, a new line where one does not fit; a collapsed row holds its own."""
    number, y = 0, 0
    for row in rows:
        number += 1
        head: Json = {"id": number, "type": "row", "title": row.title, "collapsed": row.is_collapsed, "panels": []}
        head["gridPos"] = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        y += 1
        placed, x, line = [], 0, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, line = 0, y + line, 0
            number += 1
            placed.append(_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height}))
            x, line = x + panel.width, max(line, panel.height)
        y += line
        if row.is_collapsed:
            head["panels"] = placed
        yield head
        if not row.is_collapsed:
            yield from placed


def _panel(panel: Panel, number: int, place: Json) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "mappings": [*panel.mappings, NO_TRAFFIC],
        "noValue": "No traffic",
        "color": {"mode": "thresholds" if panel.kind in ("stat", "bargauge") or panel.mappings else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": _steps(panel)},
        "custom": _custom(panel),
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.kind == "timeseries":
        defaults["min"] = 0
    if panel.has_ceiling:
        defaults["max"] = 1
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": f"{panel.about} {_named(panel)}",
        "datasource": dict(SOURCE),
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": list(_overrides(panel))},
        "options": {**_options(panel), **panel.options},
        "targets": [_target(query, index) for index, query in enumerate(panel.queries)],
        **_transformed(panel),
    }


def _named(panel: Panel) -> str:
    names = re.findall(r"\b(?:relay_|process_|python_)\w+|\bup\b|\b\w+:[\w:]+", " ".join(query.expr for query in panel.queries))
    unique = list(dict.fromkeys(re.sub(r"_bucket$", "", name) for name in names))
    return f"Metric{'s' if len(unique) > 1 else ''}: {', '.join(f'`{name}`' for name in unique)}"


def _steps(panel: Panel) -> list[Json]:
    steps = panel.steps or ((0.0, "green"),)
    return [{"value": value if index else None, "color": colour} for index, (value, colour) in enumerate(steps)]


def _custom(panel: Panel) -> Json:
    match panel.kind:
        case "timeseries":
            return {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 25 if panel.is_stacked else 5,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
            }
        case "state-timeline":
            return {"fillOpacity": 80, "lineWidth": 0}
        case _:
            return {}


def _overrides(panel: Panel) -> Iterator[Json]:
    """Draw the 95th percentile thick."""
    if panel.kind == "timeseries" and any(query.legend == "p95" for query in panel.queries):
        yield {"matcher": {"id": "byName", "options": "p95"}, "properties": [{"id": "custom.lineWidth", "value": 3}]}
    if panel.kind == "table":
        yield {"matcher": {"id": "byName", "options": "configuration age"}, "properties": [{"id": "unit", "value": "s"}]}


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "stat":
            return {
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "colorMode": "value",
                "graphMode": "area",
                "textMode": "value",
                "justifyMode": "center",
            }
        case "timeseries":
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "heatmap":
            return {
                "calculate": False,
                "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "fill": "dark-blue"},
                "yAxis": {"unit": panel.unit},
                "rowsFrame": {"layout": "le"},
                "tooltip": {"mode": "single", "yHistogram": True},
                "cellGap": 1,
            }
        case "state-timeline":
            return {
                "mergeValues": True,
                "showValue": "never",
                "rowHeight": 0.8,
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            }
        case "bargauge":
            return {
                "orientation": "horizontal",
                "displayMode": "basic",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        case _:
            return {}


def _transformed(panel: Panel) -> Json:
    """Make one line per relay of what a table's queries say."""
    if panel.kind != "table":
        return {}
    hidden = dict.fromkeys(("Time", "__name__", "job", "Value #A", "job 1", "job 2", "__name__ 1"), True)
    return {
        "transformations": [
            {"id": "joinByField", "options": {"byField": "instance", "mode": "outer"}},
            {"id": "organize", "options": {"excludeByName": hidden, "renameByName": {"Value #B": "configuration age"}}},
        ]
    }


def _target(query: Query, index: int) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": dict(SOURCE),
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": query.is_instant,
        "range": not query.is_instant,
        "format": "table" if query.is_table else "heatmap" if query.is_heatmap else "time_series",
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="python -m grafana.build", description="Write the dashboard.")
    parser.add_argument("--config", metavar="FILE", help="configuration whose metrics.slo the thresholds come from")
    parser.add_argument("--output", metavar="FILE", type=Path, default=FILE, help=f"default: {FILE.name}")
    options = parser.parse_args()
    slo = Slo() if options.config is None else load(options.config, os.environ).metrics.slo
    options.output.write_text(render(slo))


if __name__ == "__main__":
    main()
