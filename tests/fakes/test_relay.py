"""The test bed's hold on a running relay: metrics, log, rest, end; and failures that are told with the relay's own words."""

from pathlib import Path

import pytest

from tests.conftest import RelayWith
from tests.fakes import events, scripts
from tests.fakes.relay import Metrics, RelayProcess, config_for
from tests.fakes.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
DEMO = {"upstreams": {"demo": {"kind": "demo"}}, "routes": {"*": "demo/*"}}
EXPOSITION = """# TYPE relay_requests_total counter
relay_requests_total{route="a",outcome="complete"} 2.0
relay_requests_total{route="b",outcome="complete"} 3.0
# TYPE relay_requests_in_flight gauge
relay_requests_in_flight{route="a"} 0.0
"""


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    return await shared_relay_with(config_for(shared_upstream))


@pytest.fixture(scope="module")
async def demo(shared_relay_with: RelayWith) -> RelayProcess:
    return await shared_relay_with(DEMO)


def test_metrics_are_asked_by_name_and_labels() -> None:
    metrics = Metrics.parse(EXPOSITION)
    assert metrics.value("relay_requests_total", route="a") == 2
    assert metrics.value("relay_requests_total", route="none") == 0
    assert metrics.sum("relay_requests_total") == 5
    assert metrics.has("relay_requests_in_flight")
    assert not metrics.nonzero("relay_requests_in_flight")
    assert metrics.since(metrics).sum("relay_requests_total") == 0
    with pytest.raises(LookupError):
        metrics.value("relay_requests_total", outcome="complete")


def test_counters_that_went_back_or_are_gone_are_seen() -> None:
    before = Metrics.parse(EXPOSITION)
    after = Metrics.parse(
        EXPOSITION.replace('route="a",outcome="complete"} 2.0', 'route="a",outcome="complete"} 1.0').replace('"b"', '"c"')
    )
    assert len(after.sunk_since(before)) == 2
    (sunk,) = after.sunk_since(before, may_go=True)
    assert sunk.endswith("2.0 -> 1.0")
    assert before.sunk_since(before) == []


async def test_one_exchange_is_one_count_and_one_line(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("one", scripts.sse(events.chat_stream("Hello", usage=(3, 1))))
    before = await relay.metrics()
    answer = await relay.post(CHAT, {"model": "one", "stream": True, "messages": []})
    assert (answer.status, answer.end, answer.has_done) == (200, "complete", True)
    added = (await relay.settled()).since(before)
    assert added.value("relay_requests_total", outcome="complete", stream="true") == 1
    (line,) = await relay.wait_log(model="one")
    assert line["outcome"] == "complete"
    await relay.assert_identities()


async def test_cut_upstream_reaches_the_client_as_a_cut(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("cut", scripts.sse([events.role(), events.content("Hello")], end="fin"))
    answer = await relay.post(CHAT, {"model": "cut", "stream": True, "messages": []})
    assert (answer.end, answer.has_done) == ("cut", False)
    (line,) = await relay.wait_log(model="cut")
    assert line["outcome"] == "upstream_cut"
    await relay.assert_identities()


async def test_relay_that_cannot_start_fails_with_its_own_words(tmp_path: Path) -> None:
    relay = RelayProcess({"upstreams": {"x": {"kind": "nonsense"}}, "routes": {}}, tmp_path)
    with pytest.raises(AssertionError, match="nonsense"):
        await relay.start()
    assert not relay.is_alive


async def test_relay_stops_with_exit_code_zero(tmp_path: Path) -> None:
    relay = await RelayProcess(DEMO, tmp_path).start()
    pid = relay.pid
    await relay.stop()
    assert not relay.is_alive
    assert pid > 0


@pytest.mark.parametrize(
    ("prompt", "status", "end", "outcome"),
    [
        ("say: hi", 200, "complete", "complete"),
        ("cut after 2", 200, "cut", "upstream_cut"),
        ("error after 2", 200, "complete", "upstream_error"),
        ("error after 0", 500, "complete", "upstream_failed"),
        ("fail: 429", 429, "complete", "upstream_failed"),
        ("fail: 400", 400, "complete", "rejected"),
    ],
)
async def test_demo_faults_take_the_ordinary_way(demo: RelayProcess, prompt: str, status: int, end: str, outcome: str) -> None:
    known = len(demo.logs("request"))
    answer = await demo.post(CHAT, {"model": "demo-fast", "stream": True, "messages": [{"role": "user", "content": prompt}]})
    assert (answer.status, answer.end) == (
        status,
        end,
    )  # an error event is passed on with the upstream's own end: a clean one, but no [DONE]
    assert answer.has_done == (outcome == "complete")
    lines = await demo.wait_log(count=known + 1)
    assert lines[-1]["outcome"] == outcome
    await demo.assert_identities()


async def test_demo_models_are_listed_through_the_relay(demo: RelayProcess) -> None:
    listed = (await demo.get("/v1/models")).json()["data"]
    assert isinstance(listed, list)
    assert {"demo", "demo-fast", "demo-reasoner"} <= {model["id"].rpartition("/")[2] for model in listed}
