"""The rules of `relay rules`, judged by promtool: they are valid, they fire when they should and only then."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.cli import main
from relay.config.tree import Slo
from relay.telemetry import families
from relay.telemetry.rule_tests import make_rule_tests
from relay.telemetry.rules import make_rules, to_yaml
from tests.servers import find_program

ROOT = Path(__file__).parents[2]
SLOS = [Slo(), Slo(ttft=0.75, availability=0.95), Slo(ttft=4.0, availability=0.99999)]


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def write(folder: Path, slo: Slo, rules: str | None = None) -> None:
    (folder / "alerts.yml").write_text(rules or to_yaml(make_rules(slo), "rules"))
    (folder / "alerts.test.yml").write_text(to_yaml(make_rule_tests(slo, "alerts.yml"), "cases"))


def all_rules(slo: Slo) -> list[dict[str, Any]]:
    return [rule for group in make_rules(slo)["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("slo", SLOS, ids=lambda slo: f"{slo.availability}")
def test_promtool_accepts_the_rules_and_their_cases_hold(slo: Slo, tmp_path: Path) -> None:
    write(tmp_path, slo)
    checked = promtool(tmp_path, "check", "rules", "alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(all_rules(slo))} rules found" in checked.stdout
    tested = promtool(tmp_path, "test", "rules", "alerts.test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("14.4 * 0.005", "0.1 * 0.005"),
        ("> 6 * 0.005", "> 60 * 0.005"),
        ('{le="2.0"}', '{le="3.0"}'),
        ("complete|overloaded", "complete|rate_limited|overloaded"),
        ("rate5m > 0.02", "rate5m > 0"),
        ('state="cooling"', 'state="healthy"'),
    ],
)
def test_cases_fail_when_a_rule_is_wrong(right: str, wrong: str, tmp_path: Path) -> None:
    rules = to_yaml(make_rules(Slo()), "rules")
    assert right in rules
    write(tmp_path, Slo(), rules.replace(right, wrong))
    assert promtool(tmp_path, "test", "rules", "alerts.test.yml").returncode != 0


@pytest.mark.parametrize(("file", "flags"), [("alerts.yml", ()), ("alerts.yml", ("--alerts",)), ("alerts.test.yml", ("--tests",))])
def test_committed_files_are_what_the_command_prints(
    file: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["rules", *flags]) == 0
    assert capsys.readouterr().out == (ROOT / "config" / file).read_text()


def test_the_command_reads_the_promise_from_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(
        "upstreams: {mine: {kind: demo}}\nroutes: {a: mine/x}\nmetrics: {slo: {ttft: 750ms, availability: 99.9%}}\n",
    )
    assert main(["rules", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed) == make_rules(Slo(ttft=0.75, availability=0.999))
    assert 'le="0.75"' in printed
    assert "14.4 * 0.001)" in printed


def test_rules_ask_only_for_metrics_and_labels_that_exist() -> None:
    known = {each.name: set(each.labels) for each in vars(families).values() if isinstance(each, families.Family)}
    recorded = {rule["record"] for rule in all_rules(Slo()) if "record" in rule}
    for rule in all_rules(Slo()):
        text = re.sub(r"route(_upstream)?:[\w:]+|upstream:[\w:]+", lambda name: "" if name[0] in recorded else name[0], rule["expr"])
        for name, matchers in re.findall(r"\b(relay_\w+)(?:\{([^}]*)\})?", text):
            family = re.sub(r"_(bucket|count|sum)$", "", name)
            assert family in known, name
            assert set(re.findall(r"(\w+)(?:=|!)", matchers)) <= known[family] | {"le"}, rule["expr"]


def test_every_alert_has_a_page_in_the_runbook() -> None:
    runbook = (ROOT / "docs/runbook.md").read_text()
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", runbook, flags=re.M)}
    alerts = [rule for rule in all_rules(Slo()) if "alert" in rule]
    assert alerts
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert page == "docs/runbook.md"
        assert anchor in anchors, alert["alert"]
        assert f"`{alert['alert']}`" in runbook, alert["alert"]
