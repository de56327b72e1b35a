"""The official OpenAI SDK, sync and async, cannot tell the relay from the upstream behind it.

The upstream answers with recorded bytes of OpenAI, DashScope and Ollama. What the SDK makes of them through the relay is compared with
what it makes of them directly; what matters most is also claimed by itself.
"""

import asyncio
import json
from collections.abc import AsyncIterator

import openai
import pytest

from tests.conftest import RelayWith
from tests.end_to_end.recorded import TRANSCRIPTS, answer_of, answered, events_of, stream_bytes, streamed
from tests.end_to_end.sdk import Flavour, Sdk, outcome_of
from tests.fakes.events import DONE, chat_stream, content, event, role
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import error_answer, hang, json_answer, respond, sse
from tests.fakes.upstream import ScriptedUpstream

CHAT = "chat.completions.create"
HI = [{"role": "user", "content": "hi"}]
EXPECTED = json.loads((TRANSCRIPTS / "expected.json").read_bytes())
PROMPT_SECONDS = 2.5
"""Ten times what the relay promises for closing an upstream whose client has gone."""
CHAT_STREAMS = [
    name
    for name, told in EXPECTED.items()
    if told["operation"] == "chat" and told["ends"] and told["error"] is None and name.startswith(("openai", "dashscope", "ollama"))
    # Two choices at once make no one text.
    if name != "openai-chat-stream-n2.sse"
]

REFUSALS = {
    "openai-404-model.json": openai.NotFoundError,
    "openai-429-rate-limit.json": openai.RateLimitError,
    "openai-429-insufficient-quota.json": openai.RateLimitError,
    "openai-400-context-length.json": openai.BadRequestError,
    "openai-400-invalid-param.json": openai.BadRequestError,
    "dashscope-compat-400-inspection.json": openai.BadRequestError,
    "dashscope-compat-429-burst.json": openai.RateLimitError,
    "ollama-v1-404.json": openai.NotFoundError,
    "openai-500.json": openai.InternalServerError,
    "openai-503-overloaded.json": openai.InternalServerError,
    "mistral-422.json": openai.UnprocessableEntityError,
}
"""Each has an upstream of its own, for what one upstream says must not put the others to rest."""


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    vendors = ("openai", "dashscope", "ollama")
    return await shared_relay_with(
        {
            "upstreams": {
                **{name: {"base_url": shared_upstream.url, "api_key": f"sk-{name}"} for name in vendors},
                **{f"for-{name}": {"base_url": shared_upstream.url, "api_key": "sk-x", "vendor": "openai"} for name in REFUSALS},
                "demo": {"kind": "demo"},
            },
            "routes": {
                **{f"{name}/*": f"{name}/*" for name in vendors},
                **{name: {"to": f"for-{name}/{name}", "retries": 0} for name in REFUSALS},
                "demo/*": "demo/*",
                "*": {"to": "openai/*", "retries": 0},
            },
            "keys": {"alice": {"key": "sk-alice"}},
            "timeouts": {"connect": "5s", "first_token": "3s", "between_tokens": "1s", "write": "5s", "total": "20s"},
        }
    )


@pytest.fixture(scope="module", params=["sync", "async"])
async def sdk(request: pytest.FixtureRequest, relay: RelayProcess) -> AsyncIterator[Sdk]:
    flavour: Flavour = request.param
    async with Sdk(flavour, relay.url) as sdk:
        yield sdk


@pytest.fixture(scope="module")
async def direct(sdk: Sdk, shared_upstream: ScriptedUpstream) -> AsyncIterator[Sdk]:
    """The same SDK without a relay."""
    async with Sdk(sdk.flavour, shared_upstream.url) as direct:
        yield direct


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model of the test's own, which chooses the script."""
    return str(request.node.name).replace("[", "-").replace("]", "")


# Streams


