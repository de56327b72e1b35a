"""The bench's own arithmetic and its two ends, on canned readings and on loopback; no figure is judged here."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command
from bench import limits, load, proxies, script, table, upstream
from bench.proxies import TWICE, Upstream
from bench.scenarios import SCENARIOS, runs_for
from relay.config import load as read_config
from tests.fakes.certificates import Authority
from tests.servers import find_program

_QUANTILES = {"count": 100, "p50_ms": 0.5, "p90_ms": 0.8, "p99_ms": 1.0}


def _reading(**changed: Any) -> dict[str, Any]:
    plain = {
        "probe_seconds": 0.001,
        "seconds": 1.0,
        "cpu_seconds": 0.04,
        "events": 4000,
        "requests": 1000,
        "errors": 0,
        "first_errors": [],
        "ttft": _QUANTILES,
        "delay": _QUANTILES,
        "rest_bytes": 50_000_000,
        "stream_bytes": 12_288.0,
    }
    return {**plain, **changed}


def _sparse(relay: float, nginx: float) -> dict[str, Any]:
    """Readings of one round of the sparse run, given microseconds per event."""
    return {"stream-sparse": {"relay": [_reading(cpu_seconds=relay * 0.004)], "nginx": [_reading(cpu_seconds=nginx * 0.004)]}}


def _row(text: str, label: str) -> list[str]:
    return next([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if label in line)


@pytest.mark.parametrize(("relay", "word"), [(14.0, "aim"), (17.0, "reached"), (17.1, "missed")])
def test_a_ratio_is_judged_by_its_bounds(relay: float, word: str) -> None:
    row = _row(table.render(_sparse(relay, 10.0), ["stream-sparse"]), "40 streams")
    assert (row[3], row[6], row[7]) == (f"{relay:.1f} us", "10.0 us", word)
    assert float(row[4]) == pytest.approx(relay / 10, abs=0.01)


def test_without_nginx_a_ratio_is_not_compared() -> None:
    readings = _sparse(14.0, 10.0)
    del readings["stream-sparse"]["nginx"]
    row = _row(table.render(readings, ["stream-sparse"]), "40 streams")
    assert (row[4], row[6], row[7]) == ("not compared", "not compared", "not compared")


def test_workers_are_compared_round_by_round() -> None:
    one, two = [_reading(cpu_seconds=cost) for cost in (0.04, 0.08, 0.04)], [_reading(cpu_seconds=cost) for cost in (0.041, 0.082, 0.06)]
    row = _row(table.render({"workers": {"relay": one, TWICE: two}}, ["workers"]), "with that one's load")
    assert (row[3], row[7]) == ("1.02 x", "reached")


def test_workers_that_share_one_processs_load_are_told_and_not_judged() -> None:
    text = table.render({"workers": {"relay": [_reading()], "workers": [_reading(cpu_seconds=0.06)]}}, ["workers"])
    row, judged = _row(text, "the same load in all"), _row(text, "with that one's load")
    assert (row[3], row[7]) == ("1.50 x", "told")
    assert judged[7] == "not measured"


def test_workers_are_told_with_the_events_that_a_wake_up_served() -> None:
    readings = {"workers": {"relay": [_reading(wake_ups=1000)], "workers": [_reading(wake_ups=2000)], TWICE: [_reading()]}}
    (line,) = table.events_per_wake_up(readings)
    assert line.endswith("in one process 4.0, in two workers with its load between them 2.0")
    assert table.events_per_wake_up({"json": {"relay": [_reading(wake_ups=1000)]}}) == []


def test_only_the_run_of_workers_has_them() -> None:
    runs = runs_for(list(SCENARIOS))
    assert all([run.name for run in runs if run.is_for(name)] == ["workers"] for name in ("workers", TWICE))
    assert not any(run.is_for("nginx") for run in runs if run.name == "workers")
    assert [run.name for run in runs if run.is_for("full") or run.is_for("bare")] == ["everything"]


def test_everything_on_is_compared_with_everything_off() -> None:
    full, bare = [_reading(cpu_seconds=cost) for cost in (0.044, 0.05, 0.044)], [_reading(cpu_seconds=cost) for cost in (0.04, 0.05, 0.04)]
    row = _row(table.render({"everything": {"full": full, "bare": bare}}, ["everything"]), "everything on")
    assert (row[3], row[7]) == ("1.10 x", "reached")


@pytest.mark.parametrize("name", ["relay", "workers", "full", "bare"])
def test_every_relay_of_the_bench_has_a_configuration_that_can_be_read(name: str, tmp_path: Path, authority: Authority) -> None:
    recipe = proxies.recipe_of(name, tmp_path, Upstream(plain_port=1, secure_port=2, ca_file=str(authority.file)))
    assert recipe is not None
    config = read_config(recipe.argv[-1], {})
    assert config.asks_for_key is (name != "bare")


def test_without_the_relay_nothing_is_judged() -> None:
    text = table.render({}, SCENARIOS)
    assert all(row.rstrip(" |").endswith("not measured") for row in text.splitlines()[2:])


def test_a_figure_is_the_median_of_its_rounds() -> None:
    rounds = [_reading(cpu_seconds=cost * 0.004) for cost in (9.0, 10.0, 30.0)]
    row = _row(table.render({"stream-sparse": {"relay": rounds}}, ["stream-sparse"]), "40 streams")
    assert row[3] == "10.0 us"


def test_a_bounded_ratio_pairs_the_turns_of_a_round() -> None:
    costs = {"relay": (10.0, 20.0, 20.0), "nginx": (10.0, 10.0, 20.0)}
    readings = {"stream-sparse": {name: [_reading(cpu_seconds=cost * 0.004) for cost in of_name] for name, of_name in costs.items()}}
    assert table.ratio(table.FIGURES[0], readings) == pytest.approx(1.0)


def test_a_void_round_counts_for_nothing_and_is_told() -> None:
    void = {"errors": 1, "first_errors": ["no answer"], "is_void": True}
    readings = {"stream-sparse": {"relay": [void, _reading()]}}
    assert _row(table.render(readings, ["stream-sparse"]), "40 streams")[3] == "10.0 us"
    assert table.doubts(readings, {}) == ["stream-sparse, relay: 1 failed; the first: no answer"]


def test_the_table_has_a_row_for_every_figure_of_the_chosen_scenarios() -> None:
    assert len(table.render({}, SCENARIOS).splitlines()) == 2 + len(table.FIGURES)
    assert len(table.render({}, ["ttft", "memory"]).splitlines()) == 2 + 4
    assert {figure.scenario for figure in table.FIGURES} == set(SCENARIOS)


def test_every_row_of_the_table_has_the_same_cells() -> None:
    lines = table.render(_sparse(14.0, 10.0), SCENARIOS).splitlines()
    assert {line.count("|") for line in lines} == {9}


def test_delays_and_tls_are_what_is_added() -> None:
    slow = {**_QUANTILES, "p99_ms": 1.25}
    readings = {
        "stream-sparse": {"relay": [_reading(delay=slow)], "direct": [_reading()]},
        "stream-tls": {"relay": [_reading(cpu_seconds=0.08)]},
    }
    text = table.render(readings, ["event-delay", "stream-tls"])
    assert _row(text, "delay per event")[3] == "0.25 ms"
    assert _row(text, "TLS adds")[3] == "10.0 us"


def test_a_load_that_fell_behind_is_told() -> None:
    readings = {"stream-dense": {"relay": [_reading(events=9000)]}}
    assert table.doubts(readings, {"stream-dense": 15000.0}) == ["stream-dense, relay: 9000 events/s of 15000 asked for"]


def test_twice_the_load_has_to_keep_twice_the_pace() -> None:
    readings = {"workers": {TWICE: [_reading(events=5000, load=2)]}}
    assert table.doubts(readings, {"workers": 4000.0}) == [f"workers, {TWICE}: 5000 events/s of 8000 asked for"]


def test_a_core_that_changed_its_speed_is_told_and_taken_out_of_the_ratio() -> None:
    readings = _sparse(20.0, 10.0)
    readings["stream-sparse"]["relay"][0]["probe_seconds"] = 0.002
    speed, ratio = table.core_speed(readings)
    assert "1.0 to 2.0 ms" in speed
    assert "1.00 x nginx" in ratio
    assert table.core_speed(_sparse(20.0, 10.0)) == []


def test_other_work_on_the_machine_is_told() -> None:
    readings = {"json": {"relay": [_reading(others_share=0.05), _reading(others_share=0.6)]}}
    assert table.company(readings)[0].startswith("other processes took up to 60% of a core, more than 10% in 1 of 2 turns")
    assert table.company({"json": {"relay": [_reading(others_share=0.05)]}}) == []


def test_a_derived_scenario_brings_the_run_it_is_derived_from() -> None:
    assert [run.name for run in runs_for(["event-delay"])] == ["stream-sparse"]
    assert [run.name for run in runs_for(["stream-tls", "json"])] == ["stream-sparse", "stream-tls", "json"]


@pytest.mark.parametrize("argv", [["--only", "nothing"], ["--proxies", "squid"]])
def test_an_unknown_name_is_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(argv)
    assert end.value.code == 2
    assert f"unknown: {argv[1]}" in capsys.readouterr().err


@pytest.mark.parametrize("secure", [False, True])
def test_a_model_name_says_the_script(secure: bool) -> None:
    wanted = script.Script(events=7, interval_us=900, event_bytes=300)
    assert script.parse_name(wanted.name(secure=secure)) == wanted
    assert script.parse_name(script.JSON_MODEL) is None


@pytest.mark.parametrize("size", [250, 400, 1000])
def test_a_content_event_has_the_size_asked_for_and_is_legal(size: int) -> None:
    before, after = upstream.event_parts(size)
    length, _, rest = (before + b"0" * script.CLOCK_DIGITS + after).partition(b"\r\n")
    event = rest.removesuffix(b"\r\n")
    assert int(length, 16) == len(event) == size
    assert script.MARK in event
    assert json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"]["content"].startswith("@")


@pytest.mark.parametrize("size", [1000, 2**20])
def test_a_request_body_has_about_the_size_asked_for(size: int) -> None:
    spec = load.Spec(port=1, key="k", model="s-1-1-250", pattern="closed", connections=1, body_bytes=size)
    head, _, body = load.request_bytes(spec).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert abs(len(body) - size) < 60
    assert json.loads(body)["stream"] is True


def test_quantiles_of_no_samples_are_absent() -> None:
    assert load.quantiles([]) == {"count": 0}
    assert load.quantiles([10**6] * 99 + [10**9]) == {"count": 100, "p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1000.0}


@pytest.mark.parametrize("model", ["s-3-1000-250", script.JSON_MODEL])
async def test_load_and_upstream_agree_on_every_answer(model: str, tmp_path: Path) -> None:
    loop, tables = asyncio.get_running_loop(), upstream.Timetables()
    server = await loop.create_server(lambda: upstream.Peer(loop, tables, upstream.Faults(tmp_path / "losers")), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    generator = load.Generator(load.Spec(port=port, key="k", model=model, pattern="closed", connections=3, ramp_seconds=0.01), loop)
    await generator.start()
    async with asyncio.timeout(5):
        while generator.tally.requests < 20:
            await asyncio.sleep(0)
    report = generator.stop()
    server.close()
    await server.wait_closed()
    assert (report["errors"], report["first_errors"]) == (0, [])
    assert generator.tally.events >= generator.expected * generator.tally.requests
    assert report["ttft"]["count"] == 0 if model == script.JSON_MODEL else report["ttft"]["count"] >= 20


@pytest.mark.parametrize("cut", range(1, 60))
async def test_an_event_is_counted_once_however_it_is_cut(cut: int) -> None:
    spec = load.Spec(port=1, key="k", model="s-2-1-250", pattern="open", connections=1)
    generator = load.Generator(spec, asyncio.get_running_loop())
    caller = load.Caller(generator)
    caller.connection_made(_Deaf())
    caller.ask()
    before, after = upstream.event_parts(250)
    event = before + b"1".zfill(script.CLOCK_DIGITS) + after
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + event * 2 + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    for start in range(0, len(answer), cut):
        caller.data_received(answer[start : start + cut])
    assert (generator.tally.events, generator.tally.requests, generator.tally.shown) == (2, 1, [])


class _Deaf(asyncio.Transport):
    """A transport that takes everything and sends nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop it."""


STORES = [("one process", "15 us"), ("host", "40 us"), ("Redis", "150 us")]


def limit_rows(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.setattr(limits, "_REQUESTS", 20)
    monkeypatch.setattr(limits, "_ROUNDS", 1)
    return [line.split(" | ") for line in limits.report().splitlines()[2:]]


def test_what_limits_cost_is_told_for_every_store(monkeypatch: pytest.MonkeyPatch) -> None:
    find_program("redis-server")
    rows = limit_rows(monkeypatch)
    assert [(row[1], row[3]) for row in rows] == STORES * 2
    assert all(row[2].endswith(" us") for row in rows)


def test_what_redis_costs_is_not_told_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.shutil, "which", lambda *_, **__: None)
    rows = limit_rows(monkeypatch)
    assert [(row[1], row[3]) for row in rows] == STORES * 2
    assert {row[2] for row in rows if row[1] == "Redis"} == {"not measured: no redis-server"}


def test_every_twentieth_request_stalls_and_the_loser_of_a_backup_is_timed(tmp_path: Path) -> None:
    losers = tmp_path / "losers"
    faults = upstream.Faults(losers)
    loop = asyncio.new_event_loop()
    peers = [upstream.Peer(loop, upstream.Timetables(), faults) for _ in range(script.STALL_AFTER + 40)]
    stalled = [number for number, peer in enumerate(peers) if faults.stalls(peer, b"%d" % number)]
    assert stalled == [script.STALL_AFTER + 19, script.STALL_AFTER + 39]
    faults.backed_up(b"0")
    faults.backed_up(b"%d" % stalled[0])
    for peer in peers:
        faults.left(peer)
    loop.close()
    (milliseconds,) = losers.read_text().split()
    assert float(milliseconds) >= 0
    assert not faults.stalled


def test_every_third_request_is_refused(tmp_path: Path) -> None:
    faults = upstream.Faults(tmp_path / "losers")
    assert [faults.refuses() for _ in range(6)] == [False, False, True] * 2


def test_a_quick_look_leaves_out_what_cannot_be_short() -> None:
    assert {run.name for run in runs_for(["hedging"])} == {"hedging", "no-hedging"}
    assert "hedging" not in command._arguments(["--quick"]).only
    assert command._arguments(["--quick", "--only", "hedging"]).only == ["hedging"]
    assert command._arguments([]).only == list(SCENARIOS)
