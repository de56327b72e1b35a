"""Limits of keys and routes against a running relay: how many get through, what the others are told, what is left when all is over."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from relay.stores import SLOTS_IDENTITY, TOKENS_IDENTITY
from tests.conftest import RelayWith
from tests.end_to_end.in_loop import relay_in_loop
from tests.fakes.client import RawClient, Response
from tests.fakes.events import chat_stream, content, role
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import EVENT_STREAM, body, error_answer, json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

ALICE = (("Authorization", "Bearer sk-alice"),)
BOB = (("Authorization", "Bearer sk-bob"),)
CHAT = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
ANSWER: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
USED = {"usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}}
AT_ONCE = 400


def config(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}},
        "routes": {"fast": {"to": "mine/m"}, "slow": {"to": "mine/n"}},
        "keys": {"alice": {"key": "sk-alice", "limits": more.pop("limits", {})}, "bob": {"key": "sk-bob"}},
        **more,
    }


def headers_of(response: Response) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in response.headers}


def code_of(response: Response) -> str:
    found = json.loads(response.body)["error"]["code"]
    assert isinstance(found, str)
    return found


async def ask(relay: RelayProcess, headers: Sequence[tuple[str, str]] = ALICE, **more: Any) -> Response:
    return await relay.post("/v1/chat/completions", {**CHAT, **more}, tuple(headers))


class Gate:
    """An upstream's script that answers only when it is opened, and counts who waits."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._arrived = asyncio.Condition()
        self.waiting = 0
        self.most = 0

    async def script(self, peer: Peer) -> None:
        async with self._arrived:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            self._arrived.notify_all()
        await self._opened.wait()
        self.waiting -= 1
        await json_answer(ANSWER | USED)(peer)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self._arrived:
            await self._arrived.wait_for(lambda: self.waiting >= count)

    def open(self) -> None:
        self._opened.set()