async def test_every_recorded_stream_reads_the_same_through_the_relay(sdk: Sdk, direct: Sdk, shared_upstream: ScriptedUpstream) -> None:
    names = [
        name
        for name, told in EXPECTED.items()
        # Without a terminator the relay says what the upstream only left out: those streams have tests of their own.
        if told["operation"] in ("chat", "completions") and told["ends"] and told["error"] is None
    ]
    for name in names:
        shared_upstream.route(name, streamed(name))

    async def compare(name: str) -> None:
        what = "completions.create" if EXPECTED[name]["operation"] == "completions" else CHAT
        parameters = {"prompt": "hi"} if what == "completions.create" else {"messages": HI}
        through, straight = await asyncio.gather(
            outcome_of(sdk.items(what, model=name, **parameters)), outcome_of(direct.items(what, model=name, **parameters))
        )
        assert through == straight, name

    await asyncio.gather(*map(compare, names))
    assert len(names) > 15


@pytest.mark.parametrize("vendor", ["openai", "dashscope", "ollama"])
async def test_vendor_prefix_is_taken_off_and_the_credential_is_the_vendors(
    sdk: Sdk, shared_upstream: ScriptedUpstream, vendor: str
) -> None:
    model = f"prefixed-{vendor}-{sdk.flavour}"
    shared_upstream.route(model, sse(chat_stream("a")))
    await sdk.items(CHAT, model=f"{vendor}/{model}", messages=HI)
    (request,) = shared_upstream.of(model)
    assert request.all("authorization") == [f"Bearer sk-{vendor}".encode()]
    assert b"sk-alice" not in request.head


@pytest.mark.parametrize("name", CHAT_STREAMS)
async def test_text_reasoning_finish_and_usage_arrive(sdk: Sdk, shared_upstream: ScriptedUpstream, name: str) -> None:
    shared_upstream.route(name, streamed(name))
    told = EXPECTED[name]
    chunks = await sdk.items(CHAT, model=name, messages=HI, stream_options={"include_usage": True})
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    text = "".join(delta.content or "" for delta in deltas)
    fields = ("reasoning_content", "reasoning")
    reasoning = "".join(getattr(delta, field, None) or "" for delta in deltas for field in fields)
    finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert text == (told["text"] or "")
    assert reasoning == (told["reasoning"] or "")
    assert finishes[-1:] == ([told["finish"]] if told["finish"] else [])
    assert [usages[-1].prompt_tokens, usages[-1].completion_tokens] == told["usage"][:2] if told["usage"] else not usages


async def test_include_usage_reaches_the_upstream_and_usage_the_client(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, sse(chat_stream("a", "b", usage=(7, 2))))
    chunks = await sdk.items(CHAT, model=model, messages=HI, stream_options={"include_usage": True})
    assert shared_upstream.of(model)[0].json()["stream_options"] == {"include_usage": True}
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 2)


async def test_dashscope_options_reach_the_upstream_and_reasoning_the_client(
    sdk: Sdk, shared_upstream: ScriptedUpstream, model: str
) -> None:
    shared_upstream.route(model, streamed("dashscope-thinking-usage.sse"))
    chunks = await sdk.items(
        CHAT,
        model=f"dashscope/{model}",
        messages=HI,
        stream_options={"include_usage": True},
        extra_body={"enable_thinking": True, "thinking_budget": 100},
        extra_headers={"X-DashScope-DataInspection": "enable"},
    )
    (request,) = shared_upstream.of(model)
    assert (request.json()["enable_thinking"], request.json()["thinking_budget"]) == (True, 100)
    assert request.header("x-dashscope-datainspection") == b"enable"
    reasoning = "".join(getattr(choice.delta, "reasoning_content", None) or "" for chunk in chunks for choice in chunk.choices)
    assert reasoning == EXPECTED["dashscope-thinking-usage.sse"]["reasoning"]
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == EXPECTED["dashscope-thinking-usage.sse"]["usage"][3]


@pytest.mark.parametrize("name", ["openai-chat-stream-tools.sse", "dashscope-compat-tools.sse", "ollama-v1-stream-tools.sse"])
async def test_tool_call_deltas_accumulate(sdk: Sdk, shared_upstream: ScriptedUpstream, name: str) -> None:
    shared_upstream.route(name, streamed(name))
    chunks = await sdk.items(CHAT, model=name, messages=HI)
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    first = {call.index: call for call in reversed(calls) if call.function.name}
    arguments = {index: "".join(call.function.arguments or "" for call in calls if call.index == index) for index in first}
    assert first
    for index, call in first.items():
        assert call.id
        assert isinstance(json.loads(arguments[index]), dict)


