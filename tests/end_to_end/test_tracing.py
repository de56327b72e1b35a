"""Traces through a running relay: the caller's goes on with a parent of the relay's, and every log line names it."""

import re

import pytest

from tests.conftest import RelayWith
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import error_answer, in_turn, json_answer
from tests.fakes.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
OK = json_answer({"id": "x", "object": "chat.completion", "choices": []})


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    other = {"base_url": shared_upstream.url, "api_key": "sk-other"}
    config = config_for(shared_upstream)
    config["upstreams"]["other"] = other
    config["routes"] = {"*": ["mine/*", "other/*"]}
    return await shared_relay_with(config)


def parent_of(line: bytes | None) -> tuple[str, str, str]:
    found = re.fullmatch(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", line or b"")
    assert found is not None, line
    return found[1].decode(), found[2].decode(), found[3].decode()


async def test_a_callers_trace_goes_on_with_a_new_parent(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("traced", OK)
    headers = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "rojo=1"), ("tracestate", "congo=2"))
    response = await relay.post(CHAT, {"model": "traced"}, headers)
    assert response.status == 200
    (request,) = shared_upstream.of("traced")
    trace, span, flags = parent_of(request.header("traceparent"))
    assert (trace, flags) == (TRACE, "01")
    assert span not in (SPAN, "0" * 16)
    assert request.all("tracestate") == [b"rojo=1,congo=2"]
    (line,) = await relay.wait_log("request", model="traced")
    assert line["trace_id"] == TRACE


async def test_a_request_without_a_trace_begins_one_by_its_own_id(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("untraced", OK)
    response = await relay.post(CHAT, {"model": "untraced"}, (("tracestate", "rojo=1"), ("traceparent", "00-nonsense")))
    (request,) = shared_upstream.of("untraced")
    trace, _, flags = parent_of(request.header("traceparent"))
    assert trace.encode() == response.header("x-relay-request-id")
    assert flags == "00"
    assert request.header("tracestate") is None


async def test_each_attempt_is_a_parent_of_its_own(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("twice", in_turn(error_answer(500), OK))
    await relay.post(CHAT, {"model": "twice"}, (("traceparent", f"00-{TRACE}-{SPAN}-00"),))
    parents = [parent_of(request.header("traceparent")) for request in shared_upstream.of("twice")]
    assert len(parents) == 2
    assert {trace for trace, _, _ in parents} == {TRACE}
    assert len({span for _, span, _ in parents}) == 2
    (line,) = await relay.wait_log("request", model="twice")
    (warning,) = await relay.wait_log("attempt_failed", request_id=line["request_id"])
    assert warning["trace_id"] == line["trace_id"] == TRACE


async def test_refusals_are_part_of_their_trace(relay: RelayProcess) -> None:
    response = await relay.post(CHAT, b"{", (("traceparent", f"00-{TRACE}-{SPAN}-01"),))
    assert response.status == 400
    (line,) = await relay.wait_log("request", error_code="invalid_json")
    assert line["trace_id"] == TRACE