async def test_of_400_at_once_exactly_100_are_let_in_a_minute(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(json_answer(ANSWER))
    relay = await relay_with(config(upstream, limits={"rpm": 100}))
    answers = await asyncio.gather(*(ask(relay) for _ in range(AT_ONCE)))
    assert Counter(answer.status for answer in answers) == {200: 100, 429: AT_ONCE - 100}
    assert len(upstream.requests) == 100
    refused = next(answer for answer in answers if answer.status == 429)
    assert code_of(refused) == "rate_limit_rpm"
    headers = headers_of(refused)
    milliseconds = int(headers[b"retry-after-ms"])
    assert 30_000 < milliseconds <= 60_001
    assert int(headers[b"retry-after"]) == -(-milliseconds // 1000)
    assert headers[b"x-ratelimit-limit-requests"] == b"100"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert (await ask(relay, BOB)).status == 200, "another key is not concerned"
    metrics = await relay.settled()
    assert metrics.value("relay_key_rate_limited_total", key="alice", limit="rpm") == AT_ONCE - 100
    assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="rpm") == 1
    assert metrics.value("relay_key_requests_total", key="alice", outcome="rate_limited") == AT_ONCE - 100
    await relay.assert_identities()


async def test_no_more_than_allowed_run_at_once_and_slots_come_back(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.answers(gate.script)
    relay = await relay_with(config(upstream, limits={"concurrency": 10}))
    asked = [asyncio.create_task(ask(relay)) for _ in range(60)]
    await gate.until(10)
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    assert {code_of(task.result()) for task in done} == {"concurrency_limited"}
    while sum(task.done() for task in asked) < 50:
        await asyncio.wait([task for task in asked if not task.done()], return_when=asyncio.FIRST_COMPLETED, timeout=20)
    gate.open()
    answers = await asyncio.gather(*asked)
    assert Counter(answer.status for answer in answers) == {200: 10, 429: 50}
    assert gate.most == 10
    assert headers_of(next(answer for answer in answers if answer.status == 429))[b"retry-after"] == b"1"
    metrics = await relay.settled()
    assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="concurrency") == 0
    assert (await ask(relay)).status == 200
    await relay.assert_identities()


async def test_a_client_that_leaves_gives_its_slot_and_reservation_back(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(body([role(), content("a")], headers=EVENT_STREAM, end="hang"))
    relay = await relay_with(config(upstream, limits={"concurrency": 1, "tpm": 5000}))
    client = await RawClient.open(relay.port)
    asked = json.dumps({**CHAT, "stream": True, "max_tokens": 4000}).encode()
    await client.request("POST", "/v1/chat/completions", [*ALICE, ("Content-Type", "application/json")], asked)
    await client.read_head()
    assert (await relay.metrics()).value("relay_tokens_reserved", key="alice") > 4000
    assert code_of(await ask(relay)) in ("concurrency_limited", "rate_limit_tpm")
    await client.close()
    metrics = await relay.settled()
    assert metrics.value("relay_tokens_reserved", key="alice") == 0
    assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="concurrency") == 0
    assert 0 < metrics.value("relay_key_limit_used_ratio", key="alice", limit="tpm") < 0.05, "one event and a short prompt"
    await relay.assert_identities()


async def test_reported_usage_takes_the_place_of_the_reservation(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(json_answer(ANSWER | USED))
    relay = await relay_with(config(upstream, limits={"tpm": 1000}))
    first = await ask(relay, max_tokens=900)
    assert first.status == 200
    assert int(headers_of(first)[b"x-ratelimit-remaining-tokens"]) < 100, "the whole reservation counts while it runs"
    second = await ask(relay, max_tokens=900)
    assert second.status == 200, "only 30 were used"
    metrics = await relay.settled()
    assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="tpm") == pytest.approx(0.06)
    assert metrics.value("relay_tokens_total", type="output", source="reported") == 40
    refused = await ask(relay, max_tokens=950)
    assert (refused.status, code_of(refused)) == (429, "rate_limit_tpm")
    impossible = await ask(relay, max_tokens=2000)
    told = headers_of(impossible)
    assert (code_of(impossible), told[b"x-should-retry"], b"retry-after" in told) == ("rate_limit_tpm", b"false", False)


async def test_an_explicit_zero_usage_stays_zero(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(json_answer(ANSWER | {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}))
    relay = await relay_with(config(upstream, limits={"tpm": 1000}))
    assert (await ask(relay)).status == 200
    assert (await relay.settled()).value("relay_key_limit_used_ratio", key="alice", limit="tpm") == 0
    assert relay.logs("request")[0]["tokens_source"] == "reported"


async def test_a_stream_without_usage_is_settled_by_an_estimate(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(sse(chat_stream("a", "b", "c")))
    relay = await relay_with(config(upstream, limits={"tpm": 10_000}))
    response = await ask(relay, stream=True)
    assert response.status == 200
    assert headers_of(response)[b"x-ratelimit-limit-tokens"] == b"10000", "streams are told too"
    metrics = await relay.settled()
    (line,) = relay.logs("request")
    assert (line["tokens_source"], line["tokens_out"]) == ("estimated", 3)
    assert metrics.value("relay_tokens_total", type="output", source="estimated") == 3
    used = metrics.value("relay_key_limit_used_ratio", key="alice", limit="tpm")
    assert used == pytest.approx((line["tokens_in"] + 3) / 10_000)


async def test_a_request_that_never_left_gives_its_place_back(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    told = config(upstream, limits={"rpm": 2})
    told["upstreams"]["mine"]["base_url"] = "http://127.0.0.1:9/v1"
    relay = await relay_with(told)
    assert [(await ask(relay)).status for _ in range(4)] == [502] * 4, "nothing was sent, so nothing was used up"
    assert (await relay.settled()).value("relay_key_limit_used_ratio", key="alice", limit="rpm") == 0


async def test_a_failed_attempt_counts_as_a_request_but_uses_no_tokens(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(error_answer(500))
    relay = await relay_with(config(upstream, limits={"rpm": 1, "tpm": 1000}))
    assert (await ask(relay)).status == 500
    refused = await ask(relay)
    assert (refused.status, code_of(refused)) == (429, "rate_limit_rpm")
    assert headers_of(refused)[b"x-ratelimit-remaining-tokens"] == b"1000"


async def test_a_key_on_one_route_and_a_route_for_all_have_limits_of_their_own(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(json_answer(ANSWER))
    told = config(upstream, limits={"rpm": 4, "per_route": {"slow": {"rpm": 1}}})
    told["routes"]["fast"]["limits"] = {"rpm": 2}
    relay = await relay_with(told)
    assert [(await ask(relay, model="slow")).status for _ in range(2)] == [200, 429]
    assert [(await ask(relay)).status for _ in range(3)] == [200, 200, 429]
    by_route = await ask(relay, BOB)
    assert by_route.status == 429, "the route is used up for everybody"
    assert b"x-ratelimit-limit-requests" not in headers_of(by_route), "how busy others are is not bob's business"
    metrics = await relay.settled()
    assert metrics.value("relay_key_rate_limited_total", key="alice", limit="key_route_rpm") == 1
    assert metrics.value("relay_key_rate_limited_total", key="alice", limit="route_rpm") == 1
    assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="rpm") == 0.75, "a refusal takes from no limit"


async def test_only_the_kinds_that_a_key_has_replace_the_upstreams_headers(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    own = [(f"X-RateLimit-{what}-{kind}", "7") for what in ("Limit", "Remaining", "Reset") for kind in ("Requests", "Tokens")]
    upstream.answers(json_answer(ANSWER, headers=own))
    relay = await relay_with(config(upstream, limits={"rpm": 5}))
    pairs = [(name.lower(), value) for name, value in (await ask(relay)).headers if name.lower().startswith(b"x-ratelimit-")]
    assert len(pairs) == 6
    told = dict(pairs)
    assert (told[b"x-ratelimit-limit-requests"], told[b"x-ratelimit-remaining-requests"]) == (b"5", b"4")
    assert told[b"x-ratelimit-reset-requests"] in (b"1m0.001s", b"1m0s")
    assert {told[b"x-ratelimit-limit-tokens"], told[b"x-ratelimit-remaining-tokens"], told[b"x-ratelimit-reset-tokens"]} == {b"7"}
    assert {value for name, value in (await ask(relay, BOB)).headers if name.lower().startswith(b"x-ratelimit-")} == {b"7"}


@pytest.mark.parametrize("budget", ["100 tokens/day", "0.0001 USD/month"])
async def test_a_spent_budget_refuses_and_outlives_a_restart(upstream: ScriptedUpstream, tmp_path: Path, budget: str) -> None:
    upstream.answers(json_answer(ANSWER | USED))
    prices = {"mine/*": {"input": 1, "output": 2}}  # 30 tokens cost 50 millionths of a dollar
    told = config(upstream, limits={"budget": budget}, prices=prices, state_dir=str(tmp_path / "state"))
    relay = await RelayProcess(told, tmp_path).start()
    allowed = 0
    while (response := await ask(relay, max_tokens=1)).status == 200:
        allowed += 1
        assert allowed < 10
    assert allowed in (1, 2, 3)
    assert code_of(response) == "budget_exhausted"
    headers = headers_of(response)
    assert headers[b"x-should-retry"] == b"false"
    assert 0 < int(headers[b"retry-after"]) <= 31 * 86_400
    relay.kill()
    relay = await RelayProcess(told, tmp_path).start()
    try:
        assert code_of(await ask(relay, max_tokens=1)) == "budget_exhausted"
    finally:
        await relay.stop()


async def test_an_sdk_waits_as_long_as_it_is_told(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.answers(gate.script)
    relay = await relay_with(config(upstream, limits={"concurrency": 1}))
    async with openai.AsyncOpenAI(base_url=relay.url, api_key="sk-alice", max_retries=3) as client:
        first = asyncio.create_task(client.chat.completions.create(**CHAT))  # type: ignore[call-overload]
        await gate.until(1)
        second = asyncio.create_task(client.chat.completions.create(**CHAT))  # type: ignore[call-overload]
        await relay.wait_log(outcome="rate_limited")
        gate.open()
        assert (await first).id == (await second).id == "x"


async def test_limits_change_with_a_reload_and_what_was_counted_stays(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(json_answer(ANSWER))
    told = config(upstream, limits={"rpm": 2})
    relay = await relay_with(told)
    assert [(await ask(relay)).status for _ in range(3)] == [200, 200, 429]
    told["keys"]["alice"]["limits"] = {"rpm": 3}
    relay.write_config(told)
    relay.process.send_signal(signal.SIGHUP)
    await relay.wait_log("reload", result="ok")
    assert [(await ask(relay)).status for _ in range(2)] == [200, 429]


async def test_a_lost_slot_and_a_wrong_reservation_are_counted_as_violations(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(json_answer(ANSWER))
    async with relay_in_loop(config(upstream, limits={"rpm": 100, "tpm": "1M"}), tmp_path, is_quiet=False) as relay:
        assert (await ask(relay)).status == 200
        accounts = relay.app._accounts
        assert accounts is not None
        counted: list[str] = []
        accounts.sweep(0, counted.append)
        assert counted == []
        accounts.ledger.taken += 1
        assert (await ask(relay)).status == 200
        metrics = await relay.metrics()
        assert metrics.value("relay_invariant_violations_total", invariant=SLOTS_IDENTITY) == 1
        accounts.ledger.taken -= 1
        accounts.ledger.refunded += 1
        assert (await ask(relay)).status == 200
        metrics = await relay.metrics()
        assert metrics.value("relay_invariant_violations_total", invariant=TOKENS_IDENTITY) == 1
        accounts.ledger.refunded -= 1


async def test_four_workers_let_exactly_the_limit_in_and_a_killed_ones_slots_come_back(
    relay_with: RelayWith, upstream: ScriptedUpstream
) -> None:
    gate = Gate()
    upstream.answers(gate.script)
    relay = await relay_with(config(upstream, limits={"rpm": 100, "concurrency": 10}, server={"workers": 4}), is_quiet=False)
    asked = [asyncio.create_task(ask(relay)) for _ in range(40)]
    await gate.until(10)
    while sum(task.done() for task in asked) < 30:
        await asyncio.wait([task for task in asked if not task.done()], return_when=asyncio.FIRST_COMPLETED, timeout=20)
    assert {code_of(task.result()) for task in asked if task.done()} == {"concurrency_limited"}
    gate.open()
    assert Counter(answer.status for answer in await asyncio.gather(*asked)) == {200: 10, 429: 30}
    assert gate.most == 10
    upstream.answers(body([role(), content("a")], headers=EVENT_STREAM, end="hang"))
    streams = [await RawClient.open(relay.port) for _ in range(10)]
    for client in streams:
        asking = json.dumps({**CHAT, "stream": True}).encode()
        await client.request("POST", "/v1/chat/completions", [*ALICE, ("Content-Type", "application/json")], asking)
        assert (await client.read_head()).status == 200
    victims = [child for child in relay.process.children() if any(link.status == "ESTABLISHED" for link in child.net_connections())]
    for victim in victims:
        victim.kill()
    upstream.answers(json_answer(ANSWER))
    statuses: Counter[int] = Counter()
    async with asyncio.timeout(30):
        while statuses[200] < 80:
            # Refused until the slots are back, then until the minute's hundred are used up.
            try:
                statuses[(await ask(relay)).status] += 1
            except (OSError, EOFError):
                await asyncio.sleep(0.05)
    assert (await ask(relay)).status == 429
    for client in streams:
        await client.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_state_that_cannot_be_written_is_told_at_the_start(upstream: ScriptedUpstream, tmp_path: Path, workers: int) -> None:
    (tmp_path / "file").write_text("")
    told = config(upstream, state_dir=str(tmp_path / "file" / "state"), server={"workers": workers})
    relay = RelayProcess(told, tmp_path)
    relay.launch()
    assert await relay.wait_exit(within=30.0) == 1
    assert f"cannot write {tmp_path}/file/state/limits" in relay.stderr()


async def test_limits_of_stored_keys_hold(relay_with: RelayWith, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(json_answer(ANSWER))
    store = tmp_path / "keys.db"
    command = [sys.executable, "-m", "relay", "keys", "new", "carol", "--rpm", "2", "--store", str(store)]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = config(upstream)
    told["keys"] = {"store": str(store)}
    relay = await relay_with(told)
    carol = (("Authorization", f"Bearer {made.stdout.strip()}"),)
    assert [(await ask(relay, carol)).status for _ in range(3)] == [200, 200, 429]
    assert (await relay.settled()).value("relay_key_limit_used_ratio", key="carol", limit="rpm") == 1
