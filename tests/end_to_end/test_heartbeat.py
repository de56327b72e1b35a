"""Comments for clients that give up on silence, over real sockets: real statuses within the grace period, whole events after it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from tests.end_to_end.in_loop import relay_in_loop
from tests.end_to_end.two_targets import CHAT, ask, at_rest, begin, config, running
from tests.fakes.client import Response
from tests.fakes.events import chat_stream, error
from tests.fakes.scripts import Script, after, error_answer, hang, json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

COMMENT = b": relay\n"
FIRST = chat_stream(*"abc")
SECOND = chat_stream(*"xyz")
SOON = {"heartbeat": {"after": "100ms", "every": "50ms"}}
LATE = 0.4
"""Well behind the grace period: a few comments have gone out by then."""


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        yield other


def without_comments(response: Response) -> bytes:
    """The body without our comments, which must have stood between events only."""
    events = response.body.split(b"\n\n")
    kept = []
    for event in events:
        while event.startswith(COMMENT):
            event = event[len(COMMENT) :]
        assert COMMENT.strip() not in event, event
        kept.append(event)
    return b"\n\n".join(kept)


def in_stream_error(response: Response) -> dict[str, object]:
    """The error that an answer of comments ends with."""
    assert (response.status, response.end) == (200, "cut")
    assert not response.has_done
    (data,) = response.data
    error = json.loads(data)["error"]
    assert isinstance(error, dict)
    return error


async def test_a_slow_answer_begins_with_comments_and_goes_on_unchanged(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(after(LATE, sse(FIRST)))
    async with running(tmp_path, {"one": upstream}, SOON) as relay:
        response = await relay.post(CHAT, ask())
        assert (response.status, response.end) == (200, "complete")
        assert response.body.startswith(COMMENT + COMMENT)
        assert without_comments(response) == b"".join(FIRST)
        assert response.header("content-type") == b"text/event-stream"
        assert response.header("x-relay-route") == b"fast"
        assert response.header("x-relay-request-id") == response.header("x-request-id") is not None
        assert response.header("x-relay-upstream") is None and response.header("x-relay-attempts") is None
        (line,) = await relay.wait_log(outcome="complete")
        assert line["status"] == 200
        metrics = await at_rest(relay)
        assert metrics.value("relay_stream_fidelity_total", mode="rewritten", why="heartbeat") == 1


@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_within_the_grace_period_a_status_is_real(upstream: ScriptedUpstream, tmp_path: Path, status: int) -> None:
    upstream.answers(error_answer(status))
    async with running(tmp_path, {"one": upstream}, {"heartbeat": {"after": "5s"}}) as relay:
        response = await relay.post(CHAT, ask())
        assert response.status == (502 if status == 401 else status)
        assert response.end == "complete"


async def test_a_quick_stream_is_untouched(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse(FIRST, pause=0.02))
    async with running(tmp_path, {"one": upstream}, {"heartbeat": {"after": "10s", "every": "10s"}}) as relay:
        response = await relay.post(CHAT, ask())
        assert response.body == b"".join(FIRST)
        assert response.header("x-relay-upstream") == b"one"
        metrics = await at_rest(relay)
        assert metrics.value("relay_stream_fidelity_total", mode="exact") == 1


FAILURES = {
    "refusal": error_answer(503),
    "error event": sse([b'data: {"error":{"message":"no","type":"server_error"}}\n\n']),
    "cut": sse(FIRST[:1], end="fin"),
    "an answer that is no stream": json_answer({"id": "x", "choices": []}),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_another_target_takes_over_in_a_begun_answer(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path, failure: Script
) -> None:
    upstream.answers(after(LATE, failure))
    second.answers(after(0.1, sse(SECOND)))
    async with running(tmp_path, {"one": upstream, "two": second}, SOON) as relay:
        response = await relay.post(CHAT, ask())
        assert (response.status, response.end) == (200, "complete")
        assert without_comments(response) == b"".join(SECOND)
        await relay.wait_log(outcome="complete", upstream="two")


@pytest.mark.parametrize(
    ("failure", "outcome", "message"),
    [
        (error_answer(400), "rejected", "scripted 400"),
        (error_answer(503), "upstream_failed", "scripted 503"),
        (error_answer(401), "upstream_failed", None),
        (sse(FIRST[:1], end="fin"), "upstream_failed", None),
        (sse([error("context_length_exceeded", type="invalid_request_error")]), "rejected", None),
        (json_answer({"id": "x", "choices": []}), "upstream_failed", None),
    ],
)
async def test_what_would_have_been_a_status_ends_a_begun_answer_as_an_error_event(
    upstream: ScriptedUpstream, tmp_path: Path, failure: Script, outcome: str, message: str | None
) -> None:
    upstream.answers(after(LATE, failure))
    async with running(tmp_path, {"one": upstream}, SOON) as relay:
        told = in_stream_error(await relay.post(CHAT, ask()))
        if message is not None:
            assert told["message"] == message
        (line,) = await relay.wait_log(outcome=outcome)
        assert line["status"] == 200
        assert "sk-one" not in json.dumps(told)


async def test_an_sdk_reads_over_comments_and_raises_on_the_error(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with running(tmp_path, {"one": upstream}, SOON) as relay, openai.AsyncOpenAI(base_url=relay.url, api_key="none") as client:
        upstream.answers(after(LATE, sse(FIRST)))
        stream = await client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == "abc"
        upstream.answers(after(LATE, error_answer(503)))
        stream = await client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "hi"}], stream=True)
        with pytest.raises(openai.APIError, match="scripted 503"):
            async for _ in stream:
                raise AssertionError("an event before the error")


async def test_the_responses_api_gets_its_own_kind_of_error(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(after(LATE, error_answer(400)))
    async with running(tmp_path, {"one": upstream}, SOON) as relay:
        response = await relay.post("/v1/responses", {"model": "fast", "input": "hi", "stream": True})
        assert b'event: error\ndata: {"type":"error","error":{"message":"scripted 400"' in response.body


async def test_a_silence_between_events_is_filled_and_one_inside_an_event_is_not(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    halves = (FIRST[2][:30], FIRST[2][30:])

    async def slow(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"".join(FIRST[:2]), *halves, b"".join(FIRST[3:])):
            await peer.send_chunk(piece)
            await asyncio.sleep(0.25)
        await peer.send(b"0\r\n\r\n")

    upstream.answers(slow)
    async with running(tmp_path, {"one": upstream}, SOON) as relay:
        response = await relay.post(CHAT, ask())
        assert without_comments(response) == b"".join(FIRST)
        assert FIRST[2] in response.body
        before, _, rest = response.body.partition(FIRST[2])
        assert COMMENT in before and COMMENT in rest
        assert not response.body.partition(b"[DONE]")[2].count(COMMENT)
        assert response.header("x-relay-upstream") == b"one"


@pytest.mark.parametrize("value", [ask(is_stream=False), {"model": "fast", "input": "hi"}])
async def test_answers_that_are_no_streams_are_waited_for(upstream: ScriptedUpstream, tmp_path: Path, value: dict[str, object]) -> None:
    upstream.answers(after(LATE, json_answer({"id": "x", "choices": []})))
    async with running(tmp_path, {"one": upstream}, SOON) as relay:
        response = await relay.post(CHAT if "messages" in value else "/v1/embeddings", value)
        assert response.header("content-type") == b"application/json"
        assert response.json()["id"] == "x"


async def test_a_client_that_leaves_a_begun_answer_ends_its_attempt(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(hang())
    async with running(tmp_path, {"one": upstream}, SOON) as relay:
        async with await begin(relay) as client:
            (request,) = await upstream.wait_for("m")
            await client.read_until(COMMENT)
        await upstream.wait_closed(request)
        await relay.wait_log(outcome="client_gone")


async def test_a_shutdown_ends_a_begun_answer_with_an_error_event(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(hang())
    async with relay_in_loop(config({"one": upstream}, SOON, server={"drain": "100ms"}), tmp_path) as relay:
        async with await begin(relay) as client:
            await client.read_until(COMMENT)
            draining = asyncio.create_task(relay.drain())
            error = in_stream_error(await client.read_response())
            await draining
        assert error["code"] == "server_shutting_down"
        assert relay.metrics_now().sum("relay_requests_total", outcome="drained") == 1


async def test_a_stalled_target_of_a_begun_answer_is_left_for_the_next(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.answers(hang())
    second.answers(sse(SECOND))
    timeouts = {"connect": "5s", "first_token": "400ms", "between_tokens": "20s", "write": "8s", "total": "60s"}
    async with running(tmp_path, {"one": upstream, "two": second}, SOON, timeouts=timeouts) as relay:
        response = await relay.post(CHAT, ask())
        assert response.body.startswith(COMMENT)
        assert without_comments(response) == b"".join(SECOND)


async def test_comments_go_on_while_a_backup_is_waited_for(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse(FIRST))
    second.answers(after(0.3, sse(SECOND)))
    settings = {**SOON, "hedge": {"after": "50ms", "at_most": "50%"}}
    async with running(tmp_path, {"one": upstream, "two": second}, settings) as relay:
        await relay.post(CHAT, ask())
        upstream.answers(hang())
        response = await relay.post(CHAT, ask())
        assert response.body.startswith(COMMENT)
        assert without_comments(response) == b"".join(SECOND)


@pytest.mark.parametrize(("every", "served"), [("50ms", True), ("5s", False)])
async def test_a_caller_that_hears_comments_in_time_has_not_given_up(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path, every: str, served: bool
) -> None:
    upstream.answers(after(1.3, error_answer(503)))
    second.answers(sse(SECOND))
    settings = {"heartbeat": {"after": "100ms", "every": every}}
    async with running(tmp_path, {"one": upstream, "two": second}, settings) as relay:
        response = await relay.post(CHAT, ask(), headers=(("x-stainless-read-timeout", "1"),))
        assert bool(second.requests) is served
        assert (response.end == "complete") is served


async def test_a_byte_order_mark_does_not_spoil_the_first_event(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(after(LATE, sse([b"\xef\xbb\xbf" + FIRST[0], *FIRST[1:]])))
    async with running(tmp_path, {"one": upstream}, SOON) as relay:
        assert without_comments(await relay.post(CHAT, ask())) == b"".join(FIRST)


async def test_a_client_without_chunks_gets_comments_too_and_a_reset_for_an_error(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with running(tmp_path, {"one": upstream}, SOON) as relay:
        upstream.answers(after(LATE, sse(FIRST)))
        async with await relay.connect() as client:
            await client.post(CHAT, ask(), version="HTTP/1.0")
            response = await client.read_response()
        assert (response.framing, response.end) == ("close", "complete")
        assert without_comments(response) == b"".join(FIRST)
        upstream.answers(after(LATE, error_answer(503)))
        async with await relay.connect() as client:
            await client.post(CHAT, ask(), version="HTTP/1.0")
            assert (await client.read_response()).end == "rst"


async def test_a_client_that_takes_nothing_gets_no_further_comments(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    big = [b"data: " + b"x" * 60_000 + b"\n\n"] * 300
    upstream.answers(sse([*big, *FIRST]))
    async with running(tmp_path, {"one": upstream}, {"heartbeat": {"after": "40ms", "every": "40ms"}}) as relay:
        async with await relay.connect(receive_buffer=4096) as client:
            client.pause()
            await client.post(CHAT, ask())
            await upstream.wait_for("m")
            await asyncio.sleep(1.0)
            client.resume()
            response = await client.read_response(within=30)
        assert without_comments(response) == b"".join([*big, *FIRST])
        assert response.body.count(COMMENT) <= 12  # of the 25 that would have been due


async def test_a_client_that_leaves_while_a_retry_is_waited_for_ends_it(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(error_answer(429, headers=[("Retry-After", "1")]))
    async with running(tmp_path, {"one": upstream}, {}) as relay:
        async with await begin(relay) as client:
            await upstream.wait_for("m")
            while relay.app._running._runs:
                await asyncio.sleep(0.005)
            client.rst()
            (line,) = await relay.wait_log(outcome="client_gone")
        assert (line["attempts"], len(upstream.requests)) == (1, 1)


async def test_a_refusal_that_stays_the_answer_after_all_is_told_in_the_stream_that_has_begun(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    told = config({"one": upstream, "two": second}, SOON)
    told["upstreams"]["two"]["limits"] = {"concurrency": 1, "queue": 4, "queue_wait": "400ms"}
    async with relay_in_loop(told, tmp_path) as relay:
        upstream.answers(error_answer(500))
        second.answers(sse(SECOND[:3], end="hang"))
        async with await begin(relay) as holding:
            await holding.read_head()
            upstream.answers(error_answer(503))
            response = await relay.post(CHAT, ask())
        assert in_stream_error(response)["message"] == "scripted 503"
        (line,) = await relay.wait_log(outcome="upstream_failed")
        assert line["attempts"] == 1
        await at_rest(relay)
