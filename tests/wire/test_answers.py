"""Whole bodies: usage, ids, errors of upstreams, and the error events the relay makes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.errors import encode_error
from relay.exchange import Operation, Usage
from relay.wire.openai import First, error_event, parse_error, read_answer
from relay.wire.sse import EventSplitter
from relay.wire.usage import Answer
from tests.wire.transcripts import answer, observe


@pytest.mark.parametrize(
    ("name", "usage", "finish", "identity"),
    [
        ("openai-chat-nonstream.json", Usage(input=9, output=2), "stop", "chatcmpl-B1"),
        ("openai-chat-nonstream-tools.json", Usage(input=53, output=15), "tool_calls", "chatcmpl-B2"),
        ("openai-embeddings-base64.json", Usage(input=4, output=0), None, None),
        ("openai-moderations.json", None, None, "modr-1"),
        ("openai-models.json", None, None, None),
        ("openai-responses-background-queued.json", None, "queued", "resp_0ecff685e411ca7b0069e0"),
        ("deepseek-nonstream-blank-lines.json", Usage(input=6, output=2), "stop", "x"),
    ],
)
def test_a_whole_answer_gives_usage_finish_and_id(name: str, usage: Usage | None, finish: str | None, identity: str | None) -> None:
    _, body = answer(name)
    found = read_answer(body)
    assert found == Answer(usage=usage, finish_reason=finish, id=identity, model=found.model)


@pytest.mark.parametrize(("model", "expected"), [("gpt-4.1-2025", "gpt-4.1-2025"), (7, None), (None, None)])
def test_a_whole_answer_tells_the_model_if_it_is_a_name(model: object, expected: str | None) -> None:
    assert read_answer(json.dumps({"model": model}).encode()).model == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 2}}, Usage(input=5, output=7, cached=2)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "prompt_cache_hit_tokens": 3}, Usage(input=5, output=7, cached=3)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "cached_tokens": 4}, Usage(input=5, output=7, cached=4)),
        (
            {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 303, "completion_tokens_details": {"reasoning_tokens": 290}},
            Usage(input=12, output=291, reasoning=290),
        ),
        ({"prompt_tokens": 5, "completion_tokens": None, "total_tokens": 5, "prompt_tokens_details": None}, Usage(input=5, output=0)),
        ({"total_tokens": 9}, Usage(input=9, output=0)),
        ({}, None),
        ({"prompt_tokens": "5"}, None),
        ({"prompt_tokens": -5}, None),
        ({"prompt_tokens": True}, None),
        ([], None),
        ("5", None),
    ],
)
def test_usage_is_read_in_every_shape(usage: object, expected: Usage | None) -> None:
    assert read_answer(json.dumps({"usage": usage}).encode()).usage == expected


ERRORS = {
    "ark-403-overdue.json": ("Forbidden", "AccountOverdueError"),
    "azure-400-content-filter.json": (None, "content_filter"),
    "azure-401.json": (None, "401"),
    "azure-404-deployment.json": (None, "DeploymentNotFound"),
    "azure-429.json": (None, "429"),
    "dashscope-compat-400-arrearage.json": ("Arrearage", "Arrearage"),
    "dashscope-compat-400-context.json": ("invalid_request_error", "invalid_parameter_error"),
    "dashscope-compat-400-inspection.json": ("data_inspection_failed", "data_inspection_failed"),
    "dashscope-compat-400-thinking-nonstream.json": ("invalid_request_error", "invalid_parameter_error"),
    "dashscope-compat-401.json": ("invalid_request_error", "invalid_api_key"),
    "dashscope-compat-429-burst.json": ("limit_burst_rate", "limit_burst_rate"),
    "dashscope-compat-429-insufficient-quota-tpm.json": ("insufficient_quota", "insufficient_quota"),
    "dashscope-compat-429-limit-requests.json": ("limit_requests", "limit_requests"),
    "dashscope-native-401.json": (None, "InvalidApiKey"),
    "dashscope-native-429.json": (None, "Throttling.RateQuota"),
    "deepseek-401.json": ("authentication_error", "invalid_request_error"),
    "deepseek-402.json": ("unknown_error", "invalid_request_error"),
    "deepseek-429.json": ("rate_limit_error", "rate_limit_error"),
    "deepseek-503.json": ("service_unavailable_error", "service_unavailable_error"),
    "gemini-openai-compat-400-list.json": (None, "400"),
    "groq-400-tool-use-failed.json": ("invalid_request_error", "tool_use_failed"),
    "groq-429.json": ("tokens", "rate_limit_exceeded"),
    "groq-498-capacity.json": ("invalid_request_error", "capacity_exceeded"),
    "llamacpp-400-context.json": ("exceed_context_size_error", "400"),
    "llamacpp-503-loading.json": ("unavailable_error", "503"),
    "mistral-422.json": ("invalid_request_error", None),
    "moonshot-429-overloaded.json": ("engine_overloaded_error", None),
    "ollama-v1-404.json": ("not_found_error", None),
    "openai-400-context-length.json": ("invalid_request_error", "context_length_exceeded"),
    "openai-400-invalid-param.json": ("invalid_request_error", "decimal_below_min_value"),
    "openai-401.json": ("invalid_request_error", "invalid_api_key"),
    "openai-404-model.json": ("invalid_request_error", "model_not_found"),
    "openai-429-credit-balance-exhausted.json": ("insufficient_quota", "credit_balance_exhausted"),
    "openai-429-insufficient-quota.json": ("insufficient_quota", "insufficient_quota"),
    "openai-429-rate-limit.json": ("requests", "rate_limit_exceeded"),
    "openai-429-slow-down.json": ("rate_limit_error", "slow_down"),
    "openai-500.json": ("server_error", None),
    "openai-503-overloaded.json": ("server_error", None),
    "openrouter-200-error-body.json": (None, "502"),
    "openrouter-402.json": (None, "402"),
    "openrouter-429-provider.json": (None, "429"),
    "sglang-400-flat.json": ("BadRequestError", "400"),
    "together-403-context.json": ("invalid_request_error", None),
    "vllm-400-context.json": ("BadRequestError", "400"),
    "xai-403.json": (None, "permission-denied"),
    "zhipu-429-no-balance.json": (None, "1113"),
    "zhipu-429.json": (None, "1302"),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_body_gives_type_and_code(name: str) -> None:
    words = parse_error(answer(name)[1])
    assert (words.type, words.code) == ERRORS[name]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'"Invalid token"', b"[]", b"[1]", b"{}", b'{"error":"text"}', b'{"error":[]}', b"[" * 5000]
)
def test_an_error_body_that_says_nothing_gives_nothing(body: bytes) -> None:
    words = parse_error(body)
    assert (words.type, words.code) == (None, None)


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda x: (
                st.lists(x, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["error", "code", "type", "usage", "choices", "id", "status", "x_groq", "response", "prompt_tokens"]),
                    x,
                    max_size=4,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_readers_of_whole_bodies_never_raise(body: bytes) -> None:
    parse_error(body)
    read_answer(body)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "503"}, 503),
        ({"code": 200}, 502),
        ({"code": 4000}, 502),
        ({"code": 400.5}, 502),
        ({"status_code": 418, "type": "server_error"}, 418),
        ({"type": "insufficient_quota"}, 429),
        ({"code": "rate_limit_exceeded", "type": "tokens"}, 429),
        ({"type": "requests"}, 429),
        ({"code": "Throttling.AllocationQuota"}, 429),
        ({"type": "overloaded_error"}, 503),
        ({"type": "engine_overloaded_error"}, 503),
        ({"status": "UNAVAILABLE"}, 503),
        ({"type": "server_error"}, 500),
        ({"type": "api_error"}, 500),
        ({"code": "InternalError.Algo"}, 500),
        ({"type": "invalid_request_error"}, 400),
        ({"code": "context_length_exceeded"}, 400),
        ({"code": "content_filter", "type": None}, 400),
        ({"code": "invalid_api_key", "type": "invalid_request_error"}, 401),
        ({"code": "model_not_found"}, 404),
        ({"type": "permission_error"}, 403),
        ({"type": "timeout"}, 504),
        ({"code": "1302"}, 502),
        ({"message": "?"}, 502),
        ("boom", 502),
        ({"message": "This model's maximum context length is 8192 tokens.", "code": None}, 400),
        ("Prompt is too long: 9000 tokens", 400),
        ({"message": "prompt is too long", "type": "server_error"}, 500),
        ([{"code": 400}], 400),
    ],
)
def test_an_error_event_maps_to_a_status(error: object, status: int) -> None:
    _, meter = observe([b"data: " + json.dumps({"error": error}).encode() + b"\n\n"], Operation.CHAT)
    assert meter.error is not None
    assert meter.error.status == status


def test_an_error_event_is_one_event_without_a_name() -> None:
    event = error_event(Operation.CHAT, encode_error("m", type="upstream_error", code="c"))
    assert event == b'data: {"error":{"message":"m","type":"upstream_error","param":null,"code":"c"}}\n\n'


def test_an_error_event_of_the_responses_api_is_named_and_nested() -> None:
    event = error_event(Operation.RESPONSES, encode_error("m", type="upstream_error", code="c"))
    assert event == b'event: error\ndata: {"type":"error","error":{"message":"m","type":"upstream_error","param":null,"code":"c"}}\n\n'


@settings(deadline=None)
@given(st.text(), st.sampled_from(list(Operation)))
def test_a38_no_text_in_an_error_forges_an_event(text: str, kind: Operation) -> None:
    frame = error_event(kind, encode_error(text + "\r\n\r\ndata: [DONE]\r\n\n", type=text, code=text))
    events = EventSplitter().feed(frame)
    assert len(events) == 1
    assert json.loads(events[0].data or b"")["error"]["code"] == text
    observer, meter = observe([frame], kind)
    assert (observer.first, observer.at_boundary, meter.terminal_at) == (First.ERROR, True, None)


def test_an_envelope_with_line_breaks_still_makes_one_line() -> None:
    assert error_event(Operation.CHAT, b'{\n "error":\r\n {}}').count(b"\n") == 2
