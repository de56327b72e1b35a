"""What `relay explain` tells: the route and why, the targets and their bounds, the rules, and whether a request may be repeated."""

import json
from pathlib import Path

import pytest

from relay.cli.explain import Explanation, explain
from relay.config import Config, load

NOW = 1_800_000_000.0
SECRET = "sk-CANARY-4f7a9c2e81d6"
FILE = f"""
upstreams:
  one: {{base_url: "http://127.0.0.1:9001/v1", api_key: {SECRET}1}}
  two: {{base_url: "http://127.0.0.1:9002/v1", api_key: {SECRET}2}}
  sim: {{kind: demo, limits: {{concurrency: 4, queue_wait: 2s}}}}
  many: {{base_url: "http://127.0.0.1:9003/v1", api_keys: [{SECRET}3, {SECRET}4]}}
routes:
  fast: [one/a, {{to: two/b, timeouts: {{first_token: 10m}}}}]
  smart:
    balance: [{{to: one/a, weight: 3}}, two/b]
    fallback: [sim/demo]
    affinity: user
    timeouts: {{first_token: 90s, total: 2h}}
  forgiving: {{to: [one/a, two/b], fallback_on: [context_length]}}
  alone: one/a
  firm: {{to: many/a, retries: 0}}
  one/*: one/*
  one/big-*: [one/big-*, two/fixed]
keys:
  alice: {{hash: "sha256:{"1" * 64}", routes: [fast]}}
  bob: {{hash: "sha256:{"2" * 64}"}}
  gone: {{hash: "sha256:{"3" * 64}", expires: 2020-01-01}}
  idle: {{hash: "sha256:{"4" * 64}", enabled: false}}
default_model: fast
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    file = tmp_path_factory.mktemp("explain") / "relay.yaml"
    file.write_text(FILE)
    return load(str(file), {})


def told(config: Config, model: str | None, key: str | None = None, request: object = None) -> Explanation:
    body = None if request is None else json.dumps(request).encode()
    return explain(config, model, key, body, unix_time=NOW)


def targets(explanation: Explanation) -> list[str]:
    return [step.target for step in explanation.steps]


def test_list_is_told_in_its_order_with_the_bounds_of_each_target(config: Config) -> None:
    found = told(config, "fast")
    assert (found.route, found.order) == ("fast", "tried in order")
    assert targets(found) == ["one/a", "two/b"]
    one, two = found.steps
    assert (one.first_token, two.first_token) == (120.0, 600.0)
    assert (one.share, two.share) == (None, None)


def test_balanced_route_is_told_with_shares_and_what_comes_after(config: Config) -> None:
    found = told(config, "smart")
    assert [(step.target, step.share, step.is_fallback) for step in found.steps] == [
        ("one/a", 0.75, False),
        ("two/b", 0.25, False),
        ("sim/demo", None, True),
    ]
    assert found.order.startswith("a conversation stays on one (affinity user)")
    assert [step.first_token for step in found.steps] == [90.0] * 3
    assert found.total == 7200.0


@pytest.mark.parametrize(
    ("model", "route", "sent", "reason"),
    [
        ("one/small", "one/*", ["one/small"], "the longest pattern that matches"),
        ("one/big-x", "one/big-*", ["one/big-x", "two/fixed"], "the longest pattern that matches, before one/*"),
        ("alone", "alone", ["one/a"], "the name is its own"),
        (None, "fast", ["one/a", "two/b"], "the name is its own (the default model, for the request names none)"),
    ],
)
def test_route_is_told_with_the_reason_for_it(config: Config, model: str | None, route: str, sent: list[str], reason: str) -> None:
    found = told(config, model)
    assert (found.route, targets(found), found.reason) == (route, sent, reason)


def rule(explanation: Explanation, start: str) -> str:
    (found,) = (line for line in explanation.rules if line.startswith(start))
    return found


def test_rules_name_what_falls_back_on_this_route(config: Config) -> None:
    fast, wild = told(config, "fast"), told(config, "one/big-x")
    forgiving = told(config, "forgiving")
    assert "context_length" in rule(forgiving, "the next target after") and "content_policy" in rule(forgiving, "never after")
    assert "content_policy" in rule(fast, "never after")
    assert "context_length" in rule(fast, "never after")
    assert "caller" in rule(fast, "never after")
    assert "throttled" in rule(fast, "the next target after")
    assert "model_not_found (for a name from the configuration)" in rule(wild, "the next target after")
    assert not any("next target" in line for line in told(config, "alone").rules)


def test_retries_and_further_credentials_are_told_where_there_are_any(config: Config) -> None:
    assert "at most twice" in rule(told(config, "alone"), "the same target again")
    firm = told(config, "firm")
    assert not any("same target again" in line for line in firm.rules)
    assert any("many has 2 credentials" in line for line in firm.notes)
    assert not any("same target again" in line for line in told(config, "alone", request={"model": "alone", "store": True}).rules)
    assert not any("credentials" in line for line in told(config, "alone").notes)


@pytest.mark.parametrize(
    ("request_", "repeatable"),
    [
        ({"model": "fast", "messages": []}, True),
        ({"model": "fast", "store": True}, False),
        ({"model": "fast", "background": True}, False),
        ({"model": "fast", "store": False}, True),
        (None, None),
    ],
)
def test_request_is_told_to_be_safe_to_repeat_or_not(config: Config, request_: object, repeatable: bool | None) -> None:
    assert told(config, "fast", request=request_).repeatable is repeatable


def test_model_of_the_request_is_used_and_a_difference_is_told(config: Config) -> None:
    assert told(config, None, request={"model": "alone"}).route == "alone"
    found = told(config, "fast", request={"model": "alone"})
    assert found.route == "fast"
    assert "the request itself names alone; what is explained is fast" in found.notes


def test_continued_response_is_told_to_be_pinned(config: Config) -> None:
    found = told(config, "fast", request={"model": "fast", "previous_response_id": "resp_1"})
    assert any("to the upstream that made it" in note for note in found.notes)


@pytest.mark.parametrize(
    ("model", "key", "refusal"),
    [
        ("fast", "alice", None),
        ("smart", "alice", "route_not_allowed"),
        ("smart", "bob", None),
        ("fast", "gone", "invalid_api_key"),
        ("fast", "idle", "invalid_api_key"),
        ("unheard-of", "bob", "model_not_found"),
    ],
)
def test_key_is_refused_as_the_gateway_would(config: Config, model: str, key: str, refusal: str | None) -> None:
    found = told(config, model, key)
    assert found.refusal == refusal
    assert bool(found.steps) == (refusal is None)


def test_without_a_key_those_that_may_are_named(config: Config) -> None:
    assert "a key is needed; keys that may use this route: alice, bob" in told(config, "fast").notes
    assert not any("a key is needed" in note for note in told(config, "fast", "alice").notes)


def test_unknown_key_is_an_error_that_names_the_others(config: Config) -> None:
    with pytest.raises(LookupError, match="no key named 'carol'; there are alice, bob, gone, idle"):
        told(config, "fast", "carol")


@pytest.mark.parametrize(("body", "refusal"), [(b"{", "invalid_json"), (b"[]", "invalid_body"), (b'{"model": 4}', "invalid_value")])
def test_request_that_would_be_refused_is_told_so(config: Config, body: bytes, refusal: str) -> None:
    found = explain(config, "fast", None, body, unix_time=NOW)
    assert found.refusal == refusal
    assert found.text().startswith(f"fast -> error {refusal}: ")


def test_text_is_for_reading(config: Config) -> None:
    text = told(config, "smart", "bob").text()
    lines = text.splitlines()
    assert lines[0] == "smart -> route smart: the name is its own"
    assert "    1. one/a  (http://127.0.0.1:9001/v1), 75% of requests" in lines
    assert "       connect 5s, first token 90s, between tokens 2m" in lines
    assert "  when those have failed, in order:" in lines
    assert "    3. sim/demo  (demo)" in lines
    assert "  note: sim is simulated" in lines


def test_limits_of_an_upstream_are_told_where_there_are_any(config: Config) -> None:
    explanation = told(config, "smart")
    assert [step.concurrency for step in explanation.steps] == [None, None, 4]
    assert explanation.text().count("at most 4 calls at once; 128 more wait for a turn, up to 2s") == 1
    assert explanation.text().count("wait for a turn") == 1


def test_passthrough_is_told(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text('upstreams: {two: {base_url: "http://127.0.0.1:9002/v1", api_key: passthrough}}\nroutes: {fast: two/b}\n')
    assert told(load(str(file), {}), "fast").notes == ("two gets the caller's own credential",)


def test_no_secret_is_told(config: Config) -> None:
    for model in ("fast", "smart", "alone"):
        found = told(config, model, "bob")
        assert "CANARY" not in found.text() + json.dumps(found.json()) + repr(found)


def test_shipped_example_can_be_explained_route_by_route() -> None:
    environ = {"OPENAI_API_KEY": "k", "DASHSCOPE_API_KEY": "k", "ALICE_KEY_HASH": "sha256:" + "ab" * 32}
    shipped = load(str(Path(__file__).parent.parent.parent / "config/relay.example.yaml"), environ)
    for name in shipped.routes:
        found = told(shipped, name.replace("*", "some"))
        assert (found.refusal, found.route) == (None, name)


def test_what_is_done_about_slow_targets_is_told(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    slow = "{to: [one/a, two/b], timeouts: {first_token: auto}, hedge: {after: 800ms, at_most: 2.5%}, heartbeat: {every: 1m}}"
    file.write_text(FILE.replace("  alone: one/a\n", f"  alone: one/a\n  slow: {slow}\n  learned: {{to: [one/a, two/b], hedge: }}\n"))
    text = told(load(str(file), {}), "slow").text()
    assert "first token 2m, or sooner once learned" in text
    assert "a backup attempt on another target after 800ms, for at most 2.5% of requests" in text
    assert "comments into a silent stream after 15s, every 1m" in text
    assert "after the learned p95 of its first token, for at most 5%" in told(load(str(file), {}), "learned").text()
