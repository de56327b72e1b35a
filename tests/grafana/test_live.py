"""A real Prometheus scrapes a relay under some of everything: every query of the board and of the rules finds data."""

import asyncio
import contextlib
import http.client
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, Final

import pytest
import yaml

from grafana.build import FILE
from grafana.flaky import FlakyUpstream
from grafana.load import Worker, run_load
from relay.config.tree import Slo
from relay.exchange import Outcome
from relay.telemetry.rules import make_rules, to_yaml
from tests.conftest import RelayWith
from tests.fakes.collector import running_collector
from tests.fakes.upstream import ScriptedUpstream
from tests.grafana.expressions import panels, selectors, substituted
from tests.grafana.rare import bring_about, of_crew, with_rare
from tests.servers import ROOT, Prometheus, running_prometheus

KEYS: Final = ("sk-demo-alice", "sk-demo-bob")
LOAD_SECONDS: Final = 12.0
"""Long enough to meet an outage of five seconds in fifteen, whenever the load begins."""
WORKERS: Final = 8
EVALUATION_SECONDS: Final = 1.0
"""Between two evaluations of the rules."""
INTERVAL: Final = "30s"
"""For `$__rate_interval` and `$__range`: the whole test."""
OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)
BOARD: Final[dict[str, Any]] = json.loads(FILE.read_text())
TARGETS: Final = [(panel["title"], target["expr"]) for panel in panels(BOARD) for target in panel["targets"]]
RULES: Final = [rule for group in make_rules(Slo())["groups"] for rule in group["rules"]]
NOUGHT: Final = frozenset({"Relays not reached", "Should be nothing"})
"""Panels of which the best that can be said is 0."""
SHOWING: Final = [expression for title, expression in TARGETS if title not in NOUGHT]
of_target = pytest.mark.parametrize(
    "expression", [expression for _, expression in TARGETS], ids=[f"{title}-{number}" for number, (title, _) in enumerate(TARGETS)]
)


@contextmanager
def flaky_upstream() -> Iterator[str]:
    """Run the upstream with faults, out of service from the fifth second to the tenth; yields its address."""
    server = FlakyUpstream("127.0.0.1", 0, period=15, outage=5)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
async def prometheus(
    shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Prometheus]:
    """A Prometheus that has watched a relay under load and one with workers, asked when the load is over."""
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text()) | {"metrics": {}}
    folder = tmp_path_factory.mktemp("prometheus")
    config["keys"]["bob"]["limits"]["rpm"] = 20  # so few that the load meets it
    config["routes"]["hedged"]["hedge"]["at_most"] = "50%"  # a share of so few requests is none
    with flaky_upstream() as url, running_collector() as collector:
        config["tracing"] = {"otlp": collector.url}
        env = {"LOAD_URL": url}
        relay = await shared_relay_with(with_rare(config, shared_upstream), env=env, module="tests.fakes.buggy", is_quiet=False)
        crew = await shared_relay_with(of_crew(shared_upstream))
        rules = to_yaml(make_rules(Slo()), "rules").replace("interval: 30s", "interval: 1s")
        with running_prometheus(folder, [f"127.0.0.1:{each.port}" for each in (relay, crew)], rules=rules) as server:
            await asyncio.to_thread(server.wait_for, 'sum(up{job="relay"}) == 2')
            until = time.monotonic() + LOAD_SECONDS
            loading = asyncio.to_thread(
                run_load, f"http://127.0.0.1:{relay.port}", KEYS, workers=WORKERS, is_over=lambda: time.monotonic() > until, pause=0.05
            )
            work = asyncio.gather(loading, *(asyncio.to_thread(insist, relay.port, until) for _ in range(2)))
            await asyncio.sleep(LOAD_SECONDS / 2)  # a reload in the middle of it all
            relay.process.send_signal(signal.SIGHUP)
            await bring_about(relay, crew)
            await work
            await relay.settled(within=10)
            await crew.settled(within=10)
            await asyncio.to_thread(seen_all_outcomes, server)
            await asyncio.sleep(2 * EVALUATION_SECONDS)
            server.moment = time.time()  # however long the tests take
            yield server


