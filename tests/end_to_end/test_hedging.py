"""A backup attempt beside a slow one, over real sockets: the first content wins, the loser is gone at once, the books balance."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.end_to_end.two_targets import CHAT, ask, at_rest, begin, config, running
from tests.fakes.client import Response
from tests.fakes.events import chat_stream, content, event, role
from tests.fakes.scripts import Script, after, error_answer, hang, in_turn, json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

SLOW = chat_stream(*"aaaa")
QUICK = chat_stream(*"bbbb")
KEY = "sk-alice-0123456789abcdef"
SOON = {"hedge": {"after": "60ms", "at_most": "50%"}}
CLOSE_SECONDS = 2.5
"""Ten times what is promised (50 ms) for closing the loser's connection."""


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        yield other


@pytest.fixture
async def third() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        yield other


async def prepaid(relay: RelayInLoop, upstream: ScriptedUpstream, then: Script, *, requests: int = 1) -> None:
    """Let a few quick requests pass, so that a backup is within the share; from then on `upstream` does `then`."""
    upstream.answers(sse(SLOW))
    for _ in range(requests):
        assert (await relay.post(CHAT, ask())).body == b"".join(SLOW)
    upstream.requests.clear()
    upstream.answers(then)


def served_by(response: Response) -> tuple[bytes | None, bytes | None]:
    return response.header("x-relay-upstream"), response.header("x-relay-attempts")


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("stall", ["nothing", "head", "role"])
async def test_the_backups_content_wins_and_the_stalled_attempt_is_gone_at_once(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path, is_stream: bool, stall: str
) -> None:
    stalled = {"nothing": hang(), "head": sse([], end="hang"), "role": sse([role()], end="hang")}[stall]
    async with running(tmp_path, {"one": upstream, "two": second}, SOON) as relay:
        await prepaid(relay, upstream, stalled)
        second.answers(sse(QUICK) if is_stream else json_answer({"id": "x", "choices": []}))
        response = await relay.post(CHAT, ask(is_stream=is_stream))
        assert (response.status, response.end, served_by(response)) == (200, "complete", (b"two", b"2"))
        if is_stream:
            assert response.body == b"".join(QUICK)
        request = upstream.requests[0]
        await upstream.wait_closed(request)
        assert request.closed_at is not None and request.closed_at - second.requests[0].arrived_at < CLOSE_SECONDS
        metrics = await at_rest(relay)
        assert metrics.value("relay_hedges_total", won="true") == 1
        assert metrics.value("relay_upstream_attempts_total", upstream="one", result="cancelled") == 1
        assert metrics.value("relay_upstream_attempts_total", upstream="two", result="success") == 1
        assert not metrics.nonzero("relay_fallbacks_total")
        assert metrics.value("relay_target_health", target="one/m", state="healthy") == 1


async def test_the_first_attempt_may_still_win_and_then_the_backup_is_gone(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, SOON) as relay:
        began = asyncio.Event()

        async def late(peer: Peer) -> None:
            await began.wait()
            await sse(SLOW)(peer)

        await prepaid(relay, upstream, late)
        second.answers(hang())
        async with await begin(relay) as client:
            (backup,) = await second.wait_for("m")
            began.set()
            response = await client.read_response()
        assert (response.body, response.end, served_by(response)) == (b"".join(SLOW), "complete", (b"one", b"2"))
        await second.wait_closed(backup)
        metrics = await at_rest(relay)
        assert metrics.value("relay_hedges_total", won="false") == 1
        assert metrics.value("relay_upstream_attempts_total", upstream="two", result="cancelled") == 1
        assert not metrics.nonzero("relay_fallbacks_total")


async def test_a_stream_that_has_begun_gets_no_backup(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, SOON) as relay:
        await prepaid(relay, upstream, sse(SLOW, pause=0.05))
        assert (await relay.post(CHAT, ask())).body == b"".join(SLOW)
        assert not second.requests


async def test_one_of_the_two_may_fail_and_the_other_answers(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, {"hedge": {"after": "60ms", "at_most": "50%"}}) as relay:
        await prepaid(relay, upstream, after(0.2, error_answer(500)), requests=2)
        second.answers(after(0.4, sse(QUICK)))
        assert (await relay.post(CHAT, ask())).body == b"".join(QUICK)
        upstream.answers(after(0.4, sse(SLOW)))
        second.answers(error_answer(500))
        response = await relay.post(CHAT, ask())
        assert (response.body, served_by(response)) == (b"".join(SLOW), (b"one", b"2"))
        metrics = await at_rest(relay)
        assert metrics.value("relay_hedges_total", won="true") == 1
        assert metrics.value("relay_hedges_total", won="false") == 1


async def test_when_both_fail_the_third_target_answers(
    upstream: ScriptedUpstream, second: ScriptedUpstream, third: ScriptedUpstream, tmp_path: Path
) -> None:
    async with running(tmp_path, {"one": upstream, "two": second, "three": third}, SOON) as relay:
        await prepaid(relay, upstream, after(0.15, error_answer(500)))
        second.answers(after(0.15, error_answer(503)))
        third.answers(sse(QUICK))
        response = await relay.post(CHAT, ask())
        assert (response.body, served_by(response)) == (b"".join(QUICK), (b"three", b"3"))


