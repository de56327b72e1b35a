"""Rules that a dashboard must keep to work on anybody's Grafana: variables, units, rates, places, and names that exist."""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from grafana.build import FILE, build, render
from relay.config.tree import Slo
from relay.telemetry.rules import make_rules
from tests.grafana.expressions import FAMILIES, FOREIGN, OF_PROMETHEUS, Selector, grouped_by, panels, selectors, substituted
from tests.servers import find_program

BOARD: Final[dict[str, Any]] = json.loads(FILE.read_text())
PANELS: Final = list(panels(BOARD))
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
VARIABLES: Final = {each["name"]: each for each in BOARD["templating"]["list"]}
TARGETS: Final = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
EXPRESSIONS: Final = [expression for _, expression in TARGETS]
LONG_WINDOWS: Final = {"$__range", "1h"}
"""Windows of numbers about the whole range, or of a fixed one that the title names."""
RECORDED: Final = {rule["record"] for group in make_rules(Slo())["groups"] for rule in group["rules"] if "record" in rule}

of_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
of_target = pytest.mark.parametrize("expression", EXPRESSIONS, ids=[f"{title}-{number}" for number, (title, _) in enumerate(TARGETS)])


def test_committed_board_is_the_generated_one() -> None:
    assert FILE.read_text() == render(Slo())


def test_the_promise_moves_the_thresholds() -> None:
    text = json.dumps(build(Slo(ttft=0.75, availability=0.999)))
    assert '"value": 0.75, "color": "orange"' in text
    assert "/ (0.001 * sum(increase(" in text


def test_board_is_found_and_cannot_be_edited() -> None:
    assert (BOARD["uid"], BOARD["tags"], BOARD["refresh"], BOARD["graphTooltip"]) == ("relay-overview", ["relay"], "30s", 1)
    assert BOARD["editable"] is False
    assert BOARD["time"] == {"from": "now-1h", "to": "now"}
    assert 39 <= BOARD["schemaVersion"] <= 41


def test_the_data_source_is_a_variable() -> None:
    source = VARIABLES["datasource"]
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")


@pytest.mark.parametrize("name", ["job", "instance", "route", "upstream", "key"])
def test_variables_follow_the_time_range_and_offer_all(name: str) -> None:
    variable = VARIABLES[name]
    assert (variable["type"], variable["label"], variable["datasource"]) == ("query", name.capitalize(), SOURCE)
    assert (variable["multi"], variable["includeAll"], variable["allValue"], variable["refresh"]) == (True, True, ".+", 2)
    query = variable["query"]["query"]
    assert query.startswith("label_values(relay_") and query.endswith(f", {name})")
    metric = query.removeprefix("label_values(").partition("{")[0].partition(",")[0]
    assert name in {*FAMILIES[metric].labels, "job", "instance"}


@of_panel
def test_panel_says_what_it_is(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].count("Metric") == 1 and panel["description"].endswith("`")
    assert panel["datasource"] == SOURCE
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"], "a panel without a query"
    assert all(target["datasource"] == SOURCE for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_titles_are_unique() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_ids_are_unique_and_panels_do_not_overlap() -> None:
    everything = [*BOARD["panels"], *(inner for panel in BOARD["panels"] for inner in panel.get("panels", []))]
    ids = [panel["id"] for panel in everything]
    assert len(set(ids)) == len(ids)
    shown = [panel["gridPos"] for panel in everything]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 for place in shown)
    for one, other in itertools.combinations(shown, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_below, (one, other)


def test_rows_of_detail_are_folded() -> None:
    rows = [panel for panel in BOARD["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows if row["collapsed"]] == [rows[-2]["title"], rows[-1]["title"]]
    assert all(bool(row["panels"]) == row["collapsed"] for row in rows)


def test_promtool_reads_every_expression(tmp_path: Path) -> None:
    annotations = [each["expr"] for each in BOARD["annotations"]["list"]]
    rules = [
        {"record": f"expression:{number}", "expr": substituted(expression, interval="5m", span="1h")}
        for number, expression in enumerate([*EXPRESSIONS, *annotations])
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    done = subprocess.run(
        [find_program("promtool"), "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@of_target
def test_expression_asks_for_what_exists_on_the_chosen_relays(expression: str) -> None:
    found = list(selectors(expression))
    assert found
    for selector in found:
        if selector.is_recorded:
            assert selector.metric in RECORDED
            assert selector.labels == {"route": "$route"}
            continue
        assert selector.labels["job"] == "$job"
        assert selector.labels["instance"] == "$instance"
        family = FAMILIES.get(selector.family)
        assert family is not None or selector.metric in FOREIGN, selector.metric
        own = set() if family is None else set(family.labels)
        assert set(selector.labels) <= own | OF_PROMETHEUS, selector
        for name in ("route", "upstream", "key"):
            if name in own and name in VARIABLES:
                assert name not in selector.labels or selector.labels[name] == f"${name}"
    labels = {label for selector in found if selector.family in FAMILIES for label in FAMILIES[selector.family].labels}
    assert grouped_by(expression) <= labels | OF_PROMETHEUS | {"route"}


@of_target
def test_counters_are_rated_over_the_panels_own_interval(expression: str) -> None:
    for selector in selectors(expression):
        if is_counter(selector):
            assert selector.function in ("rate", "increase"), selector
        if selector.window is not None:
            assert selector.window == "$__rate_interval" or (selector.function == "increase" and selector.window in LONG_WINDOWS), selector


def is_counter(selector: Selector) -> bool:
    return selector.metric.endswith(("_total", "_bucket", "_count", "_sum"))


def test_compose_brings_together_what_is_there() -> None:
    root = FILE.parents[2]
    services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    assert {name for name, service in services.items() if service.get("profiles")} == {"load", "redis"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.replace("${RELAY_CONFIG:-./config/demo.yaml}", "./config/demo.yaml").partition(":")[0]
            assert not source.startswith(".") or (root / source).exists(), source  # else the name of a volume
    mounted = services["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider_path(root)}:ro" in mounted
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{provider_path(root)}/{FILE.name}"


def provider_path(root: Path) -> str:
    text = (root / "grafana/provisioning/dashboards/relay.yaml").read_text()
    path = yaml.safe_load(text)["providers"][0]["options"]["path"]
    assert isinstance(path, str)
    return path


def test_promtool_reads_the_configuration_of_prometheus() -> None:
    command = [find_program("promtool"), "check", "config", "config/prometheus.yml"]
    done = subprocess.run(command, cwd=FILE.parents[2], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_provisioning_finds_the_board_and_the_source() -> None:
    folder = FILE.parent.parent / "provisioning"
    source = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"][0]
    assert (source["uid"], source["type"], source["url"]) == ("prometheus", "prometheus", "$PROMETHEUS_URL")
    provider = yaml.safe_load((folder / "dashboards/relay.yaml").read_text())["providers"][0]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    assert provider["options"]["foldersFromFilesStructure"] is False
