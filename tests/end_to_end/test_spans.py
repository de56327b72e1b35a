"""Spans of a running relay, as a collector gets them over OTLP: whose child is whose, what they tell, and what they never tell."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.conftest import RelayWith
from tests.end_to_end.test_tracing import SPAN, TRACE, parent_of
from tests.fakes.collector import Collector, Span, running_collector
from tests.fakes.events import chat_stream
from tests.fakes.ports import free_port
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import error_answer, in_turn, sse
from tests.fakes.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
SERVER, CLIENT = 2, 3
ERROR = 2
CANARY = "canary-prompt-7f3a"
SAMPLED = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream, collector: Collector) -> RelayProcess:
    config = config_for(shared_upstream, tracing={"otlp": collector.url})
    config["upstreams"]["other"] = {"base_url": shared_upstream.url, "api_key": "sk-other-canary", "vendor": "dashscope"}
    config["routes"] = {"*": ["mine/*", "other/*"]}
    return await shared_relay_with(config)


def request(model: str, *, stream: bool = True) -> dict[str, object]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": CANARY}]}


async def spans_of(collector: Collector, is_one: Callable[[Span], bool], count: int) -> list[Span]:
    """Wait until the trace of a matching span is whole."""
    deadline = time.monotonic() + 10
    while True:
        traces = {span.trace for span in collector.spans if is_one(span)}
        found = [span for span in collector.spans if span.trace in traces]
        if len(found) >= count:
            return sorted(found, key=lambda span: span.start)
        assert time.monotonic() < deadline, collector.spans
        await asyncio.sleep(0.05)


def of_model(model: str) -> Callable[[Span], bool]:
    return lambda span: span.attributes.get("gen_ai.request.model") == model


async def test_a_stream_is_one_server_span_with_a_client_span_below(
    relay: RelayProcess, shared_upstream: ScriptedUpstream, collector: Collector
) -> None:
    shared_upstream.route("spanned", sse(chat_stream("Hel", "lo", usage=(7, 2)), pause=0.01))
    before = time.time_ns()
    response = await relay.post(CHAT, request("spanned"))
    assert response.has_done
    own, call = await spans_of(collector, of_model("spanned"), 2)
    assert (own.name, own.kind, own.parent, own.status, own.service) == ("POST /v1/chat/completions", SERVER, "", 0, "relay")
    assert own.trace.encode() == response.header("x-relay-request-id")
    assert own.attributes["http.response.status_code"] == 200
    assert (own.attributes["relay.outcome"], own.attributes["relay.route"], own.attributes["relay.attempts"]) == ("complete", "*", 1)
    assert (call.name, call.kind, call.parent, call.status) == ("chat spanned", CLIENT, own.id, 0)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.model": "some-model",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "server.address": "127.0.0.1",
        "relay.upstream": "mine",
        "relay.result": "success",
    }
    assert expected.items() <= call.attributes.items()
    assert 0 < call.attributes["gen_ai.response.time_to_first_chunk"] < 5
    ((name, at, _),) = call.events
    assert name == "first_token"
    assert before <= own.start <= call.start <= at <= call.end <= own.end <= time.time_ns()
    (sent,) = shared_upstream.of("spanned")
    assert parent_of(sent.header("traceparent")) == (own.trace, call.id, "01")


async def test_a_fallback_is_two_calls_and_an_event(relay: RelayProcess, shared_upstream: ScriptedUpstream, collector: Collector) -> None:
    shared_upstream.route("moved", in_turn(error_answer(500), sse(chat_stream("Hi"))))
    await relay.post(CHAT, request("moved"))
    own, first, second = await spans_of(collector, of_model("moved"), 3)
    assert (first.attributes["relay.upstream"], second.attributes["relay.upstream"]) == ("mine", "other")
    assert first.status == ERROR and first.attributes["error.type"]
    assert second.attributes["gen_ai.provider.name"] == "dashscope"
    assert (own.status, second.status) == (0, 0)
    ((name, _, told),) = own.events
    assert (name, told) == ("fallback", {"from": "mine", "to": "other", "reason": "http_5xx"})


async def test_a_callers_sampled_trace_is_joined(relay: RelayProcess, shared_upstream: ScriptedUpstream, collector: Collector) -> None:
    shared_upstream.route("joined", error_answer(400))
    await relay.post(CHAT, request("joined"), SAMPLED)
    own, call = await spans_of(collector, of_model("joined"), 2)
    assert (own.trace, own.parent, call.parent) == (TRACE, SPAN, own.id)
    assert own.attributes["relay.outcome"] == "rejected"


async def test_a_trace_that_its_caller_does_not_record_is_not_recorded(
    relay: RelayProcess, shared_upstream: ScriptedUpstream, collector: Collector
) -> None:
    shared_upstream.route("unsampled", sse(chat_stream("Hi")))
    shared_upstream.route("after", sse(chat_stream("Hi")))
    await relay.post(CHAT, request("unsampled"), (("traceparent", f"00-{TRACE[::-1]}-{SPAN}-00"),))
    await relay.post(CHAT, request("after"))
    await spans_of(collector, of_model("after"), 2)
    assert not [span for span in collector.spans if span.trace == TRACE[::-1]]


async def test_refusals_have_a_span_without_a_call(relay: RelayProcess, collector: Collector) -> None:
    response = await relay.post(CHAT, b"{")
    request_id = (response.header("x-relay-request-id") or b"").decode()
    (own,) = await spans_of(collector, lambda span: span.trace == request_id, 1)
    assert (own.kind, own.status, own.attributes["relay.outcome"]) == (SERVER, 0, "invalid_request")


async def test_no_prompt_answer_or_credential_is_in_a_span(
    relay: RelayProcess, shared_upstream: ScriptedUpstream, collector: Collector
) -> None:
    shared_upstream.route("secret", sse(chat_stream("canary-answer-91")))
    await relay.post(CHAT, request("secret"), (("Authorization", "Bearer sk-canary-of-the-caller"),))
    await spans_of(collector, of_model("secret"), 2)
    everything = b"".join(collector.bodies)
    assert b"secret" in everything
    for canary in (CANARY.encode(), b"canary-answer-91", b"sk-upstream", b"sk-other-canary", b"sk-canary-of-the-caller"):
        assert canary not in everything


async def test_a_share_is_recorded_and_the_upstream_is_told(
    relay_with: RelayWith, upstream: ScriptedUpstream, collector: Collector
) -> None:
    upstream.answers(sse(chat_stream("Hi")))
    relay = await relay_with(config_for(upstream, tracing={"otlp": collector.url, "sample": "0%"}))
    await relay.post(CHAT, request("not-drawn"))
    await relay.post(CHAT, request("drawn-elsewhere"), SAMPLED)
    await spans_of(collector, of_model("drawn-elsewhere"), 2)
    assert not [span for span in collector.spans if of_model("not-drawn")(span)]
    assert [parent_of(got.header("traceparent"))[2] for got in upstream.requests] == ["00", "01"]


async def test_a_collector_that_is_gone_disturbs_nobody(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(sse(chat_stream("Hi")))
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    relay = await relay_with(config_for(upstream), env=env, is_quiet=False)
    for _ in range(3):
        assert (await relay.post(CHAT, request("any"))).has_done
    deadline = time.monotonic() + 20
    while (await relay.metrics()).value("relay_spans_dropped_total") < 6:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert {line["logger"].partition(".")[0] for line in relay.logs("library")} == {"opentelemetry"}
    begun = time.monotonic()
    await relay.stop(is_quiet=False)
    assert time.monotonic() - begun < 15


async def test_the_times_of_a_recorded_request_lead_to_its_trace(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("exemplary", sse(chat_stream("Hello")))
    assert (await relay.post(CHAT, request("exemplary"), SAMPLED)).status == 200
    await relay.wait_log("request", model="exemplary")
    async with await relay.connect() as client:
        await client.request("GET", "/metrics", [("Accept", "application/openmetrics-text")])
        page = (await client.read_response(method="GET")).body.decode()
    found = {
        sample.name: sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.exemplar is not None and sample.exemplar.labels["trace_id"] == TRACE
    }
    assert set(found) == {"relay_request_duration_seconds_bucket", "relay_time_to_first_token_seconds_bucket"}
    assert "trace_id" not in (await relay.get("/metrics")).body.decode()