async def test_when_both_fail_and_nobody_is_left_the_last_refusal_is_the_answer(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, SOON) as relay:
        await prepaid(relay, upstream, after(0.15, error_answer(500)))
        second.answers(after(0.3, error_answer(503)))
        response = await relay.post(CHAT, ask())
        assert (response.status, response.end) == (503, "complete")
        await relay.wait_log(outcome="upstream_failed")


async def test_a_callers_own_mistake_is_the_answer_whoever_finds_it(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path
) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, SOON) as relay:
        await prepaid(relay, upstream, hang())
        second.answers(error_answer(400))
        response = await relay.post(CHAT, ask())
        assert (response.status, served_by(response)) == (400, (b"two", b"2"))
        await relay.wait_log(outcome="rejected")


@pytest.mark.parametrize("finder", ["one", "two"])
@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_callers_own_mistake_within_a_200_is_the_answer_and_ends_the_other_attempt(
    upstream: ScriptedUpstream, second: ScriptedUpstream, third: ScriptedUpstream, tmp_path: Path, finder: str, is_stream: bool
) -> None:
    told = {"error": {"message": "m", "type": "invalid_request_error", "code": "context_length_exceeded"}}
    mistake = after(0.2, sse([role(), event(told)], end="hang") if is_stream else json_answer(told))
    async with running(tmp_path, {"one": upstream, "two": second, "three": third}, SOON) as relay:
        await prepaid(relay, upstream, mistake if finder == "one" else hang())
        second.answers(mistake if finder == "two" else hang())
        response = await relay.post(CHAT, ask(is_stream=is_stream))
        assert (response.status, response.header("x-relay-error")) == (400, b"upstream_error_in_stream")
        assert [each["target"] for each in response.json()["error"]["attempts"]][-1] == f"{finder}/m"
        loser = second if finder == "one" else upstream
        await loser.wait_closed(loser.requests[0])
        await relay.wait_log(outcome="rejected")
        assert not third.requests
        metrics = await at_rest(relay)
        assert metrics.sum("relay_upstream_attempts_total", result="cancelled") == 1
        for name in ("one", "two"):
            assert metrics.value("relay_target_health", target=f"{name}/m", state="healthy") == 1


async def test_a_throttled_credential_of_the_first_attempt_gives_way_to_its_next_once_the_backup_has_failed(
    upstream: ScriptedUpstream, second: ScriptedUpstream, third: ScriptedUpstream, tmp_path: Path
) -> None:
    told = config({"one": upstream, "two": second, "three": third}, SOON)
    told["upstreams"]["one"] = {"base_url": upstream.url, "api_keys": ["sk-one", "sk-other"]}

    async def by_credential(peer: Peer) -> None:
        is_throttled = peer.request.header("authorization") == b"Bearer sk-one"
        await (after(0.2, error_answer(429)) if is_throttled else sse(SLOW))(peer)

    async with relay_in_loop(told, tmp_path) as relay:
        await prepaid(relay, upstream, by_credential)
        second.answers(after(0.4, error_answer(500)))
        response = await relay.post(CHAT, ask())
        assert (response.body, served_by(response)) == (b"".join(SLOW), (b"one", b"3"))
        assert not third.requests
        await at_rest(relay)


async def test_what_is_not_safe_to_repeat_gets_no_backup(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, SOON) as relay:
        await prepaid(relay, upstream, after(0.3, sse(SLOW)))
        assert (await relay.post(CHAT, ask(store=True))).body == b"".join(SLOW)
        assert not second.requests


async def test_backups_stay_within_their_share(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, {"hedge": {"after": "60ms", "at_most": "10%"}}) as relay:
        await prepaid(relay, upstream, after(0.4, sse(SLOW)), requests=10)
        second.answers(sse(QUICK))
        bodies = [response.body for response in await asyncio.gather(*(relay.post(CHAT, ask()) for _ in range(20)))]
        assert len(second.requests) == 3
        assert (bodies.count(b"".join(QUICK)), bodies.count(b"".join(SLOW))) == (3, 17)


async def test_the_learned_p95_starts_a_backup(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, {"hedge": {"after": "p95", "at_most": "5%"}}) as relay:
        await prepaid(relay, upstream, hang(), requests=20)
        second.answers(sse(QUICK))
        assert (await relay.post(CHAT, ask())).body == b"".join(QUICK)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_takes_both_attempts_along(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path, is_stream: bool
) -> None:
    async with running(tmp_path, {"one": upstream, "two": second}, SOON) as relay:
        await prepaid(relay, upstream, hang())
        second.answers(hang())
        async with await begin(relay, ask(is_stream=is_stream)):
            await second.wait_for("m")
        for side in (upstream, second):
            await side.wait_closed(side.requests[-1])
        await relay.wait_log(outcome="client_gone")
        metrics = await at_rest(relay)
        assert metrics.value("relay_upstream_attempts_total", upstream="two", result="cancelled") == 1