async def test_stream_helper_accumulates_a_tool_call(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, streamed("openai-chat-stream-tools.sse"))
    final = await sdk.final("chat.completions.stream", "get_final_completion", model=model, messages=HI)
    calls = final.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    assert all(json.loads(call.function.arguments) for call in calls)


async def test_streamed_bytes_and_headers_are_the_upstreams(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    body = stream_bytes("openai-chat-stream-text.sse")
    headers = [("Content-Type", "text/event-stream; charset=utf-8"), ("x-request-id", "req_upstream"), ("x-ratelimit-limit-requests", "9")]
    shared_upstream.route(model, sse(events_of(body), headers=headers))
    got, data = await sdk.raw_bytes(CHAT, model=model, messages=HI, stream=True)
    assert data == body
    assert got["content-type"] == "text/event-stream; charset=utf-8"
    assert (got["x-request-id"], got["x-ratelimit-limit-requests"]) == ("req_upstream", "9")
    assert (got["x-relay-route"], got["x-relay-upstream"]) == ("*", "openai")
    assert len(got["x-relay-request-id"]) == 32


async def test_first_chunk_arrives_while_the_upstream_still_works(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, sse([role(), content("now")], end="hang"))
    chunks = await asyncio.wait_for(sdk.first_then_close(CHAT, 2, model=model, messages=HI), 2)
    assert chunks[1].choices[0].delta.content == "now"


async def test_abort_in_a_stream_closes_the_upstream(sdk: Sdk, shared_upstream: ScriptedUpstream, relay: RelayProcess, model: str) -> None:
    shared_upstream.route(model, sse([role(), content("a"), content("b")], end="hang"))
    await sdk.first_then_close(CHAT, 3, model=model, messages=HI)
    (request,) = shared_upstream.of(model)
    await shared_upstream.wait_closed(request, within=PROMPT_SECONDS)
    (line,) = await relay.wait_log(model=model)
    assert line["outcome"] == "client_gone"


async def test_a_client_is_told_before_its_own_timeout_ends_the_wait(
    sdk: Sdk, shared_upstream: ScriptedUpstream, relay: RelayProcess, model: str
) -> None:
    shared_upstream.route(model, hang())
    with pytest.raises(openai.InternalServerError) as raised:
        await sdk.call(CHAT, model=model, messages=HI, timeout=2)
    assert (raised.value.status_code, raised.value.code) == (504, "caller_deadline")
    (request,) = shared_upstream.of(model)
    await shared_upstream.wait_closed(request, within=PROMPT_SECONDS)
    line = (await relay.wait_log(model=model))[0]
    assert (line["outcome"], line["error_code"]) == ("upstream_failed", "caller_deadline")


async def test_hanging_up_after_done_is_complete(sdk: Sdk, shared_upstream: ScriptedUpstream, relay: RelayProcess, model: str) -> None:
    shared_upstream.route(model, sse(chat_stream("a"), end="hang"))
    await sdk.items(CHAT, model=model, messages=HI)
    assert (await relay.wait_log(model=model))[0]["outcome"] == "complete"


@pytest.mark.parametrize("end", ["fin", "rst", "clean"])
@pytest.mark.parametrize("where", ["border", "middle"])
async def test_cut_stream_raises(
    sdk: Sdk, shared_upstream: ScriptedUpstream, relay: RelayProcess, model: str, where: str, end: str
) -> None:
    last = [content("b")] if where == "border" else [content("b")[:-9]]
    shared_upstream.route(model, sse([role(), content("a"), *last], end=end))  # type: ignore[arg-type]
    with pytest.raises(openai.APIError) as raised:
        await sdk.items(CHAT, model=model, messages=HI)
    chunks = raised.value.chunks  # type: ignore[attr-defined]
    assert [chunk.choices[0].delta.content for chunk in chunks][:2] == ["", "a"]
    assert (await relay.wait_log(model=model))[0]["outcome"] == "upstream_cut"
    if where == "border":
        assert raised.value.code in ("upstream_truncated", "upstream_reset")


async def test_stalled_stream_raises(sdk: Sdk, shared_upstream: ScriptedUpstream, relay: RelayProcess, model: str) -> None:
    shared_upstream.route(model, sse([role(), content("a")], end="hang"))
    with pytest.raises(openai.APIError) as raised:
        await sdk.items(CHAT, model=model, messages=HI)
    assert raised.value.code == "stream_idle_timeout"
    assert (await relay.wait_log(model=model))[0]["outcome"] == "upstream_stalled"


async def test_error_event_in_a_stream_raises_what_the_upstream_said(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, streamed("openai-chat-stream-midstream-error.sse"))
    with pytest.raises(openai.APIError) as raised:
        await sdk.items(CHAT, model=model, messages=HI)
    events = [json.loads(line[6:]) for line in stream_bytes("openai-chat-stream-midstream-error.sse").splitlines() if b'"error"' in line]
    assert raised.value.body == events[-1]["error"]


async def test_error_as_the_first_event_is_an_honest_status(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    error = {"error": {"message": "slow down", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}}
    shared_upstream.route(model, sse([event(error), DONE]))
    with pytest.raises(openai.RateLimitError):
        await sdk.items(CHAT, model=model, messages=HI)


# Whole answers


@pytest.mark.parametrize(
    ("what", "name", "parameters"),
    [
        (CHAT, "openai-chat-nonstream.json", {"messages": HI}),
        (CHAT, "openai-chat-nonstream-tools.json", {"messages": HI}),
        ("moderations.create", "openai-moderations.json", {"input": "hi"}),
        ("embeddings.create", "openai-embeddings-base64.json", {"input": "hi"}),
        ("responses.create", "openai-responses-background-queued.json", {"input": "hi", "background": True}),
    ],
)
async def test_whole_answer_is_the_upstreams(
    sdk: Sdk, direct: Sdk, shared_upstream: ScriptedUpstream, what: str, name: str, parameters: dict[str, object]
) -> None:
    shared_upstream.route(name, answered(name))
    through, straight = await asyncio.gather(sdk.call(what, model=name, **parameters), direct.call(what, model=name, **parameters))
    assert through.model_dump() == straight.model_dump()
    assert type(through) is type(straight)
    assert through.model_dump(exclude_unset=True).keys() >= {key for key in answer_of(name) if key != "data"}  # type: ignore[attr-defined]


async def test_embeddings_as_base64_and_as_numbers(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, answered("openai-embeddings-base64.json"))
    packed = await sdk.call("embeddings.create", model=model, input="hi")
    assert packed.data[0].embedding == [1.0, 0.0, -1.0]
    assert shared_upstream.of(model)[0].json()["encoding_format"] == "base64"
    numbers = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -2.5]}], "model": model}
    shared_upstream.route(model, json_answer({**numbers, "usage": {"prompt_tokens": 1, "total_tokens": 1}}))
    plain = await sdk.call("embeddings.create", model=model, input=["hi"], encoding_format="float")
    assert plain.data[0].embedding == [0.25, -2.5]


