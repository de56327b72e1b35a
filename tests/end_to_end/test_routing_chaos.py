"""The attempt loop with all its features on, at random: credentials, backups, comments, slots and a queue, reloads, leaving clients.

Whatever happens, what a client gets is a beginning of one upstream's answer or all of it, nothing twice, and afterwards nothing is held.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, Final

import pytest

from relay.config import load
from relay.policy.breaker import Health
from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.end_to_end.two_targets import CHAT, ROUTE, at_rest
from tests.fakes.client import Response
from tests.fakes.events import chat_stream, content, error, role
from tests.fakes.scripts import Script, after, body, close, error_answer, hang, json_answer, raw, reset, respond, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

COMMENT: Final = b": relay\n"
AT_ONCE: Final = 12
"""More than the slots of both upstreams, so that some wait."""
LETTERS: Final = {"one": "a", "two": "b"}
KINDS: Final = (
    *("whole",) * 5,
    *("slow", "paced", "cut", "cut", "role", "empty", "error", "failed", "refused", "refused", "refused", "throttled", "wrong"),
    *("close", "reset", "html", "garbage", "hang"),
)


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        yield other


def told(upstreams: dict[str, ScriptedUpstream], *, slots: int = 4) -> dict[str, Any]:
    """Everything that the attempt loop can do."""
    return {
        "upstreams": {
            name: {
                "base_url": upstream.url,
                "api_keys": [f"sk-{name}-1", f"sk-{name}-2"],
                "limits": {"concurrency": slots, "queue": 4, "queue_wait": "150ms"},
            }
            for name, upstream in upstreams.items()
        },
        "routes": {
            ROUTE: {
                "to": [f"{name}/m" for name in upstreams],
                "retries": 2,
                "hedge": {"after": "30ms", "at_most": "50%"},
                "heartbeat": {"after": "60ms", "every": "20ms"},
                "fallback_on": ["context_length"],
            }
        },
        "timeouts": {"connect": "5s", "first_token": "400ms", "between_tokens": "400ms", "write": "8s", "total": "20s"},
    }


def whole(letter: str, *, is_stream: bool) -> bytes:
    """The answer of one upstream."""
    if is_stream:
        return b"".join(chat_stream(*(f"{letter}{number};" for number in range(5))))
    return json.dumps(answer(letter)).encode()


def answer(letter: str) -> dict[str, object]:
    text = "".join(f"{letter}{number};" for number in range(5))
    return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def script(chance: random.Random, letter: str, *, is_stream: bool) -> Script:
    """Choose what an upstream does with one request."""
    events = chat_stream(*(f"{letter}{number};" for number in range(5)))
    good = sse(events) if is_stream else json_answer(answer(letter))
    kind = chance.choice(KINDS) if chance.random() < 0.95 else "hang"
    match kind:
        case "whole":
            return good
        case "slow":
            return after(chance.choice([0.02, 0.03, 0.05, 0.1, 0.2]), good)
        case "paced":
            return sse(events, pause=0.01) if is_stream else after(0.03, good)
        case "cut":
            if is_stream:
                return sse(events[: chance.randint(0, len(events) - 1)], end=chance.choice(["fin", "rst"]), pause=chance.choice([0, 0.005]))
            return body([whole(letter, is_stream=False)[: chance.randint(0, 20)]], end=chance.choice(["fin", "rst"]))
        case "role":
            return sse([role()], end=chance.choice(["fin", "rst", "hang"])) if is_stream else close()
        case "empty":
            return respond(200)
        case "error":
            if is_stream:
                return sse([role(), *[content(f"{letter}0;")] * chance.randint(0, 1), error()], end=chance.choice(["clean", "fin"]))
            return json_answer({"error": {"code": 502, "message": "m"}})
        case "failed":
            return json_answer({"error": {"message": "maximum context length is 1 token", "type": "invalid_request_error"}}, 400)
        case "refused":
            return after(chance.choice([0, 0.02, 0.05]), error_answer(chance.choice([408, 409, 500, 502, 503, 529])))
        case "throttled":
            return error_answer(429, headers=[("Retry-After-Ms", "20")])
        case "wrong":
            return error_answer(chance.choice([400, 404, 422]))
        case "close":
            return close()
        case "reset":
            return reset()
        case "html":
            return respond(200, [("Content-Type", "text/html")], b"<html>")
        case "garbage":
            return raw(b"HTTP/9.9 two hundred\r\n\r\n", end="fin")
    return hang()


def check(response: Response, *, is_stream: bool) -> None:
    """Check that what came is one upstream's, in order, nothing twice, and whole unless it shows that it is not."""
    text = response.body.replace(COMMENT, b"") if is_stream else response.body
    assert not (b"a0;" in text and b"b0;" in text), text
    if response.status != 200:
        assert response.end == "complete" and b"0;" not in text, response.raw
        return
    wholes = [whole(letter, is_stream=is_stream) for letter in LETTERS.values()]
    begun, mark, _ = text.partition(b'data: {"error"')
    if response.end == "complete" and not mark:
        assert text in wholes, response.raw
    else:
        assert b"[DONE]" not in text, response.raw
        assert any(each.startswith(begun) for each in wholes), response.raw


