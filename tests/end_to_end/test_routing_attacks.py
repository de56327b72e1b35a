"""Routes with several targets under attack: bytes of two targets never mix, and dead upstreams are not asked more for being dead.

Two upstreams answer in alphabets of their own: an `A` or a `B` before each number. Whatever goes wrong at either, a client sees the
beginning of one of the two, and all of it unless the cut is plain to see.
"""

import asyncio
import json
import random
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import pytest

from tests.conftest import RelayWith
from tests.fakes import events
from tests.fakes.client import Response
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import EVENT_STREAM, JSON, Script, body, close, error_answer, hang, head, json_answer, raw, reset, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

HI: Final = [{"role": "user", "content": "hi"}]
CASES: Final = 500
AT_ONCE: Final = 32
SHARED_ROUTES: Final = 4
"""Routes that a fifth of the cases share, so that their targets come to rest, are probed and come back meanwhile."""
TOKEN: Final = re.compile(rb"([AB])(\d+);")
LETTERS: Final = {b"first": b"A", b"second": b"B"}
TIMEOUTS: Final = {"connect": "5s", "first_token": "1s", "between_tokens": "1s", "write": "5s", "total": "10s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one upstream does in one case."""

    kind: str
    script: Script
    size: int
    """How many tokens its whole answer has."""

    @property
    def is_good(self) -> bool:
        """Whether it answers completely."""
        return self.kind in ("good", "resent")

    @property
    def is_passed_over(self) -> bool:
        """Whether it fails before its answer begins, in a way that another target mends."""
        return self.kind in ("close", "reset", "status", "error_first", "garbage", "html", "short")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request and what both upstreams do with it."""

    name: str
    route: str
    is_stream: bool
    sides: dict[bytes, Side]
    """By letter."""

    @property
    def is_alone(self) -> bool:
        """Whether no other case changes the health of its targets."""
        return self.route == self.name


def streamed(letter: str, size: int, chance: random.Random) -> list[bytes]:
    """A whole stream of `size` tokens; some of its events hold several."""
    texts, number = [], 0
    while number < size:
        count = min(chance.randint(1, 3), size - number)
        texts.append("".join(f"{letter}{number + more};" for more in range(count)))
        number += count
    return events.chat_stream(*texts)


def answered(letter: str, size: int) -> bytes:
    """A whole JSON answer of `size` tokens."""
    text = "".join(f"{letter}{number};" for number in range(size))
    message = {"role": "assistant", "content": text}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}).encode()


def side(letter: str, is_stream: bool, chance: random.Random) -> Side:
    """Choose what an upstream does."""
    size = chance.randint(1, 12)
    whole = streamed(letter, size, chance) if is_stream else [answered(letter, size)]
    headers = EVENT_STREAM if is_stream else JSON
    good = body(whole, headers=headers, pause=chance.choice([0.0, 0.0, 0.002]), framing=chance.choice(["chunked", "length", "close"]))
    end = chance.choice(["fin", "rst"])
    kinds = ["good"] * 5 + ["resent", "close", "reset", "status", "status", "error_first", "garbage", "html", "short"] + ["cut"] * 5
    kind = "hang" if chance.random() < 0.02 else chance.choice(kinds)
    match kind:
        case "good":
            script = good
        case "resent":
            script = only_on_fresh(good)
        case "close":
            script = close()
        case "reset":
            script = reset()
        case "status":
            script = error_answer(chance.choice([429, 500, 502, 503, 529]))
        case "error_first":
            script = sse([events.error(), *whole]) if is_stream else error_answer(500)
        case "garbage":
            script = raw(b"HTTP/9.9 two hundred\r\n\r\n" + b"".join(whole), end="fin")
        case "html":
            script = body([b"<html>", *whole], headers=(("Content-Type", "text/html"),))
        case "short":
            script = raw(head(200, [*headers, ("Content-Length", "999")]), end=end)
        case "cut":
            script = cut(b"".join(whole), is_stream, end, chance)
        case _:
            script = hang()
    return Side(kind=kind, script=script, size=size)


def only_on_fresh(script: Script) -> Script:
    """Close a connection that has served before, as a server does whose keep-alive time has just run out."""

    async def picky(peer: Peer) -> None:
        await (peer.fin() if peer.request.number_on_connection else script(peer))

    return picky


def cut(whole: bytes, is_stream: bool, end: Any, chance: random.Random) -> Script:
    """Send a beginning that ends anywhere, in pieces that end anywhere, and then an end or an error event or nothing."""
    last = chance.randint(0, len(whole) - len(events.DONE) if is_stream else len(whole) - 1)
    marks = sorted({0, last, *(chance.randint(0, last) for _ in range(chance.randint(0, 4)))})
    pieces = [whole[start:stop] for start, stop in pairwise(marks)]
    if is_stream and chance.random() < 0.2:
        pieces.append(b"\n\n" + events.error())
    headers = EVENT_STREAM if is_stream else JSON
    framing = chance.choice(["chunked", "length"])
    return body(pieces, headers=headers, framing=framing, end=end, pause=chance.choice([0.0, 0.002]))


def cases_of(seed: int) -> list[Case]:
    """The same cases for the same seed."""
    chance = random.Random(seed)
    found = []
    for number in range(CASES):
        name = f"case-{number}"
        route = f"shared-{number % SHARED_ROUTES}-*" if number % 5 == 0 else name
        is_stream = chance.random() < 0.7
        sides = {letter: side(letter.decode(), is_stream, chance) for letter in (b"A", b"B")}
        found.append(Case(name=name, route=route, is_stream=is_stream, sides=sides))
    return found


def check(case: Case, response: Response) -> None:
    """Check that what came is one upstream's, in order, each token once, and whole unless it shows that it is not."""
    told = (case.name, {letter: each.kind for letter, each in case.sides.items()}, response.status, response.end, response.body)
    found = [(letter, int(number)) for letter, number in TOKEN.findall(response.body)]
    letters = {letter for letter, _ in found}
    assert len(letters) <= 1, told
    assert [number for _, number in found] == list(range(len(found))), told
    if response.status != 200:
        assert not found and response.end == "complete", told
        assert not case.is_alone or not case.sides[b"A"].is_good, told
        return
    name = response.header("x-relay-upstream")
    assert name is not None, told
    letter = LETTERS[name]
    assert letters <= {letter}, told
    has_error = b'"error"' in response.body
    is_whole = response.end == "complete" and not has_error and (not case.is_stream or b"[DONE]" in response.body)
    if is_whole:
        assert case.sides[letter].is_good and len(found) == case.sides[letter].size, told
    else:
        assert (has_error or response.end != "complete") and not case.sides[letter].is_good, told
        assert b"[DONE]" not in response.body, told
    if case.is_alone and (case.sides[b"A"].is_good or (case.sides[b"A"].is_passed_over and case.sides[b"B"].is_good)):
        assert is_whole and letter == (b"A" if case.sides[b"A"].is_good else b"B"), told


async def run_all(seed: int, start: RelayWith) -> None:
    """Run every case of a seed against one relay, some at a time."""
    cases = cases_of(seed)
    async with ScriptedUpstream() as first, ScriptedUpstream() as second:
        routes = {case.route: [f"first/{case.route}", f"second/{case.route}"] for case in cases}
        upstreams = {name: {"base_url": up.url, "api_key": f"sk-{name}"} for name, up in (("first", first), ("second", second))}
        relay = await start({"upstreams": upstreams, "routes": routes, "timeouts": TIMEOUTS})
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(case: Case) -> None:
            model = case.name if case.is_alone else case.route[:-1] + case.name
            first.route(model, case.sides[b"A"].script)
            second.route(model, case.sides[b"B"].script)
            async with gate:
                response = await relay.post("/v1/chat/completions", {"model": model, "messages": HI, "stream": case.is_stream})
            check(case, response)
            tries = len(first.of(model)) + len(second.of(model)) if case.is_alone else 0
            # Both targets, and one resend where a kept connection turned out to be dead.
            assert tries <= 3, (case.name, tries)

        await asyncio.gather(*map(one, cases))
        await relay.assert_identities()


async def test_whatever_goes_wrong_an_answer_is_one_upstreams_alone(relay_with: RelayWith) -> None:
    await run_all(1, relay_with)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
async def test_whatever_goes_wrong_an_answer_is_one_upstreams_alone_ten_thousand_times(seed: int, relay_with: RelayWith) -> None:
    await run_all(seed, relay_with)


ANSWER: Final = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
BURST_SECONDS: Final = 3
PER_SECOND: Final = 200
STEPS: Final = 20
"""Bursts a second."""


def routed(*upstreams: ScriptedUpstream, route: object, **more: object) -> dict[str, object]:
    """Configuration with one route, `fast`."""
    named = zip(("first", "second", "third"), upstreams, strict=False)
    origins = {name: {"base_url": up.url, "api_key": f"sk-{name}", **more} for name, up in named}
    return {"upstreams": origins, "routes": {"fast": route}, "timeouts": {**TIMEOUTS, "first_token": "8s"}}


async def ask(relay: RelayProcess, *headers: tuple[str, str]) -> Response:
    """Ask for the one route's model."""
    return await relay.post("/v1/chat/completions", {"model": "fast", "messages": HI}, headers)


async def health(relay: RelayProcess, target: str, state: str) -> bool:
    """Whether a target is in this state."""
    return (await relay.metrics()).value("relay_target_health", target=target, state=state) == 1


async def test_dead_upstreams_are_not_asked_more_for_being_dead(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    async with ScriptedUpstream() as second, ScriptedUpstream() as third:
        dead = (upstream, second, third)
        for each in dead:
            each.answers(error_answer(500))
        relay = await relay_with(routed(*dead, route=["first/a", "second/b", "third/c"]))

        def attempts() -> int:
            return sum(len(each.requests) for each in dead)

        asked: list[asyncio.Task[Response]] = []
        early = 0
        async with asyncio.TaskGroup() as group:
            for step in range(BURST_SECONDS * STEPS):
                if step == STEPS:
                    await asyncio.wait(asked)
                    early = attempts()
                asked += [group.create_task(ask(relay)) for _ in range(PER_SECOND // STEPS)]
                await asyncio.sleep(1 / STEPS)
        late = (BURST_SECONDS - 1) * PER_SECOND
        assert attempts() - early <= 1.1 * late + 3 * (BURST_SECONDS - 1) + PER_SECOND // STEPS
        # Refusals reach the caller as they were, not as an error of the relay's.
        assert {task.result().status for task in asked} == {500}
        await relay.assert_identities()


async def test_connections_that_were_stale_do_not_put_a_target_to_rest(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    upstream.answers(only_on_fresh(json_answer(ANSWER)))
    relay = await relay_with(routed(upstream, route="first/a"))
    assert [(await ask(relay)).status for _ in range(40)] == [200] * 40
    assert len(upstream.requests) > 60
    assert await health(relay, "first/a", "healthy")


async def test_an_impatient_caller_does_not_put_a_target_to_rest(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    upstream.answers(hang())
    relay = await relay_with(routed(upstream, route="first/a"))
    for _ in range(8):
        response = await ask(relay, ("x-stainless-read-timeout", "0.02"))
        assert (response.status, response.error_code) == (504, "caller_deadline")
    assert await health(relay, "first/a", "healthy")


@pytest.mark.parametrize("status", [401, 402, 429])
async def test_a_callers_own_bad_credential_does_not_put_a_target_to_rest(
    status: int, upstream: ScriptedUpstream, relay_with: RelayWith
) -> None:
    upstream.answers(error_answer(status))
    told = routed(upstream, route="first/a", api_key="passthrough")
    relay = await relay_with(told)
    for _ in range(6):
        assert (await ask(relay, ("Authorization", "Bearer sk-of-the-caller"))).status == status
    assert await health(relay, "first/a", "healthy")


async def test_a_realtime_session_that_opens_speaks_for_its_target(upstream: ScriptedUpstream, relay_with: RelayWith) -> None:
    async def switch(peer: Peer) -> None:
        await peer.send(head(101, [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", "x")]))
        await peer.wait_closed()

    upstream.answers(error_answer(500))
    upstream.route("/v1/realtime", switch)
    relay = await relay_with(routed(upstream, route="first/a"))
    for _ in range(4):
        assert (await ask(relay)).status == 500
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "x")]
    async with await relay.connect() as client:
        await client.request("GET", "/v1/realtime?model=fast", upgrade)
        assert (await client.read_head()).status == 101
        assert (await ask(relay)).status == 500
        # Four failures, an answer, one failure: not five in a row.
        assert await health(relay, "first/a", "healthy")
