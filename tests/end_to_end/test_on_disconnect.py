"""Streams whose clients leave: cancelled at once, or read on within bounds to learn what they used."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.fakes.client import RawClient
from tests.fakes.events import DONE, chat_chunk, content, role
from tests.fakes.scripts import EVENT_STREAM, head
from tests.fakes.upstream import Peer, ScriptedUpstream

CHAT = "/v1/chat/completions"
ALICE = [("Authorization", "Bearer sk-alice")]
END = [chat_chunk(finish="stop"), chat_chunk(usage=(70, 30)), DONE]


class Paced:
    """A stream whose end comes when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        await peer.send(head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]))
        for event in [role(), content("a"), content("b")]:
            await peer.send_chunk(event)
        await self.go_on.wait()
        for event in END:
            await peer.send_chunk(event)
        await peer.send(b"0\r\n\r\n")


def config(upstream: ScriptedUpstream, bounds: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    route = {"to": "mine/m", **({} if bounds is None else {"on_disconnect": bounds})}
    return {
        "upstreams": {"mine": {"base_url": upstream.url, "api_key": "sk-upstream"}},
        "routes": {"fast": route},
        "keys": {"alice": {"key": "sk-alice", "limits": {"tpm": 10_000, "concurrency": 1}}},
        **more,
    }


async def begun_and_left(relay: RelayInLoop) -> None:
    client = await RawClient.open(relay.port)
    await client.post(CHAT, {"model": "fast", "messages": [], "stream": True}, ALICE)
    await client.read_head()
    await client.close()


async def slots(relay: RelayInLoop) -> float:
    return (await relay.metrics()).value("relay_key_limit_used_ratio", key="alice", limit="concurrency")


async def until_closed(upstream: ScriptedUpstream) -> None:
    async with asyncio.timeout(10):
        while not upstream.requests or upstream.requests[0].closed_how is None:
            await asyncio.sleep(0.01)


async def ended(relay: RelayInLoop) -> dict[str, Any]:
    await relay.settled()
    await relay.assert_identities()
    (line,) = relay.logs("request")
    return line


async def test_by_default_the_upstream_is_cancelled(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(Paced().script)
    async with relay_in_loop(config(upstream, None), tmp_path) as relay:
        await begun_and_left(relay)
        await until_closed(upstream)
        line = await ended(relay)
        assert (line["outcome"], line["tokens_source"]) == ("client_gone", "estimated")


async def test_a_drained_stream_tells_its_true_usage_and_keeps_its_slot_meanwhile(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    paced = Paced()
    upstream.answers(paced.script)
    async with relay_in_loop(config(upstream, {"drain": "20s"}), tmp_path) as relay:
        await begun_and_left(relay)
        refused = await relay.post(CHAT, {"model": "fast", "messages": [], "stream": True}, ALICE)
        assert refused.error_code == "concurrency_limited"
        assert await slots(relay) == 1
        assert upstream.requests[0].closed_how is None
        paced.go_on.set()
        metrics = await relay.settled()
        await relay.assert_identities()
        (line,) = relay.logs("request", outcome="client_gone")
        assert (line["tokens_in"], line["tokens_out"], line["tokens_source"]) == (70, 30, "drained")
        assert metrics.value("relay_tokens_total", type="output", source="drained") == 30
        assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="tpm") == pytest.approx(0.01)
        assert metrics.value("relay_key_limit_used_ratio", key="alice", limit="concurrency") == 0
        assert metrics.sum("relay_requests_total", outcome="client_gone") == 1
        upstream.answers(paced.script)
        again = await relay.post(CHAT, {"model": "fast", "messages": [], "stream": True}, ALICE)
        assert again.end == "complete"
        assert upstream.requests[1].number_on_connection == 1, "the connection was read to its end, so it serves again"


@pytest.mark.parametrize("bounds", [{"drain": "200ms"}, {"drain": "20s", "max_tokens": 2}], ids=["time", "tokens"])
async def test_a_bound_ends_it(upstream: ScriptedUpstream, tmp_path: Path, bounds: dict[str, Any]) -> None:
    upstream.answers(Paced().script)
    async with relay_in_loop(config(upstream, bounds), tmp_path) as relay:
        await begun_and_left(relay)
        await until_closed(upstream)
        line = await ended(relay)
        assert (line["outcome"], line["tokens_source"], line["tokens_out"]) == ("client_gone", "estimated", 2)
        assert await slots(relay) == 0


async def test_an_upstream_that_breaks_off_ends_it(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.send(head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]))
        await peer.send_chunk(role() + content("a"))
        await gone.wait()
        await peer.fin()

    upstream.answers(script)
    async with relay_in_loop(config(upstream, {"drain": "20s"}), tmp_path) as relay:
        await begun_and_left(relay)
        gone.set()
        assert (await ended(relay))["outcome"] == "client_gone"


async def test_a_stop_of_the_relay_ends_it(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answers(Paced().script)
    async with relay_in_loop(config(upstream, {"drain": "1h"}, server={"drain": "60s"}), tmp_path) as relay:
        await begun_and_left(relay)
        assert await slots(relay) == 1
        async with asyncio.timeout(10):
            await relay.drain()
        (line,) = relay.logs("request")
        assert line["outcome"] == "client_gone"


async def test_a_client_that_leaves_before_the_answer_cancels_it_all_the_same(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async def silent(peer: Peer) -> None:
        await asyncio.Event().wait()

    upstream.answers(silent)
    async with relay_in_loop(config(upstream, {"drain": "1h"}), tmp_path) as relay:
        client = await RawClient.open(relay.port)
        await client.post(CHAT, {"model": "fast", "messages": [], "stream": True}, ALICE)
        async with asyncio.timeout(10):
            while not upstream.requests:
                await asyncio.sleep(0.01)
        await client.close()
        await until_closed(upstream)
        assert (await ended(relay))["outcome"] == "client_gone"
