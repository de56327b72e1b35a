"""Usage of streams that did not ask for it: told to the relay, kept from the client, every other byte as it came."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.end_to_end.sdk import Sdk
from tests.fakes.client import Response
from tests.fakes.events import DONE, chat_chunk, chat_stream, content, role
from tests.fakes.scripts import after, error_answer, sse
from tests.fakes.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
EVENTS = chat_stream("a", "b", "c", usage=(10, 3))
USAGE = chat_chunk(usage=(10, 3))
WITHOUT = b"".join(chat_stream("a", "b", "c"))
WITH = b"".join(EVENTS)


@pytest.fixture
async def strict() -> AsyncIterator[ScriptedUpstream]:
    """An upstream that refuses stream_options."""
    async with ScriptedUpstream() as upstream:
        yield upstream


def config(upstream: ScriptedUpstream, other: ScriptedUpstream | None = None, **route: Any) -> dict[str, Any]:
    strict = {} if other is None else {"strict": {"base_url": other.url, "api_key": "sk-s", "no_stream_options": True}}
    return {
        "upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}, **strict},
        "routes": {"fast": {"to": ["mine/m", *(["strict/m"] if strict else [])], **route}},
        "keys": {"alice": {"key": "sk-alice", "limits": {"tpm": 100_000}}, "bob": {"key": "sk-bob"}},
    }


async def stream(relay: RelayInLoop, key: str = "sk-alice", **more: Any) -> Response:
    asked = {"model": "fast", "messages": [{"role": "user", "content": "hi"}], "stream": True, **more}
    return await relay.post(CHAT, asked, [("Authorization", f"Bearer {key}")])


async def test_a_key_with_limits_is_told_nothing_it_did_not_ask_for(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse(EVENTS))
    async with relay_in_loop(config(upstream), tmp_path) as relay:
        response = await stream(relay)
        assert (response.status, response.end, response.body) == (200, "complete", WITHOUT)
        assert response.header("x-relay-rewritten") == b"usage"
        assert upstream.requests[0].json()["stream_options"] == {"include_usage": True}
        metrics = await relay.settled()
        (line,) = relay.logs("request")
        assert (line["outcome"], line["tokens_in"], line["tokens_out"], line["tokens_source"]) == ("complete", 10, 3, "reported")
        assert metrics.value("relay_stream_fidelity_total", mode="rewritten", why="usage") == 1
        assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="tpm") == pytest.approx(13 / 100_000)
        await relay.assert_identities()


@pytest.mark.parametrize("options", [{"include_usage": False}, {"include_usage": None}, {}, None])
async def test_what_else_stands_in_stream_options_stays(upstream: ScriptedUpstream, tmp_path: Path, options: dict[str, Any] | None) -> None:
    upstream.answers(sse(EVENTS))
    async with relay_in_loop(config(upstream), tmp_path) as relay:
        more = None if options is None else {**options, "include_obfuscation": False}
        assert (await stream(relay, stream_options=more)).body == WITHOUT
        assert upstream.requests[0].json()["stream_options"] == {**(more or {}), "include_usage": True}


async def test_who_asks_gets_it_and_who_has_no_limits_is_left_alone(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse(EVENTS))
    async with relay_in_loop(config(upstream), tmp_path) as relay:
        asking = await stream(relay, stream_options={"include_usage": True})
        assert (asking.body, asking.header("x-relay-rewritten")) == (WITH, None)
        free = await stream(relay, "sk-bob")
        assert (free.body, free.header("x-relay-rewritten")) == (WITH, None)
        assert "stream_options" not in upstream.requests[1].json()
        assert (await relay.settled()).value("relay_stream_fidelity_total", mode="exact") == 2


async def test_a_route_may_ask_for_everybody(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse(EVENTS))
    async with relay_in_loop(config(upstream, usage="always"), tmp_path) as relay:
        assert (await stream(relay, "sk-bob")).body == WITHOUT
        assert upstream.requests[0].json()["stream_options"] == {"include_usage": True}
        await relay.settled()
        assert relay.logs("request")[0]["tokens_source"] == "reported"


async def test_an_upstream_that_refuses_the_option_is_not_asked(
    upstream: ScriptedUpstream, strict: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.answers(error_answer(503))
    strict.answers(sse(EVENTS))
    async with relay_in_loop(config(upstream, strict), tmp_path) as relay:
        response = await stream(relay)
        assert (response.body, response.header("x-relay-rewritten")) == (WITH, None), "what it tells unasked is its own"
        assert "stream_options" in upstream.requests[0].json()
        assert "stream_options" not in strict.requests[0].json()


async def test_cut_anywhere_by_the_network_the_same_bytes_are_left(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    start = WITH.index(USAGE)
    places = range(start - 2, start + len(USAGE) + len(DONE) + 1, 9)
    async with relay_in_loop(config(upstream), tmp_path) as relay:
        for place in places:
            upstream.answers(sse([WITH[:place], WITH[place:]], pause=0.001))
            response = await stream(relay)
            assert (response.body, response.end) == (WITHOUT, "complete"), place


@pytest.mark.parametrize("is_half", [False, True])
async def test_a_break_ends_the_stream_as_ever(upstream: ScriptedUpstream, tmp_path: Path, is_half: bool) -> None:
    begun = [role(), content("a"), *([content("b")[:30]] if is_half else [])]
    upstream.answers(sse(begun, end="fin"))
    async with relay_in_loop(config(upstream), tmp_path) as relay:
        response = await stream(relay)
        assert response.end == "cut" and response.body.startswith(b"".join(begun))
        assert (b"upstream_truncated" in response.body) is not is_half
        await relay.settled()
        assert relay.logs("request")[0]["outcome"] == "upstream_cut"


async def test_usage_as_the_only_event_leaves_an_empty_answer(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse([USAGE, DONE]))
    async with relay_in_loop(config(upstream), tmp_path) as relay:
        response = await stream(relay)
        assert (response.status, response.body, response.end) == (200, DONE, "complete")


@pytest.mark.parametrize("flavour", ["sync", "async"])
async def test_the_sdk_sees_no_chunk_without_choices(upstream: ScriptedUpstream, tmp_path: Path, flavour: Any) -> None:
    upstream.answers(sse(EVENTS))
    asked: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
    async with relay_in_loop(config(upstream), tmp_path) as relay, Sdk(flavour, f"http://127.0.0.1:{relay.port}/v1") as sdk:
        chunks = await sdk.items("chat.completions.create", **asked)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "abc"
        told = await sdk.items("chat.completions.create", **asked, stream_options={"include_usage": True})
        assert told[-1].usage.completion_tokens == 3


async def test_heartbeats_go_on_between_events(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(after(0.3, sse(EVENTS)))
    beating = {"heartbeat": {"after": "100ms", "every": "50ms"}}
    async with relay_in_loop(config(upstream, **beating), tmp_path) as relay:
        response = await stream(relay)
        assert response.body.replace(b": relay\n", b"") == WITHOUT
        assert response.body.startswith(b": relay\n")