async def test_a_shutdown_ends_both_attempts(upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path) -> None:
    told = config({"one": upstream, "two": second}, SOON, server={"drain": "100ms"})
    async with relay_in_loop(told, tmp_path) as relay:
        await prepaid(relay, upstream, hang())
        second.answers(hang())
        async with await begin(relay) as client:
            await second.wait_for("m")
            draining = asyncio.create_task(relay.drain())
            assert (await client.read_response()).status == 503
            await draining
        assert not relay.app._running._runs
        assert relay.metrics_now().value("relay_upstream_attempts_total", upstream="two", result="cancelled") == 1


def _script(chance: random.Random, letter: str) -> Script:
    events = chat_stream(*letter * 5)
    cut = chance.randint(0, len(events))
    kinds = [
        sse(events),
        sse(events),
        sse(events, pause=0.01),
        sse(events[:cut], end=chance.choice(["fin", "rst"])),
        error_answer(chance.choice([429, 500, 503])),
        in_turn(sse([role(), content(letter)], end="fin")),
    ]
    return after(chance.choice([0.0, 0.02, 0.04, 0.05, 0.06, 0.08, 0.1]), chance.choice(kinds))


@pytest.mark.parametrize("schedules", [40, pytest.param(2000, marks=pytest.mark.slow)])
async def test_random_schedules_never_mix_two_answers(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path, schedules: int
) -> None:
    chance = random.Random(schedules)
    whole = {b"".join(chat_stream(*letter * 5)) for letter in "ab"}
    async with running(tmp_path, {"one": upstream, "two": second}, {"hedge": {"after": "40ms", "at_most": "50%"}}) as relay:

        async def one(number: int) -> None:
            response = await relay.post(CHAT, ask(prompt=str(number), is_stream=True))
            text = response.body
            assert not (b'"a"' in text and b'"b"' in text), text
            if response.status != 200:
                assert response.end == "complete" and b'"a"' not in text and b'"b"' not in text
            elif response.end == "complete":
                assert text in whole
            else:
                begun = text.split(b'data: {"error"')[0]
                assert any(full.startswith(begun) for full in whole), text

        for side, letter in ((upstream, "a"), (second, "b")):

            async def script(peer: Peer, letter: str = letter) -> None:
                await _script(chance, letter)(peer)

            side.answers(script)
        for start in range(0, schedules, 8):
            await asyncio.gather(*(one(number) for number in range(start, start + 8)))
        metrics = await at_rest(relay)
        assert metrics.sum("relay_hedges_total") >= 3
        await upstream.wait_open_count(metrics_idle(relay, "one"))
        await second.wait_open_count(metrics_idle(relay, "two"))


def metrics_idle(relay: RelayInLoop, name: str) -> int:
    return relay.app._pools.counts()[name][0]


@pytest.mark.parametrize("winner", ["backup", "first"])
async def test_the_losers_prompt_is_charged_to_the_caller_and_told_at_its_upstream(
    upstream: ScriptedUpstream, second: ScriptedUpstream, tmp_path: Path, winner: str
) -> None:
    keys = {"alice": {"key": KEY, "limits": {"tpm": 10_000, "budget": "1 USD/day"}}}
    prices = {f"{name}/m": {"input": 1.0, "output": 2.0} for name in ("one", "two")}
    headers = (("Authorization", f"Bearer {KEY}"),)
    async with running(tmp_path, {"one": upstream, "two": second}, SOON, keys=keys, prices=prices) as relay:
        upstream.answers(sse(chat_stream("a", usage=(400, 2))))
        assert (await relay.post(CHAT, ask("x" * 1600), headers)).end == "complete"
        before = await at_rest(relay)
        whole = sse(chat_stream("b", usage=(400, 2)))
        upstream.answers(hang() if winner == "backup" else after(0.3, whole))
        second.answers(whole if winner == "backup" else hang())
        assert (await relay.post(CHAT, ask("x" * 1600), headers)).end == "complete"
        since = (await at_rest(relay)).since(before)
        won, lost = ("two", "one") if winner == "backup" else ("one", "two")
        assert since.value("relay_tokens_total", upstream=won, type="input", source="reported") == 400
        estimated = since.value("relay_tokens_total", upstream=lost, type="input", source="estimated")
        assert 300 <= estimated <= 500
        assert not since.value("relay_tokens_total", upstream=lost, type="output")
        assert since.value("relay_key_tokens_total", key="alice", type="input") == 400 + estimated
        assert since.value("relay_cost_usd_total", upstream=lost) == pytest.approx(estimated / 1e6)
        used = before.value("relay_key_limit_used_ratio", key="alice", limit="tpm") + (402 + estimated) / 10_000
        assert (await relay.metrics()).value("relay_key_limit_used_ratio", key="alice", limit="tpm") == pytest.approx(used)
        assert before.sum("relay_requests_total") + 1 == (await relay.metrics()).sum("relay_requests_total")
