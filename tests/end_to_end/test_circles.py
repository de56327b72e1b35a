"""An exchange that is over is freed at once: it leaves no circle of references that would keep its bodies until the collector looks."""

import gc
from collections import Counter
from pathlib import Path

import pytest

from relay.exchange import Attempt, Exchange, StreamMeter
from relay.stream import EventRelay, WholeRelay
from tests.end_to_end.in_loop import relay_in_loop
from tests.fakes import events
from tests.fakes.relay import config_for
from tests.fakes.scripts import Script, error_answer, json_answer, sse
from tests.fakes.upstream import ScriptedUpstream

EXCHANGES = 10
RECORDS = (Exchange, Attempt, StreamMeter, EventRelay, WholeRelay)
ANSWER = {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}}]}
STREAM = sse(events.chat_stream("Hello"))
HEADERS = [("authorization", "Bearer sk-alice-plain")]
CASES: dict[str, tuple[Script, dict[str, object]]] = {
    "whole": (json_answer(ANSWER), {}),
    "stream": (STREAM, {"stream": True}),
    "refused": (error_answer(400, type="invalid_request_error"), {}),
    "cut": (sse([events.role(), events.content("Hello")], end="rst"), {"stream": True}),
}


@pytest.mark.parametrize("name", CASES)
async def test_an_exchange_leaves_no_circle(name: str, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    script, body = CASES[name]
    upstream.answers(script)
    config = config_for(upstream, keys={"alice": {"key": "sk-alice-plain", "limits": {"rpm": 10_000, "concurrency": 10}}})
    async with relay_in_loop(config, tmp_path) as relay:

        async def ask() -> None:
            async with await relay.connect() as client:
                await client.post("/v1/chat/completions", {"model": "m", "messages": [], **body}, HEADERS)
                assert (await client.read_response()).head.status in (200, 400)

        await ask()
        gc.collect()
        gc.disable()
        try:
            for _ in range(EXCHANGES):
                await ask()
            await relay.settled()
            kept = Counter(type(each).__qualname__ for each in gc.get_objects() if type(each) in RECORDS)
        finally:
            gc.enable()
    assert not kept, f"objects of exchanges that are over: {kept}"