def insist(port: int, until: float) -> None:
    """Ask so often that what takes several requests comes about in the short time: a target that rests, a hedge."""
    worker = Worker(f"http://127.0.0.1:{port}", KEYS[0], random.Random(1))
    while time.monotonic() < until:
        with contextlib.suppress(OSError, http.client.HTTPException):  # a stream that was cut, as it should be
            worker.ask("chat", "hello")
            worker.ask("hedged", "hello", max_tokens=4)


def seen_all_outcomes(server: Prometheus) -> None:
    """Wait until the last of what happened has been scraped."""
    deadline = time.monotonic() + 5
    missing: set[str] = set(OUTCOMES)
    while missing and time.monotonic() < deadline:
        found = {sample["metric"]["outcome"] for sample in server.query("relay_requests_total > 0")}
        missing = set(OUTCOMES) - found
        time.sleep(0.2)
    assert not missing, f"the load did not bring about {missing}"


async def test_every_outcome_there_is_was_brought_about(prometheus: Prometheus) -> None:
    found = {
        sample["metric"]["outcome"]: float(sample["value"][1]) for sample in prometheus.query("sum by (outcome) (relay_requests_total)")
    }
    assert set(found) == OUTCOMES
    assert min(found.values()) > 0, found


async def test_prometheus_reaches_the_relays(prometheus: Prometheus) -> None:
    assert [sample["value"][1] for sample in prometheus.query('up{job="relay"}')] == ["1", "1"]


@of_target
async def test_query_of_a_panel_finds_data(expression: str, prometheus: Prometheus) -> None:
    found = prometheus.query(substituted(expression, interval=INTERVAL, span=INTERVAL))
    assert found
    assert any(sample["value"][1] != "NaN" for sample in found), found


@pytest.mark.parametrize(
    "expression", SHOWING, ids=[f"{title}-{number}" for number, (title, _) in enumerate(TARGETS) if title not in NOUGHT]
)
async def test_panel_has_something_to_show(expression: str, prometheus: Prometheus) -> None:
    """Data alone may be all zeros, from series that stand there from the start."""
    at_any_time = f"max_over_time(({substituted(expression, interval=INTERVAL, span=INTERVAL)})[{INTERVAL}:1s])"
    assert any(float(sample["value"][1]) > 0 for sample in prometheus.query(at_any_time))


async def test_exemplars_lead_from_a_panel_to_traces(prometheus: Prometheus) -> None:
    (targets,) = (panel["targets"] for panel in panels(BOARD) if panel["title"] == "TTFT heatmap")
    expression = substituted(targets[0]["expr"], interval=INTERVAL, span=INTERVAL)
    found = prometheus.exemplars(expression, time.time() - 3600, time.time() + 60)
    traces = [exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]]
    assert traces and all(len(trace) == 32 for trace in traces)


async def test_the_reload_is_marked(prometheus: Prometheus) -> None:
    (annotation,) = BOARD["annotations"]["list"]
    assert prometheus.query(substituted(annotation["expr"], interval=INTERVAL, span=INTERVAL))


async def test_variables_find_their_values(prometheus: Prometheus) -> None:
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, _, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
            found = {sample["metric"].get(label) for sample in prometheus.query(substituted(series, interval=INTERVAL, span=INTERVAL))}
            assert found - {None}, variable["name"]


async def test_every_rule_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert len(rules) == len(RULES)
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record", rule.get("alert")))
async def test_rule_has_data_to_judge(rule: dict[str, Any], prometheus: Prometheus) -> None:
    if "record" in rule:
        assert prometheus.query(rule["record"])
    for selector in selectors(rule["expr"]):
        matchers = ", ".join(f'{label}=~"{value}"' for label, value in selector.labels.items() if "!" not in rule["expr"])
        assert prometheus.query(f"{selector.metric}{{{matchers}}}"), selector


async def test_failures_of_the_load_use_up_the_budget(prometheus: Prometheus) -> None:
    (fast,) = prometheus.query('route:relay_requests_bad:ratio_rate5m{route="fast"}')
    assert 0 < float(fast["value"][1]) < 1
    assert prometheus.query('ALERTS{alertname="RelayErrorBudgetBurnFast", route="fast"}')
