"""The demo upstream: its script without a socket, then its server with the faults on a real connection."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.demo import MODELS, Ending, Reply, reply
from relay.demo.words import read_wishes
from relay.transport.demo import DemoServer
from tests.conftest import Connect
from tests.fakes.client import RawClient, Response

CHAT = "/v1/chat/completions"
PATHS = [CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations"]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def ask(path: str, body: object, method: str = "POST") -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return reply(method, path, raw, now=1_700_000_000, id="0123")


def chat(prompt: str, **more: object) -> Reply:
    return ask(CHAT, {"model": "demo", "messages": [{"role": "user", "content": prompt}], **more})


def whole(made: Reply) -> dict[str, Any]:
    value = json.loads(b"".join(step.data for step in made.steps))
    assert isinstance(value, dict)
    return value


def events(made: Reply) -> list[dict[str, Any]]:
    """The JSON of every event but `[DONE]`."""
    lines = [line for step in made.steps for line in step.data.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line[6:]) for line in lines if line != b"data: [DONE]"]


def text(made: Reply) -> str:
    deltas = [event["choices"][0]["delta"] for event in events(made) if event.get("choices")]
    return "".join(delta.get("content") or "" for delta in deltas)


# The script.


def test_answer_says_that_it_is_simulated_and_lists_the_wishes() -> None:
    answer = whole(chat("hello"))
    said = answer["choices"][0]["message"]["content"]
    assert "simulated" in said
    assert all(
        phrase in said for phrase in ("fail: 429", "cut after 5", "stall after 3", "error after 4", "slow 2s", "say: TEXT", "use the tool")
    )
    assert "simulated" in answer["system_fingerprint"]


def test_models_are_labelled_as_simulated() -> None:
    answer = whole(reply("GET", "/v1/models", b"", now=1, id="x"))
    assert [model["id"] for model in answer["data"]] == ["demo", "demo-fast", "demo-reasoner"]
    assert {model["owned_by"] for model in answer["data"]} == {"relay-demo (simulated)"}
    assert whole(reply("GET", "/v1/models/demo", b"", now=1, id="x")) == {**answer["data"][0], "created": 1}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/models/gpt-9", 404), ("POST", "/v1/files", 404), ("GET", CHAT, 405), ("DELETE", "/v1/responses", 405)],
)
def test_what_the_demo_does_not_have_is_an_error(method: str, path: str, status: int) -> None:
    assert ask(path, {}, method).status == status


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"\xff", b'"x"', b"[" * 100_000, b'{"messages":' + b'[{"content":' * 400 + b"1" + b"}]" * 400 + b"}"]
)
def test_unreadable_body_is_answered_400_or_served(body: bytes) -> None:
    assert ask(CHAT, body).status in (400, 200)


@given(st.binary(max_size=60), st.sampled_from(PATHS))
def test_no_bytes_make_the_script_raise(body: bytes, path: str) -> None:
    assert ask(path, body).status >= 200


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text", "type", "name", "function"]), inner)
    ),
    max_leaves=8,
)
MEMBERS = [
    "model",
    "messages",
    "input",
    "prompt",
    "stream",
    "tools",
    "tool_choice",
    "stream_options",
    "max_tokens",
    "dimensions",
    "encoding_format",
]


@given(st.dictionaries(st.sampled_from(MEMBERS), JSON_VALUES), st.sampled_from(PATHS))
def test_no_json_makes_the_script_raise(body: dict[str, object], path: str) -> None:
    assert ask(path, body).status in (200, 400)


def test_stream_ends_with_finish_usage_and_done() -> None:
    made = chat("say: one two", stream=True, stream_options={"include_usage": True})
    assert made.steps[-1].data == b"data: [DONE]\n\n"
    *chunks, finish, usage = events(made)
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 2)
    assert all(chunk["usage"] is None for chunk in [*chunks, finish])
    assert text(made) == "one two"


def test_stream_without_include_usage_never_names_usage() -> None:
    assert all("usage" not in event for event in events(chat("hi", stream=True)))


@pytest.mark.parametrize("said", ["one two three", "x" * 100, "ein  doppelter\tAbstand", "日本語のテキストを話します"])
def test_said_text_comes_back_exactly(said: str) -> None:
    assert text(chat(f"please say: {said}", stream=True)) == said


def test_token_limit_ends_the_answer_with_length() -> None:
    answer = whole(chat("hi", max_tokens=3))
    assert (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) == ("This answer is", "length")


def test_pace_is_the_models_and_slow_moves_the_first_token() -> None:
    def pace(model: str, prompt: str) -> tuple[float, float]:
        steps = ask(CHAT, {"model": model, "stream": True, "messages": [{"role": "user", "content": prompt}]}).steps
        return steps[0].after, steps[3].after

    assert pace("demo", "hi") == (0.25, 1 / 40)
    assert pace("demo-fast", "hi") == (0, 1 / 200)
    assert pace("demo", "slow 2s") == (2, 1 / 40)
    assert pace("demo-fast", "Slow 150 ms") == (0.15, 1 / 200)


def test_unknown_model_is_served_and_the_answer_names_the_demo() -> None:
    answer = whole(ask(CHAT, {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}))
    assert answer["model"] == "demo"


def test_reasoner_thinks_before_it_speaks() -> None:
    made = ask(CHAT, {"model": "demo-reasoner", "stream": True, "messages": [{"role": "user", "content": "say: x"}]})
    kinds = [next(iter(event["choices"][0]["delta"]), "finish") for event in events(made)]
    assert kinds[0] == "role"
    assert kinds[-2:] == ["content", "finish"]
    assert set(kinds[1:-2]) == {"reasoning_content"}


@pytest.mark.parametrize("prompt", ["use the tool", "now USE THE TOOL please"])
def test_tool_is_called_when_the_prompt_asks_for_it(prompt: str) -> None:
    (call,) = whole(chat(prompt, tools=[TOOL]))["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "demo", "days": 1})


def test_tool_call_streams_its_arguments_in_pieces() -> None:
    made = chat("use the tool", tools=[TOOL], stream=True)
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in events(made) if "tool_calls" in event["choices"][0]["delta"]]
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert len(calls) > 2
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "demo", "days": 1}
    assert events(made)[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_tool_is_not_called_without_the_phrase_or_after_its_result() -> None:
    assert whole(chat("hi", tools=[TOOL]))["choices"][0]["message"]["content"]
    messages = [{"role": "user", "content": "use the tool"}, {"role": "tool", "content": "42", "tool_call_id": "x"}]
    assert whole(ask(CHAT, {"messages": messages, "tools": [TOOL]}))["choices"][0]["finish_reason"] == "stop"


def test_wishes_are_read_from_the_last_user_message_only() -> None:
    messages = [{"role": "user", "content": "fail: 500"}, {"role": "assistant", "content": "fail: 501"}, {"role": "user", "content": "hi"}]
    assert ask(CHAT, {"messages": messages}).status == 200


def test_what_is_to_be_said_is_not_searched_for_wishes() -> None:
    wishes = read_wishes("slow 1s and say: fail: 429 cut after 2")
    assert (wishes.fail, wishes.fault, wishes.first_token_seconds, wishes.say) == (None, None, 1, "fail: 429 cut after 2")


@pytest.mark.parametrize("prompt", ["fail: 399", "fail: 600", "fail: 4290", "cut after", "cut after x", "slowly 2s", "unsay it"])
def test_near_misses_are_no_wishes(prompt: str) -> None:
    assert read_wishes(prompt) == read_wishes("")


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 599])
@pytest.mark.parametrize("path", PATHS)
def test_fail_answers_with_that_status_on_every_endpoint(path: str, status: int) -> None:
    field: dict[str, object] = {
        CHAT: {"messages": [{"role": "user", "content": f"fail: {status}"}]},
        "/v1/completions": {"prompt": f"fail: {status}"},
    }
    made = ask(path, field.get(path, {"input": f"please fail: {status}"}))
    assert made.status == status
    assert whole(made)["error"]["code"] == "demo_failure"
    assert (("Retry-After", "1") in made.headers) == (status in (429, 503))


@pytest.mark.parametrize(("wish", "ending"), [("cut", Ending.CUT), ("stall", Ending.STALL), ("error", Ending.CLEAN)])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_fault_comes_after_that_many_tokens_and_without_done(wish: str, ending: Ending, after: int) -> None:
    made = chat(f"{wish} after {after}", stream=True)
    assert made.ending is ending
    shown = [event for event in events(made) if event.get("choices") and event["choices"][0]["delta"].get("content")]
    assert len(shown) == after
    assert made.steps[-1].data != b"data: [DONE]\n\n"
    assert ("error" in events(made)[-1]) == (wish == "error")


def test_fault_past_the_end_strikes_before_the_finish() -> None:
    made = chat("cut after 999, say: one two", stream=True)
    assert (text(made), made.ending) == ("one two", Ending.CUT)
    assert events(made)[-1]["choices"][0]["finish_reason"] is None


def test_content_parts_are_read_too() -> None:
    content = [{"type": "text", "text": "fail: 418"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    assert ask(CHAT, {"messages": [{"role": "user", "content": content}]}).status == 418
    assert ask("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "fail: 418"}]}]}).status == 418


def test_embeddings_depend_on_the_text_alone_and_have_unit_length() -> None:
    first, second, third = (item["embedding"] for item in whole(ask("/v1/embeddings", {"input": ["a", "b", "a"], "dimensions": 8}))["data"])
    assert first == third != second
    assert len(first) == 8
    assert sum(value * value for value in first) == pytest.approx(1)


def test_packed_embeddings_hold_the_same_numbers() -> None:
    numbers = whole(ask("/v1/embeddings", {"input": "a"}))["data"][0]["embedding"]
    packed = whole(ask("/v1/embeddings", {"input": "a", "encoding_format": "base64"}))["data"][0]["embedding"]
    assert struct.unpack("<16f", base64.b64decode(packed)) == pytest.approx(numbers)


def test_embeddings_are_bounded() -> None:
    assert ask("/v1/embeddings", {"input": ["a"] * 2049}).status == 400
    assert ask("/v1/embeddings", {"input": ["a"] * 2048, "dimensions": 3072}).status == 400


def test_responses_stream_is_numbered_and_ends_completed() -> None:
    got = events(ask("/v1/responses", {"input": "say: one two", "stream": True}))
    assert [event["sequence_number"] for event in got] == list(range(len(got)))
    assert [event["type"] for event in got][:2] == ["response.created", "response.in_progress"]
    assert "".join(event["delta"] for event in got if event["type"] == "response.output_text.delta") == "one two"
    assert (got[-1]["type"], got[-1]["response"]["usage"]["output_tokens"]) == ("response.completed", 2)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_responses_error_is_a_failed_response_with_the_next_number(after: int) -> None:
    got = events(ask("/v1/responses", {"input": f"error after {after}", "stream": True}))
    assert [event["sequence_number"] for event in got] == list(range(len(got)))
    assert got[-1]["type"] == "response.failed"
    assert sum(event["type"] == "response.output_text.delta" for event in got) == after


def test_responses_token_limit_ends_incomplete() -> None:
    answer = whole(ask("/v1/responses", {"input": "hi", "max_output_tokens": 2}))
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


# The server.


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[DemoServer]:
    server = DemoServer()
    yield server
    await server.stop()


@pytest.fixture(scope="module")
async def base_url(server: DemoServer) -> str:
    return await server.start()


async def talk(connect: Connect, base_url: str, prompt: str, **more: object) -> Response:
    client: RawClient = await connect(int(base_url.split(":")[2].split("/")[0]))
    return await client.exchange(CHAT, {"model": "demo-fast", "messages": [{"role": "user", "content": prompt}], **more})


async def test_stream_over_the_socket_is_complete_event_by_event(base_url: str, connect: Connect) -> None:
    answer = await talk(connect, base_url, "say: one two three", stream=True)
    assert (answer.status, answer.end, answer.framing) == (200, "complete", "chunked")
    assert answer.header("content-type") == b"text/event-stream; charset=utf-8"
    assert len(answer.chunks) == 1 + 3 + 2
    assert answer.has_done


async def test_cut_is_a_fin_without_the_terminal_chunk(base_url: str, connect: Connect) -> None:
    answer = await talk(connect, base_url, "cut after 3", stream=True)
    assert answer.end == "cut"
    assert len(answer.chunks) == 1 + 3
    assert not answer.has_done


async def test_cut_of_a_whole_answer_is_shorter_than_its_length(base_url: str, connect: Connect) -> None:
    answer = await talk(connect, base_url, "cut after 3 tokens", max_tokens=5)
    assert (answer.end, answer.framing) == ("cut", "length")


async def test_error_event_ends_cleanly_without_done(base_url: str, connect: Connect) -> None:
    answer = await talk(connect, base_url, "error after 2", stream=True)
    assert (answer.end, answer.has_done) == ("complete", False)
    assert b"demo_error" in answer.data[-1]


async def test_failure_has_its_status_and_retry_after(base_url: str, connect: Connect) -> None:
    answer = await talk(connect, base_url, "fail: 429", stream=True)
    assert (answer.status, answer.header("retry-after"), answer.error_code) == (429, b"1", "demo_failure")


async def test_stall_is_silence_that_ends_when_the_reader_leaves(base_url: str, server: DemoServer, connect: Connect) -> None:
    client = await connect(int(base_url.split(":")[2].split("/")[0]))
    await client.post(CHAT, {"model": "demo-fast", "stream": True, "messages": [{"role": "user", "content": "stall after 2"}]})
    await client.read_until(b" answer")
    with pytest.raises(TimeoutError):
        await client.read_until(b"never", within=0.1)
    assert server.answer_count == 1
    client.fin()
    async with asyncio.timeout(5):
        while server.answer_count:
            await asyncio.sleep(0.005)


async def test_head_request_has_no_body(base_url: str, connect: Connect) -> None:
    client = await connect(int(base_url.split(":")[2].split("/")[0]))
    await client.request("HEAD", "/v1/models")
    answer = await client.read_response(method="HEAD")
    assert (answer.status, bytes(client.inbox)) == (200, b"")


async def test_ordinary_library_lists_the_models(base_url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(base_url + "/models") as answer:
        assert {model["id"] for model in (await answer.json())["data"]} == set(MODELS)


async def test_official_sdk_reads_every_endpoint(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-any", max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(
            model="demo-fast", messages=[{"role": "user", "content": "say: one two"}], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two"
        assert chunks[-1].usage is not None
        assert (await sdk.completions.create(model="demo-fast", prompt="say: one")).choices[0].text == "one"
        assert len((await sdk.embeddings.create(model="demo", input="a")).data[0].embedding) == 16
        assert not (await sdk.moderations.create(input="a")).results[0].flagged
        assert (await sdk.responses.create(model="demo-fast", input="say: one")).output_text == "one"
        typed = [event async for event in await sdk.responses.create(model="demo-fast", input="say: one", stream=True)]
        assert typed[-1].type == "response.completed"
        assert (await sdk.models.retrieve("demo")).owned_by == "relay-demo (simulated)"


async def test_stopping_with_a_stream_open_closes_it_soon(connect: Connect) -> None:
    server = DemoServer()
    url = await server.start()
    client = await connect(int(url.split(":")[2].split("/")[0]))
    await client.post(CHAT, {"model": "demo-fast", "stream": True, "messages": [{"role": "user", "content": "stall after 1"}]})
    await client.read_until(b"This")
    async with asyncio.timeout(5):
        await server.stop()
        await client.read_until_close()