async def test_raw_response_shows_the_upstreams_headers(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, answered("openai-chat-nonstream.json"))
    response = await sdk.call("chat.completions.with_raw_response.create", model=model, messages=HI)
    assert response.headers["x-request-id"] == response.request_id == "req_ae3c59cd7df34e978057035f370e04be"
    assert response.headers["x-ratelimit-limit-requests"] == "3000"
    assert response.headers["openai-processing-ms"] == "23"
    assert response.headers["x-relay-upstream"] == "openai"
    assert response.headers["x-relay-attempts"] == "1"
    assert response.http_response.content == json.dumps(answer_of("openai-chat-nonstream.json")).encode()


async def test_legacy_completion(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    whole = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": model}
    shared_upstream.route(
        model, json_answer({**whole, "choices": [{"text": "yes", "index": 0, "logprobs": None, "finish_reason": "stop"}]})
    )
    assert (await sdk.call("completions.create", model=model, prompt="hi")).choices[0].text == "yes"
    shared_upstream.route(model, streamed("openai-completions-stream.sse"))
    chunks = await sdk.items("completions.create", model=model, prompt="hi")
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == EXPECTED["openai-completions-stream.sse"]["text"]


async def test_models_are_the_routes_and_their_upstreams_lists(sdk: Sdk, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("/v1/models", answered("openai-models.json"))
    listed = [model.id for model in (await sdk.call("models.list")).data]
    assert {"openai/gpt-4o-mini", "demo/demo", "demo/demo-fast"} <= set(listed)
    assert (await sdk.call("models.retrieve", "demo/demo")).id == "demo/demo"
    with pytest.raises(openai.NotFoundError):
        await sdk.call("models.retrieve", "nobody/nothing")


# The Responses API


@pytest.mark.parametrize("name", ["openai-responses-stream-text.sse", "openai-responses-stream-tools-reasoning.sse"])
async def test_responses_stream_reads_the_same(sdk: Sdk, direct: Sdk, shared_upstream: ScriptedUpstream, name: str) -> None:
    shared_upstream.route(name, streamed(name))
    through, straight = await asyncio.gather(
        sdk.items("responses.create", model=name, input="hi"), direct.items("responses.create", model=name, input="hi")
    )
    assert [item.model_dump() for item in through] == [item.model_dump() for item in straight]
    assert through[-1].type == "response.completed"


async def test_responses_incomplete_is_an_end(sdk: Sdk, shared_upstream: ScriptedUpstream, relay: RelayProcess, model: str) -> None:
    shared_upstream.route(model, streamed("openai-responses-stream-incomplete.sse"))
    items = await sdk.items("responses.create", model=model, input="hi")
    assert items[-1].type == "response.incomplete"
    assert (await relay.wait_log(model=model))[0]["outcome"] == "complete"


async def test_responses_stream_without_an_end_raises(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, sse(events_of(stream_bytes("openai-responses-stream-text.sse"))[:-1]))
    with pytest.raises(openai.APIError):
        await sdk.items("responses.create", model=model, input="hi")


async def test_stored_response_is_found_again(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    made = {**answer_of("openai-responses-background-queued.json"), "id": f"resp_{sdk.flavour}"}  # type: ignore[dict-item]
    shared_upstream.route(model, json_answer(made))
    shared_upstream.route(f"/v1/responses/{made['id']}", json_answer(made))
    created = await sdk.call("responses.create", model=f"dashscope/{model}", input="hi", background=True)
    found = await sdk.call("responses.retrieve", created.id)
    assert found.id == created.id
    assert shared_upstream.of(f"/v1/responses/{made['id']}")[0].header("authorization") == b"Bearer sk-dashscope"


# Errors


async def test_unknown_key_is_an_authentication_error(relay: RelayProcess, sdk: Sdk) -> None:
    async with Sdk(sdk.flavour, relay.url, "sk-nobody") as stranger:
        with pytest.raises(openai.AuthenticationError) as raised:
            await stranger.call(CHAT, model="m", messages=HI)
    assert raised.value.code == "invalid_api_key"
    assert raised.value.request_id


@pytest.mark.parametrize(("name", "kind"), REFUSALS.items())
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_upstreams_error_is_the_same_exception(
    sdk: Sdk, direct: Sdk, shared_upstream: ScriptedUpstream, name: str, kind: type[openai.APIStatusError], is_stream: bool
) -> None:
    shared_upstream.route(name, answered(name))
    raised = []
    for client in (sdk, direct):
        with pytest.raises(kind) as caught:
            await client.call(CHAT, model=name, messages=HI, stream=is_stream)
        raised.append(caught.value)
    through, straight = raised
    assert (through.status_code, through.body, str(through)) == (straight.status_code, straight.body, str(straight))
    for header in ("retry-after", "retry-after-ms", "x-ratelimit-remaining-requests"):
        if name == "dashscope-compat-429-burst.json" and header != "x-ratelimit-remaining-requests":
            continue
        assert through.response.headers.get(header) == straight.response.headers.get(header)
    # Waiting brings no money back: the SDK is told so, whatever the upstream leaves out. Where it helps, that is said, too.
    told = {"openai-429-insufficient-quota.json": "false", "dashscope-compat-429-burst.json": "true"}
    assert through.response.headers.get("x-should-retry") == told.get(name)


async def test_wrong_credential_of_the_relay_is_not_the_callers_fault(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, answered("openai-401.json"))
    with pytest.raises(openai.InternalServerError) as raised:
        await sdk.call(CHAT, model=model, messages=HI)
    assert (raised.value.status_code, raised.value.code) == (502, "upstream_auth_error")


async def test_html_answer_raises(sdk: Sdk, shared_upstream: ScriptedUpstream, model: str) -> None:
    shared_upstream.route(model, respond(200, [("Content-Type", "text/html")], b"<html>welcome</html>"))
    with pytest.raises(openai.InternalServerError) as raised:
        await sdk.call(CHAT, model=model, messages=HI)
    assert raised.value.code == "upstream_bad_response"


async def test_retries_of_the_sdk_reach_the_upstream_again(
    relay: RelayProcess, sdk: Sdk, shared_upstream: ScriptedUpstream, model: str
) -> None:
    shared_upstream.route(model, error_answer(429, headers=[("retry-after-ms", "20")]))
    with pytest.raises(openai.RateLimitError):
        await sdk.with_retries(1).call(CHAT, model=model, messages=HI)
    assert len(shared_upstream.of(model)) == 2


# The demo upstream


async def test_demo_streams_and_answers_whole(sdk: Sdk) -> None:
    said = [{"role": "user", "content": "say: one two three"}]
    chunks, whole = await asyncio.gather(
        sdk.items(CHAT, model="demo/demo-fast", messages=said, stream_options={"include_usage": True}),
        sdk.call(CHAT, model="demo/demo-fast", messages=said),
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content == "one two three"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens > 0


async def test_demo_serves_the_other_endpoints(sdk: Sdk) -> None:
    embedded, moderated, response, completed = await asyncio.gather(
        sdk.call("embeddings.create", model="demo/demo-fast", input=["a", "b"]),
        sdk.call("moderations.create", model="demo/demo-fast", input="a"),
        sdk.items("responses.create", model="demo/demo-fast", input="say: yes"),
        sdk.call("completions.create", model="demo/demo-fast", prompt="say: yes"),
    )
    assert len(embedded.data) == 2
    assert moderated.results[0].flagged is False
    assert response[-1].response.output_text == "yes"
    assert completed.choices[0].text == "yes"


DEMO_FAULTS: list[tuple[str, type[openai.APIError], str]] = [
    ("cut after 3", openai.APIError, "upstream_truncated"),
    ("stall after 2", openai.APIError, "stream_idle_timeout"),
    ("error after 2", openai.APIError, "demo_error"),
    ("fail: 429", openai.RateLimitError, "demo_failure"),
    ("fail: 500", openai.InternalServerError, "demo_failure"),
    ("fail: 400", openai.BadRequestError, "demo_failure"),
]


async def test_demo_faults_show_themselves(sdk: Sdk) -> None:
    async def check(prompt: str, kind: type[openai.APIError], code: str) -> None:
        with pytest.raises(kind) as raised:
            await sdk.items(CHAT, model="demo/demo-fast", messages=[{"role": "user", "content": prompt}])
        assert raised.value.code == code
        if "after" in prompt:
            tokens = [chunk for chunk in raised.value.chunks if chunk.choices[0].delta.content]  # type: ignore[attr-defined]
            assert len(tokens) == int(prompt.rpartition(" ")[2])

    await asyncio.gather(*(check(*fault) for fault in DEMO_FAULTS))


async def test_accounts_are_in_order_afterwards(relay: RelayProcess) -> None:
    await relay.assert_identities()
