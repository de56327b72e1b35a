"""Clocks and culprits against a scripted upstream and a slow reader whose times are known."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.fakes.client import RawClient
from tests.fakes.events import DONE, chat_chunk, content, event, role
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import EVENT_STREAM, Script, head
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
STEP = 0.4
"""Between two steps of a script: more than twice what a clock may be off."""
OFF = 0.15
"""What a clock may be off, seconds, on a machine that is busy with something else."""
ORDER = (
    "admitted",
    "sent",
    "head",
    "first_event",
    "first_reasoning",
    "first_content",
    "first_content_written",
    "last_content",
    "terminal",
)

USAGE = chat_chunk(usage=(3, 4))
THINKING = chat_chunk({"reasoning_content": "hm"})
CALL = chat_chunk({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]})
FINISH = chat_chunk(finish="stop")


def timed(steps: Sequence[tuple[float, bytes]], sent: list[float] | None = None) -> Script:
    """Send each piece at its time after the request; times are kept, they do not add up. `sent` gets when it really was."""

    async def script(peer: Peer) -> None:
        began = asyncio.get_running_loop().time()
        for number, (at, piece) in enumerate(steps):
            await asyncio.sleep(max(began + at - asyncio.get_running_loop().time(), 0.0))
            if number == 0:
                await peer.send(head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]))
            if sent is not None:
                sent.append(asyncio.get_running_loop().time() - began)
            if piece:
                await peer.send_chunk(piece)
        await peer.send(b"0\r\n\r\n")

    return script


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    return await shared_relay_with(config_for(shared_upstream))


async def line_of(relay: RelayProcess, model: str) -> dict[str, Any]:
    (line,) = await relay.wait_log("request", model=model, within=10)
    return line


def at(number: int) -> float:
    return number * STEP


ANTHROPIC = (
    (1, event({"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 3}}}, name="message_start")),
    (
        2,
        event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, name="content_block_start")
        + event({"type": "ping"}, name="ping"),
    ),
    (
        3,
        event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}, name="content_block_delta"),
    ),
    (4, event({"type": "message_stop"}, name="message_stop")),
)

THINKING_FIRST = (
    (1, event({"type": "message_start", "message": {"id": "m", "content": []}}, name="message_start")),
    (2, event({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}, name="content_block_delta")),
    (3, event({"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f"}}, name="content_block_start")),
    (4, event({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}, name="message_delta")),
    (5, event({"type": "message_stop"}, name="message_stop")),
)


def typed(kind: str, **more: Any) -> bytes:
    return event({"type": kind, **more}, name=kind)


RESPONSES = (
    (1, typed("response.created", response={"id": "r", "status": "in_progress"})),
    (2, typed("response.in_progress", response={"id": "r", "status": "in_progress"})),
    (3, typed("response.reasoning_summary_text.delta", delta="hm")),
    (4, typed("response.output_text.delta", delta="a")),
    (5, typed("response.completed", response={"id": "r", "status": "completed"})),
)
RESPONSES_CALL = (
    (1, typed("response.created", response={"id": "r", "status": "in_progress"})),
    (2, typed("response.output_item.added", item={"type": "function_call", "name": "f", "arguments": ""})),
    (3, typed("response.completed", response={"id": "r", "status": "completed"})),
)

STREAMS: dict[str, tuple[str, Sequence[tuple[int, bytes]], dict[str, int]]] = {
    "role-first": (
        CHAT,
        ((1, b""), (2, role()), (3, content("a")), (4, content("b")), (5, FINISH + DONE)),
        {"head": 1, "first_event": 2, "first_content": 3, "last_content": 4, "terminal": 5},
    ),
    "reasoning-first": (
        CHAT,
        ((1, b": hello\n\n"), (2, THINKING), (3, content("a")), (4, FINISH + DONE)),
        {"head": 1, "first_event": 2, "first_reasoning": 2, "first_content": 2, "last_content": 3, "terminal": 4},
    ),
    "tool-call-first": (
        CHAT,
        ((1, role()), (2, CALL), (3, FINISH + DONE)),
        {"head": 1, "first_event": 1, "first_content": 2, "last_content": 2, "terminal": 3},
    ),
    "role-only": (CHAT, ((1, role()), (2, FINISH + DONE)), {"head": 1, "first_event": 1, "terminal": 2}),
    "usage-only": (CHAT, ((1, USAGE), (2, DONE)), {"head": 1, "first_event": 1, "terminal": 2}),
    "lifecycle-first": ("/v1/messages", ANTHROPIC, {"head": 1, "first_event": 1, "first_content": 3, "last_content": 3, "terminal": 4}),
    "thinking-first": (
        "/v1/messages",
        THINKING_FIRST,
        {"head": 1, "first_event": 1, "first_reasoning": 2, "first_content": 2, "last_content": 3, "terminal": 5},
    ),
    "responses-reasoning-first": (
        "/v1/responses",
        RESPONSES,
        {"head": 1, "first_event": 1, "first_reasoning": 3, "first_content": 3, "last_content": 4, "terminal": 5},
    ),
    "responses-call-first": (
        "/v1/responses",
        RESPONSES_CALL,
        {"head": 1, "first_event": 1, "first_content": 2, "last_content": 2, "terminal": 3},
    ),
    "refusal-first": (
        CHAT,
        ((1, role()), (2, chat_chunk({"refusal": "no"})), (3, FINISH + USAGE + DONE)),
        {"head": 1, "first_event": 1, "first_content": 2, "last_content": 2, "terminal": 3},
    ),
    "all-in-one-piece": (
        CHAT,
        ((1, b": hello\n\n"), (2, role() + content("a")), (3, FINISH + DONE)),
        {"head": 1, "first_event": 2, "first_content": 2, "last_content": 2, "terminal": 3},
    ),
}


@pytest.fixture(scope="module")
async def sent(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> dict[str, list[float]]:
    """Every stream, run, all at once: when each of its steps was sent, by its model."""
    times: dict[str, list[float]] = {}
    asked = []
    for model, (path, steps, _) in STREAMS.items():
        shared_upstream.route(model, timed([(at(number), piece) for number, piece in steps], times.setdefault(model, [])))
        asked.append(relay.post(path, {"model": model, "stream": True, "messages": []}))
    await asyncio.gather(*asked)
    return times


@pytest.mark.parametrize("model", STREAMS)
async def test_each_clock_shows_when_it_happened(model: str, relay: RelayProcess, sent: dict[str, list[float]]) -> None:
    expected = STREAMS[model][2]
    line = await line_of(relay, model)
    clocks = line["clocks_ms"]
    assert line["outcome"] == "complete"
    for name, number in expected.items():
        assert clocks[name] / 1000 == pytest.approx(sent[model][number - 1], abs=OFF), (name, clocks)
    written = expected.get("first_content")
    assert ("first_content_written" in clocks) is (written is not None) is (line["ttft_ms"] is not None)
    if written is not None:
        assert line["ttft_ms"] / 1000 == pytest.approx(sent[model][written - 1], abs=OFF)
    assert set(clocks) == {*expected, "admitted", "sent", *(("first_content_written",) if written is not None else ())}
    in_order = [clocks[name] for name in ORDER if name in clocks and name != "last_content"]
    assert in_order == sorted(in_order)


async def test_the_upstreams_own_time_to_first_token_begins_anew_with_each_attempt(
    upstream: ScriptedUpstream, tmp_path: Path, relay_with: RelayWith
) -> None:
    async with ScriptedUpstream() as second:

        async def late_refusal(peer: Peer) -> None:
            await asyncio.sleep(at(2))
            await peer.send(head(503, [("Content-Length", "0")]))

        upstream.answers(late_refusal)
        second.answers(timed([(at(1), content("a")), (at(2), DONE)]))
        relay = await relay_with(
            {
                "upstreams": {
                    "first": {"base_url": upstream.url, "api_key": "sk-a"},
                    "second": {"base_url": second.url, "api_key": "sk-b"},
                },
                "routes": {"fast": ["first/a", "second/b"]},
            }
        )
        await relay.post(CHAT, {"model": "fast", "stream": True, "messages": []})
        metrics = await relay.settled()
    assert metrics.value("relay_time_to_first_token_seconds_sum", upstream="second") == pytest.approx(at(3), abs=STEP)
    assert metrics.value("relay_upstream_time_to_first_token_seconds_sum", upstream="second") == pytest.approx(at(1), abs=STEP)
    assert metrics.value("relay_upstream_time_to_first_token_seconds_count") == 1


# Culprits


async def test_a_silent_upstream_is_to_blame(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("silent", timed([(0.0, content("a")), (1.3, content("b")), (1.5, DONE)]))
    await relay.post(CHAT, {"model": "silent", "stream": True, "messages": []})
    line = await line_of(relay, "silent")
    assert line["stalls"] == ["upstream"]
    assert line["gaps_ms"]["upstream"] / 1000 == pytest.approx(1.5, abs=OFF)
    assert line["gaps_ms"]["client"] == 0


async def test_silence_before_the_first_content_is_no_gap(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.route("slow-start", timed([(1.2, content("a")), (1.4, DONE)]))
    await relay.post(CHAT, {"model": "slow-start", "stream": True, "messages": []})
    line = await line_of(relay, "slow-start")
    assert line["stalls"] == []
    assert line["gaps_ms"]["upstream"] / 1000 == pytest.approx(0.2, abs=OFF)


async def test_an_upstream_that_never_goes_on_is_to_blame(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(timed([(0.0, content("a")), (30.0, DONE)]))
    relay = await relay_with(config_for(upstream, timeouts={"between_tokens": "1200ms"}))
    await relay.post(CHAT, {"model": "never", "stream": True, "messages": []})
    line = await line_of(relay, "never")
    assert (line["outcome"], line["stalls"]) == ("upstream_stalled", ["upstream"])
    metrics = await relay.settled()
    assert metrics.value("relay_stalls_total", route="*", blame="upstream") == 1
    assert metrics.value("relay_gap_seconds_total", route="*", blame="upstream") == pytest.approx(1.2, abs=1.2)
    assert metrics.has("relay_stalls_total", route="*", blame="client")


async def test_a_client_that_does_not_read_is_to_blame(relay: RelayProcess, shared_upstream: ScriptedUpstream) -> None:
    piece = content("x" * 65_000)
    shared_upstream.route("flood", timed([(0.0, piece)] * 200 + [(0.0, DONE)]))
    client = await relay.connect(receive_buffer=65_536)
    async with client:
        await client.post(CHAT, {"model": "flood", "stream": True, "messages": []})
        await client.read_head()
        client.pause()
        began = time.monotonic()
        await stands_still(shared_upstream, "flood")
        await asyncio.sleep(1.3)  # the stall itself
        stood = time.monotonic() - began
        client.resume()
        await client.read_until(b"[DONE]", within=30)
    line = await line_of(relay, "flood")
    assert "client" in line["stalls"] and "upstream" not in line["stalls"], line["stalls"]
    assert line["gaps_ms"]["client"] / 1000 >= 1.3 - OFF
    assert line["gaps_ms"]["upstream"] / 1000 < stood


async def stands_still(upstream: ScriptedUpstream, model: str) -> None:
    """Wait until the upstream gets rid of nothing more."""
    sent = -1
    async with asyncio.timeout(10):
        connection = upstream.of(model)[0].connection
        while sent != (sent := connection.sent_bytes) or not connection.is_paused:
            await asyncio.sleep(0.1)


@pytest.fixture
async def own(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[RelayInLoop]:
    async with relay_in_loop(config_for(upstream), tmp_path) as relay:
        yield relay


async def test_a_loop_that_stands_still_is_the_relays_fault(own: RelayInLoop, upstream: ScriptedUpstream) -> None:
    upstream.answers(timed([(0.0, content("a")), (0.2, content("b")), (0.4, DONE)]))
    async with await RawClient.open(own.port) as client:
        await client.post(CHAT, {"model": "blocked", "stream": True, "messages": []})
        await client.read_until(b'"a"')
        time.sleep(1.5)  # that is what is tested
        await client.read_until(b"[DONE]")
    line = await line_of(own, "blocked")
    assert line["stalls"] == ["relay"]
    assert line["gaps_ms"]["relay"] / 1000 == pytest.approx(1.5, abs=0.3)