async def one(relay: RelayInLoop, number: int, seed: int) -> None:
    """Make one request; sometimes leave before the end of its answer."""
    chance = random.Random(seed * 100_000 + number)
    is_stream = chance.random() < 0.7
    headers = (("X-Stainless-Read-Timeout", "0.3"),) if chance.random() < 0.1 else ()
    async with await relay.connect() as client:
        await client.post(CHAT, {"model": ROUTE, "messages": [], "stream": is_stream, "user": f"{seed}-{number}"}, headers)
        if chance.random() < 0.15:
            await asyncio.sleep(chance.random() * 0.15)
            client.rst() if chance.random() < 0.5 else client.fin()
        else:
            check(await client.read_response(within=20), is_stream=is_stream)


async def run(schedules: int, seed: int, upstreams: dict[str, ScriptedUpstream], directory: Path) -> None:
    """Run random schedules, some at a time, and see that all is at rest afterwards."""
    chance = random.Random(seed)
    for name, upstream in upstreams.items():

        async def answering(peer: Peer, letter: str = LETTERS[name]) -> None:
            await script(chance, letter, is_stream=bool(peer.request.json()["stream"]))(peer)

        upstream.answers(answering)
    async with relay_in_loop(told(upstreams), directory) as relay:
        gate = asyncio.Semaphore(AT_ONCE)

        async def bounded(step: Awaitable[None]) -> None:
            async with gate:
                await step

        async def healed() -> None:
            for target in list(relay.app._targets._known):
                relay.app._targets.bring_back(target, asyncio.get_running_loop().time())

        async def reloaded(slots: int) -> None:
            relay.write_config(told(upstreams, slots=slots))
            relay.app.adopt(await relay.app.prepare(load(str(relay.config_file), {})))

        async with asyncio.TaskGroup() as group:
            for number in range(schedules):
                group.create_task(bounded(one(relay, number, seed)))
                if number % 5 == 4:
                    group.create_task(bounded(healed()))
                if number % 50 == 49:
                    group.create_task(bounded(reloaded(chance.randint(1, 5))))
        metrics = await at_rest(relay)
        assert [(load.held, load.waiting) for load in relay.app._turns.slots.loads()] == [(0, 0), (0, 0)]
        now = asyncio.get_running_loop().time()
        assert all(standing.health is not Health.PROBING for standing in relay.app._targets.standings(now))
        assert not any(counts["probing"] for counts in relay.app._targets.credentials(now).values())
        assert metrics.sum("relay_hedges_total") and metrics.sum("relay_retries_total") and metrics.sum("relay_fallbacks_total")


async def test_with_everything_on_an_answer_is_one_upstreams_alone_and_nothing_is_left(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    await run(200, 1, {"one": upstream, "two": second}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
async def test_with_everything_on_an_answer_is_one_upstreams_alone_ten_thousand_times(
    seed: int, upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    await run(1000, seed, {"one": upstream, "two": second}, tmp_path)
