"""A learned bound of the first token, over real sockets: stalled short prompts leave early, long ones are given their time."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.policy import deadlines
from tests.end_to_end.two_targets import CHAT, TIMEOUTS, ask, at_rest, running
from tests.fakes.events import chat_stream
from tests.fakes.scripts import after, hang, json_answer, sse
from tests.fakes.upstream import ScriptedUpstream

AUTO = {"timeouts": {"first_token": "auto"}}
LONG = "x" * 40_000
ANSWER = {"id": "x", "choices": []}


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        yield other


@pytest.fixture(autouse=True)
def _low_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "FLOOR_SECONDS", 0.3)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_stalled_short_prompts_leave_early_and_long_ones_get_their_time(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path, is_stream: bool
) -> None:
    answer = sse(chat_stream("first")) if is_stream else json_answer({**ANSWER, "id": "first"})
    upstream.answers(answer)
    second.answers(sse(chat_stream("second")) if is_stream else json_answer({**ANSWER, "id": "second"}))
    async with running(tmp_path, {"one": upstream, "two": second}, AUTO) as relay:
        for _ in range(deadlines.MIN_SAMPLES):
            assert b"first" in (await relay.post(CHAT, ask(is_stream=is_stream))).body
        upstream.answers(hang())
        began = time.monotonic()
        assert b"second" in (await relay.post(CHAT, ask(is_stream=is_stream))).body
        assert time.monotonic() - began < 10 < float(TIMEOUTS["first_token"].rstrip("s"))
        upstream.answers(after(1.0, answer))
        assert b"first" in (await relay.post(CHAT, ask(LONG, is_stream=is_stream))).body
        metrics = await at_rest(relay)
        assert metrics.value("relay_upstream_attempts_total", upstream="one", result="timeout_first_token") == 1


async def test_without_auto_nothing_is_learned(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(sse(chat_stream("first")))
    async with running(tmp_path, {"one": upstream, "two": second}, {}) as relay:
        for _ in range(deadlines.MIN_SAMPLES):
            await relay.post(CHAT, ask())
        upstream.answers(after(1.0, sse(chat_stream("first"))))
        assert b"first" in (await relay.post(CHAT, ask())).body
