"""What is counted: one observation per exchange, closed label sets, and both expositions readable by the library's own parsers."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from msgspec import structs
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay.config.tree import Config, Price
from relay.exchange import AttemptResult, Operation, Outcome, StreamMeter, Usage, summarize
from relay.telemetry import families
from relay.telemetry.families import Family
from relay.telemetry.metrics import Metrics
from relay.telemetry.observations import NO_ROUTE
from tests.telemetry.summaries import ALICE, CONFIG, FAST, MINE, STAR, attempt, ended, head

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FAMILIES = [value for value in vars(families).values() if isinstance(value, Family)]


@pytest.fixture
def metrics() -> Metrics:
    return made()


def made(connections: dict[str, tuple[int, int]] | None = None, dropped: list[int] | None = None) -> Metrics:
    return Metrics(CONFIG, "1.2.3", connections=lambda: connections or {}, dropped=lambda: (dropped or [0])[0])


def samples(metrics: Metrics, accept: str = "") -> Iterator[tuple[str, dict[str, str], float]]:
    body = b"".join(metrics.render(accept)[1])
    parse = parse_openmetrics if accept else parse_text
    for family in parse(body.decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(metrics: Metrics, metric: str, /, **labels: str) -> float:
    return sum(number for name, own, number in samples(metrics) if name == metric and labels.items() <= own.items())


def observe(metrics: Metrics, *args: object, **settings: object) -> None:
    exchange, summary = ended(*args, **settings)  # type: ignore[arg-type]
    metrics.began()
    if exchange.route is not None:
        metrics.routed(exchange)
    metrics.ended(exchange, summary)


def test_a_request_is_counted_once_by_all_that_it_was(metrics: Metrics) -> None:
    observe(metrics, Outcome.COMPLETE, attempt())
    labels = {"operation": "chat", "route": "fast", "stream": "true", "code": "200", "outcome": "complete"}
    assert value(metrics, "relay_requests_total", **labels) == 1
    assert value(metrics, "relay_requests_total") == 1
    assert value(metrics, "relay_request_duration_seconds_count", operation="chat", route="fast", stream="true", result="good") == 1
    assert value(metrics, "relay_request_duration_seconds_sum") == pytest.approx(2.0)
    assert value(metrics, "relay_key_requests_total", key="alice", outcome="complete") == 1
    assert value(metrics, "relay_upstream_attempts_total", route="fast", upstream="mine", result="success") == 1


@pytest.mark.parametrize("outcome", list(Outcome))
def test_each_outcome_is_counted_under_its_name(metrics: Metrics, outcome: Outcome) -> None:
    before = value(metrics, "relay_requests_total", outcome=outcome.value)
    observe(metrics, outcome, status=418)
    assert value(metrics, "relay_requests_total", outcome=outcome.value, code="418") == 1
    assert value(metrics, "relay_requests_total", outcome=outcome.value) == before + 1


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome.COMPLETE, "good"),
        (Outcome.UPSTREAM_CUT, "bad"),
        (Outcome.UPSTREAM_FAILED, "bad"),
        (Outcome.INTERNAL_ERROR, "bad"),
        (Outcome.DRAINED, "bad"),
        (Outcome.CLIENT_GONE, "not_counted"),
        (Outcome.REJECTED, "not_counted"),
        (Outcome.INVALID_REQUEST, "not_counted"),
    ],
)
def test_an_outcome_is_good_bad_or_not_counted(metrics: Metrics, outcome: Outcome, result: str) -> None:
    observe(metrics, outcome)
    assert value(metrics, "relay_request_duration_seconds_count", result=result) == 1


def test_what_ended_before_a_route_was_found_has_no_route(metrics: Metrics) -> None:
    observe(metrics, Outcome.UNAUTHORIZED, status=401, route=None, key=None)
    assert value(metrics, "relay_requests_total", route=NO_ROUTE, code="401", outcome="unauthorized") == 1
    assert value(metrics, "relay_key_requests_total") == 0
    assert value(metrics, "relay_requests_in_flight") == 0


def test_lists_of_models_are_not_counted_but_accounted_for(metrics: Metrics) -> None:
    observe(metrics, Outcome.COMPLETE, operation=Operation.MODELS, route=None)
    assert value(metrics, "relay_requests_total") == 0
    assert metrics.in_flight == 0


def test_what_is_in_flight_is_counted_by_route(metrics: Metrics) -> None:
    first, first_summary = ended(Outcome.COMPLETE)
    second, second_summary = ended(Outcome.COMPLETE, route=STAR, is_stream=False)
    for exchange in (first, second):
        metrics.began()
        metrics.routed(exchange)
    assert metrics.in_flight == 2
    assert value(metrics, "relay_requests_in_flight", route="fast", stream="true") == 1
    assert value(metrics, "relay_requests_in_flight", route="*", stream="false") == 1
    metrics.ended(first, first_summary)
    metrics.ended(second, second_summary)
    assert metrics.in_flight == value(metrics, "relay_requests_in_flight") == 0
    assert value(metrics, "relay_invariant_violations_total") == 0


def test_an_exchange_that_ends_twice_breaks_an_identity_that_is_seen(metrics: Metrics) -> None:
    exchange, summary = ended(Outcome.COMPLETE)
    metrics.began()
    metrics.routed(exchange)
    metrics.ended(exchange, summary)
    metrics.ended(exchange, summary)
    assert value(metrics, "relay_invariant_violations_total", invariant="ended_is_at_most_started") == 1


def test_an_exchange_that_is_served_and_never_began_breaks_an_identity_that_is_seen(metrics: Metrics) -> None:
    ghost, _ = ended(Outcome.COMPLETE)
    metrics.routed(ghost)
    observe(metrics, Outcome.COMPLETE)
    assert value(metrics, "relay_invariant_violations_total", invariant="open_is_in_flight") == 1


def test_times_are_observed_once_per_stream(metrics: Metrics) -> None:
    meter = StreamMeter(first_content_at=10.7, last_content_at=11.7, content_events=11)
    made_attempt = attempt(meter=meter, body_ended_at=11.8)
    exchange, _ = ended(Outcome.COMPLETE, made_attempt)
    exchange.first_content_written_at = 10.8
    exchange.backpressure_seconds = 0.25
    metrics.began()
    metrics.ended(exchange, summarize(exchange, 12.0))
    for name, seconds in (
        ("relay_time_to_first_token_seconds", 0.8),
        ("relay_upstream_time_to_first_token_seconds", 0.5),
        ("relay_inter_token_latency_seconds", 0.1),
    ):
        assert value(metrics, f"{name}_count") == 1, name
        assert value(metrics, f"{name}_sum") == pytest.approx(seconds), name
    for phase, seconds in (("request", 0.1), ("event", 0.1), ("finish", 0.2)):
        assert value(metrics, "relay_overhead_seconds_sum", phase=phase) == pytest.approx(seconds), phase
    assert value(metrics, "relay_client_backpressure_seconds_total", route="fast") == pytest.approx(0.25)
    assert value(metrics, "relay_stream_fidelity_total", mode="exact", why="") == 1


def test_a_fallback_and_a_resend_are_told_apart(metrics: Metrics) -> None:
    first = attempt(result=AttemptResult.HTTP_5XX, head=head(500))
    second = attempt(FAST.targets[1], AttemptResult.STREAM_BROKEN)
    resend = attempt(FAST.targets[1], AttemptResult.SUCCESS, is_resend=True)
    observe(metrics, Outcome.COMPLETE, first, second, resend)
    assert value(metrics, "relay_upstream_attempts_total") == 3
    assert value(metrics, "relay_fallbacks_total") == 1
    assert value(metrics, "relay_fallbacks_total", route="fast", from_upstream="mine", to_upstream="other", reason="http_5xx") == 1
    assert value(metrics, "relay_stale_connection_resends_total", upstream="other") == 1


def test_an_attempt_without_a_result_was_cancelled(metrics: Metrics) -> None:
    observe(metrics, Outcome.CLIENT_GONE, attempt(result=None))
    assert value(metrics, "relay_upstream_attempts_total", result="cancelled") == 1


def test_tokens_are_counted_by_type_and_key(metrics: Metrics) -> None:
    meter = StreamMeter(usage=Usage(input=100, output=50, cached=30, reasoning=20), malformed_events=2)
    observe(metrics, Outcome.COMPLETE, attempt(meter=meter))
    for kind, amount in (("input", 100), ("output", 50), ("cached_input", 30), ("reasoning", 20)):
        assert value(metrics, "relay_tokens_total", route="fast", upstream="mine", type=kind, source="reported") == amount
        assert value(metrics, "relay_key_tokens_total", key="alice", type=kind) == amount
    assert value(metrics, "relay_malformed_events_total", upstream="mine") == 2


def test_every_outcome_and_result_of_a_configured_route_stands_there_from_the_start(metrics: Metrics) -> None:
    found = {(labels["route"], labels["outcome"]) for name, labels, _ in samples(metrics) if name == "relay_requests_total"}
    assert found >= {(route, outcome.value) for route in ("fast", "*", NO_ROUTE) for outcome in Outcome}
    results = {labels["result"] for name, labels, _ in samples(metrics) if name == "relay_upstream_attempts_total"}
    assert results == {result.value for result in AttemptResult}


def test_nothing_of_a_request_becomes_a_label(metrics: Metrics) -> None:
    before = {(name, tuple(labels)) for name, labels, _ in samples(metrics)}
    observe(metrics, Outcome.COMPLETE, attempt(), model="sk-CANARY", path="/v1/sk-CANARY", client_ip="sk-CANARY", id="sk-CANARY")
    body = b"".join(metrics.render("")[1])
    assert b"CANARY" not in body
    for name, labels, _ in samples(metrics):
        if name.startswith("relay_") and name.endswith("_total"):
            assert (name, tuple(labels)) in before or name.removesuffix("_total")


def test_the_labels_are_those_of_the_families(metrics: Metrics) -> None:
    observe(metrics, Outcome.COMPLETE, attempt(meter=StreamMeter(usage=Usage(input=1, output=1))))
    labels_of = {family.name: set(family.labels) for family in FAMILIES}
    for name, labels, _ in samples(metrics):
        if name.startswith("relay_"):
            base = name if name in labels_of else re.sub(r"_(bucket|count|sum)$", "", name)
            assert set(labels) - {"le"} == labels_of[base], name


def test_connections_and_dropped_lines_are_asked_at_each_scrape() -> None:
    connections, dropped = {"mine": (2, 5)}, [3]
    metrics = made(connections, dropped)
    assert value(metrics, "relay_upstream_connections", upstream="mine", state="idle") == 2
    assert value(metrics, "relay_upstream_connections", upstream="mine", state="active") == 3
    assert value(metrics, "relay_log_events_dropped_total") == 3
    dropped[0] = 10
    connections["mine"] = (3, 2)
    assert value(metrics, "relay_log_events_dropped_total") == 10
    assert value(metrics, "relay_upstream_connections", upstream="mine", state="active") == 0


def test_loads_are_told_with_the_time_of_the_last_good_one(metrics: Metrics) -> None:
    metrics.loaded(is_good=True, unix_time=1000.0)
    metrics.loaded(is_good=False, unix_time=2000.0)
    assert value(metrics, "relay_config_last_reload_successful") == 0
    assert value(metrics, "relay_config_last_reload_success_timestamp_seconds") == 1000.0
    assert value(metrics, "relay_build_info", version="1.2.3", commit="unknown") == 1


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_both_expositions_say_the_same_and_can_be_read(metrics: Metrics, accept: str) -> None:
    observe(metrics, Outcome.COMPLETE, attempt(meter=StreamMeter(usage=Usage(input=7, output=1))))
    content_type, _ = metrics.render(accept)
    assert content_type.startswith(b"application/openmetrics-text" if accept else b"text/plain")
    found = {(name, tuple(sorted(labels.items()))): number for name, labels, number in samples(metrics, accept)}
    labels = (("route", "fast"), ("source", "reported"), ("type", "input"), ("upstream", "mine"))
    assert found["relay_tokens_total", labels] == 7
    assert not any(name.endswith("_created") for name, _ in found)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_is_named_and_explained_by_the_rules(family: Family) -> None:
    assert re.fullmatch(r"relay_[a-z_]+", family.name)
    assert family.help.endswith(".")
    assert list(family.buckets) == sorted(set(family.buckets))
    if family.buckets:
        assert family.name.endswith(("_seconds", "_tokens"))


ALONE = Config(upstreams={"mine": MINE}, routes={"*": STAR}, keys=ALICE)
"""What is left after a reload that takes away the route `fast` and the upstream `other`."""


def names(metrics: Metrics, label: str) -> set[str]:
    return {labels[label] for _, labels, _ in samples(metrics) if label in labels}


def test_series_of_a_removed_route_are_shown_once_more_and_then_dropped(metrics: Metrics) -> None:
    observe(metrics, Outcome.COMPLETE, attempt(FAST.targets[1]))
    metrics.know(ALONE)
    assert value(metrics, "relay_requests_total", route="fast", outcome="complete") == 1
    assert names(metrics, "route") == {"*", NO_ROUTE}
    assert names(metrics, "upstream") == {"mine"}
    assert value(metrics, "relay_requests_forgotten_total") == 1


def test_series_of_a_removed_route_stay_while_it_serves_and_show_how_that_ended(metrics: Metrics) -> None:
    exchange, summary = ended(Outcome.UPSTREAM_CUT, attempt())
    metrics.began()
    metrics.routed(exchange)
    metrics.know(ALONE)
    for _ in range(4):
        assert value(metrics, "relay_requests_in_flight", route="fast") == 1
    metrics.ended(exchange, summary)
    assert value(metrics, "relay_requests_total", route="fast", outcome="upstream_cut") == 1
    assert names(metrics, "route") == {"*", NO_ROUTE}
    assert metrics.in_flight == 0


def test_a_request_that_a_reload_overtook_leaves_no_series_behind(metrics: Metrics) -> None:
    metrics.know(ALONE)
    names(metrics, "route"), names(metrics, "route")
    observe(metrics, Outcome.COMPLETE, attempt())
    assert value(metrics, "relay_requests_total", route="fast") == 1
    assert names(metrics, "route") == {"*", NO_ROUTE}


def test_a_request_that_ends_at_an_upstream_which_a_reload_took_from_its_route_leaves_no_series_of_it_behind(metrics: Metrics) -> None:
    metrics.know(replace(CONFIG, upstreams={"mine": MINE}, routes={"fast": replace(FAST, targets=FAST.targets[:1])}))
    names(metrics, "upstream"), names(metrics, "upstream")
    observe(metrics, Outcome.COMPLETE, attempt(FAST.targets[1]))
    assert value(metrics, "relay_upstream_attempts_total", upstream="other") == 1
    assert names(metrics, "upstream") == {"mine"}


def test_a_reload_that_takes_nothing_away_drops_nothing(metrics: Metrics) -> None:
    observe(metrics, Outcome.COMPLETE, attempt(), status=418)
    before = {(name, tuple(labels.items())) for name, labels, _ in samples(metrics) if name.startswith("relay_")}
    metrics.know(CONFIG)
    for _ in range(3):
        after = {(name, tuple(labels.items())) for name, labels, _ in samples(metrics) if name.startswith("relay_")}
        assert after == before


def test_past_the_cap_names_share_a_series_and_are_counted() -> None:
    metrics = Metrics(replace(CONFIG, metrics=replace(CONFIG.metrics, label_values=1)), "1", connections=dict, dropped=lambda: 0)
    observe(metrics, Outcome.COMPLETE, attempt(), route=STAR, key="alice")
    observe(metrics, Outcome.COMPLETE, attempt(), route=STAR, key="bob")
    assert value(metrics, "relay_requests_total", route="_other", outcome="complete") == 2
    assert value(metrics, "relay_key_requests_total", key="_other") == 1
    assert value(metrics, "relay_label_overflow_total", label="key") == 1
    assert value(metrics, "relay_label_overflow_total", label="route") >= 2


def test_the_promised_time_to_first_token_is_a_bound() -> None:
    config = replace(CONFIG, metrics=replace(CONFIG.metrics, slo=replace(CONFIG.metrics.slo, ttft=2.25)))
    metrics = Metrics(config, "1", connections=dict, dropped=lambda: 0)
    exchange, _ = ended(Outcome.COMPLETE, attempt())
    exchange.first_content_written_at = 12.2
    metrics.began()
    metrics.ended(exchange, summarize(exchange, 13.0))
    assert value(metrics, "relay_time_to_first_token_seconds_bucket", le="2.0") == 0
    assert value(metrics, "relay_time_to_first_token_seconds_bucket", le="2.25") == 1


def test_what_began_is_finished_answered_or_in_flight(metrics: Metrics) -> None:
    observe(metrics, Outcome.COMPLETE, attempt())
    observe(metrics, Outcome.COMPLETE, operation=Operation.MODELS, route=None)
    metrics.began()
    routed, _ = ended(Outcome.COMPLETE)
    metrics.began()
    metrics.routed(routed)
    assert value(metrics, "relay_requests_started_total") == 4
    assert value(metrics, "relay_requests_total") == value(metrics, "relay_model_lists_total") == 1
    assert value(metrics, "relay_requests_in_flight", route=NO_ROUTE) == value(metrics, "relay_requests_in_flight", route="fast") == 1


def test_the_state_of_a_target_stands_at_each_of_its_places() -> None:
    states = [("mine/m", "cooling"), ("other/n", "healthy"), ("mine/*", "healthy")]
    metrics = Metrics(CONFIG, "1", connections=dict, dropped=lambda: 0, standings=lambda: states)
    assert value(metrics, "relay_target_health", route="fast", upstream="mine", target="mine/m", state="cooling") == 1
    assert value(metrics, "relay_target_health", route="*", upstream="mine", target="mine/*", state="healthy") == 1
    assert value(metrics, "relay_target_health") == 3
    states[0] = ("mine/m", "probing")
    assert value(metrics, "relay_target_health", target="mine/m", state="probing") == 1
    assert value(metrics, "relay_target_health", target="mine/m", state="cooling") == 0


def test_gaps_stalls_tokens_and_limits_are_told(metrics: Metrics) -> None:
    meter = StreamMeter(first_content_at=10.5, last_content_at=13.5, content_events=3, terminal_at=13.75, usage=Usage(input=9, output=7))
    meter.silences.append((11.0, 13.5))
    answered = structs.replace(head(200), headers=((b"x-ratelimit-limit-requests", b"10"), (b"x-ratelimit-remaining-requests", b"4")))
    exchange, _ = ended(Outcome.COMPLETE, attempt(meter=meter, head=answered))
    exchange.backpressure_seconds = 0.25
    metrics.began()
    metrics.ended(exchange, summarize(exchange, 14.0))
    assert value(metrics, "relay_gap_seconds_total", route="fast", blame="upstream") == pytest.approx(3.0)
    assert value(metrics, "relay_gap_seconds_total", route="fast", blame="client") == pytest.approx(0.25)
    assert value(metrics, "relay_stalls_total", route="fast", blame="upstream") == 1
    assert value(metrics, "relay_time_per_output_token_seconds_sum", route="fast", upstream="mine") == pytest.approx(0.5)
    assert value(metrics, "relay_request_tokens_sum", route="fast", type="output") == 7
    assert value(metrics, "relay_upstream_ratelimit_remaining_ratio", upstream="mine", limit="rpm") == pytest.approx(0.4)


def test_reasoning_that_was_not_streamed_took_no_time_of_the_stream(metrics: Metrics) -> None:
    meter = StreamMeter(first_content_at=10.5, last_content_at=11.5, usage=Usage(input=1, output=105, reasoning=100))
    observe(metrics, Outcome.COMPLETE, attempt(meter=meter))
    assert value(metrics, "relay_time_per_output_token_seconds_sum") == pytest.approx(0.25)


def test_a_revoked_key_is_shown_once_more_and_then_dropped(metrics: Metrics) -> None:
    observe(metrics, Outcome.COMPLETE, attempt(meter=StreamMeter(usage=Usage(input=7, output=1))))
    metrics.know_keys(["bob"])
    assert value(metrics, "relay_key_tokens_total", key="alice", type="input") == 7
    assert names(metrics, "key") == set()


def test_a_revoked_key_whose_request_ends_late_leaves_no_series_behind(metrics: Metrics) -> None:
    metrics.know_keys([])
    names(metrics, "key"), names(metrics, "key")
    observe(metrics, Outcome.COMPLETE, attempt())
    assert value(metrics, "relay_key_requests_total", key="alice") == 1
    assert names(metrics, "key") == set()


def test_what_a_revoked_key_still_holds_is_not_shown() -> None:
    metrics = Metrics(
        CONFIG,
        "1",
        connections=dict,
        dropped=lambda: 0,
        shares=lambda: [("alice", "rpm", 0.5), ("mallory", "rpm", 0.7)],
        reserved=lambda: {"alice": 1, "mallory": 2},
    )
    assert names(metrics, "key") == {"alice"}
    assert value(metrics, "relay_tokens_reserved") == 1


def test_looking_at_limits_and_connections_is_no_observation_that_overflows() -> None:
    config = replace(CONFIG, metrics=replace(CONFIG.metrics, label_values=1))
    metrics = Metrics(
        config,
        "1",
        connections=lambda: {"mine": (1, 1), "other": (1, 1)},
        dropped=lambda: 0,
        queued=lambda: {"fast": 2, "*": 3},
        shares=lambda: [("alice", "rpm", 0.5), ("bob", "rpm", 0.7), ("carol", "rpm", 0.6)],
        reserved=lambda: {"alice": 1, "bob": 2, "carol": 3},
    )
    metrics.know_keys(["alice", "bob", "carol"])
    for _ in range(3):
        assert value(metrics, "relay_label_overflow_total") == 0
        assert value(metrics, "relay_key_limit_used_ratio", key="_other") == 0.7
        assert value(metrics, "relay_requests_queued") == 5


def test_what_a_request_costs_is_counted_in_dollars() -> None:
    metrics = Metrics(replace(CONFIG, prices={"mine/m": Price(input=1, output=1, cached=1)}), "1", connections=dict, dropped=lambda: 0)
    assert ("relay_cost_usd_total", 0.0) in {
        (name, number) for name, labels, number in samples(metrics) if labels.get("upstream") == "mine"
    }
    exchange, _ = ended(Outcome.COMPLETE, attempt(meter=StreamMeter(usage=Usage(input=7, output=1))))
    exchange.cost = 2_500_000
    metrics.began()
    metrics.ended(exchange, summarize(exchange, 12.0))
    assert value(metrics, "relay_cost_usd_total", route="fast", upstream="mine") == pytest.approx(0.0025)


def test_the_first_failure_of_any_operation_starts_from_nought(metrics: Metrics) -> None:
    observe(metrics, Outcome.COMPLETE, attempt(), operation=Operation.EMBEDDINGS, is_stream=False)
    of_it = [(labels, number) for _, labels, number in samples(metrics) if labels.get("operation") == "embeddings"]
    found = {labels["outcome"]: number for labels, number in of_it if "outcome" in labels}
    assert found == {outcome.value: float(outcome is Outcome.COMPLETE) for outcome in Outcome}
    metrics.know(CONFIG)
    assert value(metrics, "relay_requests_total", operation="embeddings", outcome="complete") == 1


def test_a_reload_makes_series_a_route_at_a_time(metrics: Metrics) -> None:
    more = {f"r{number}": replace(FAST, name=f"r{number}") for number in range(5)}
    metrics.know(replace(CONFIG, routes={**CONFIG.routes, **more}))
    assert metrics.registry.numbers(families.HEDGES) == []
    assert sum(1 for _ in metrics.make_series()) == 7
    assert {labels[0] for labels, _ in metrics.registry.numbers(families.BACKPRESSURE)} == {"fast", "*", *more}
    metrics.know(replace(CONFIG, routes={**CONFIG.routes, "last": replace(FAST, name="last")}))
    assert value(metrics, "relay_upstream_attempts_total", route="last") == 0
    assert "last" in names(metrics, "route"), "a page makes what is left to be made"


@pytest.mark.parametrize("family", ["relay_stale_connection_resends_total", "relay_malformed_events_total"])
def test_the_first_flaw_of_an_upstream_starts_from_nought(family: str, metrics: Metrics) -> None:
    assert {labels["upstream"]: number for name, labels, number in samples(metrics) if name == family} == {"mine": 0, "other": 0}
