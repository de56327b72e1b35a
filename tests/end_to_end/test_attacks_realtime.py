"""The WebSocket tunnel of GET /v1/realtime (A10, A49): both ways byte for byte, ended by either side, and no other Upgrade."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import Bed, Refusal, request
from tests.fakes import scripts
from tests.fakes.client import RawClient
from tests.fakes.upstream import Peer, ScriptedUpstream

UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
KEY = b"Authorization: Bearer sk-alice"
SWITCHED = scripts.head(
    101, [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")]
)
PATH = b"/v1/realtime?model=gpt-realtime"
MIB = 2**20


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    config = {
        "upstreams": {"mine": {"base_url": shared_upstream.url, "api_key": "sk-upstream"}},
        "routes": {"*": "mine/*"},
        "keys": {"alice": {"key": "sk-alice"}, "fast": {"key": "sk-fast", "routes": ["nothing"]}},
        "timeouts": {"between_tokens": "1s", "first_token": "1s", "write": "1s"},
    }
    config["routes"]["nothing"] = "mine/nothing"  # type: ignore[index]
    bed = Bed(await shared_relay_with(config), shared_upstream, headers=[("Authorization", "Bearer sk-alice")])
    yield bed
    await bed.settle_accounts()


def ask(*lines: bytes, path: bytes = PATH) -> bytes:
    return request(b"GET %b HTTP/1.1" % path, b"Host: relay", *lines)


async def open_tunnel(bed: Bed, *lines: bytes, path: bytes = PATH) -> RawClient:
    """Ask for the tunnel and take the 101."""
    client = await bed.relay.connect()
    await client.send(ask(*UPGRADE, KEY, *lines, path=path))
    head = await client.read_head()
    assert head.status == 101, head.raw
    assert (head.header("connection"), head.header("upgrade")) == (b"Upgrade", b"websocket")
    assert head.header("sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    return client


async def echo(peer: Peer) -> None:
    """Switch, greet in the same segment, and send everything back."""
    await peer.send(SWITCHED + b"hello")
    while data := await peer.read_raw():
        await peer.send(data)
    await peer.fin()


async def silent(peer: Peer) -> None:
    """Switch and say nothing more."""
    await peer.send(SWITCHED)
    await peer.wait_closed()


async def leave(peer: Peer) -> None:
    """Switch, say something and close."""
    await peer.send(SWITCHED + b"bye")
    await peer.fin()


async def test_tunnel_carries_both_ways_byte_for_byte(bed: Bed) -> None:
    bed.upstream.route("/v1/realtime", echo)
    sent = bytes(range(256)) * 4096
    client = await open_tunnel(bed)
    async with client:
        await client.read_until(b"hello")
        assert client._take(5) == b"hello"
        await client.send(sent)
        await client._until(lambda: len(client.inbox) >= len(sent), 15)
        assert client._take(len(sent)) == sent
        got = bed.upstream.requests[-1]
        client.fin()
        await bed.upstream.wait_closed(got)
    assert (got.target, got.header("upgrade"), got.header("connection")) == (PATH, b"websocket", b"Upgrade")
    assert got.header("sec-websocket-key") == b"dGhlIHNhbXBsZSBub25jZQ=="
    assert got.all("authorization") == [b"Bearer sk-upstream"]
    line = await last_line(bed)
    assert (line["operation"], line["outcome"], line["status"]) == ("realtime", "client_gone", 101)


async def last_line(bed: Bed) -> dict[str, Any]:
    """Return the log line of the exchange that ended last."""
    await bed.relay.settled()
    return bed.relay.logs("request")[-1]


async def test_browsers_key_among_the_subprotocols_is_not_passed_on(bed: Bed) -> None:
    bed.upstream.route("/v1/realtime", silent)
    line = b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-CANARY, openai-beta.realtime-v1"
    async with await open_tunnel(bed, line, b"Cookie: a=b", b"Origin: https://app.example.com"):
        got = bed.upstream.requests[-1]
    assert b"CANARY" not in got.head
    assert got.header("sec-websocket-protocol") == b"realtime, openai-beta.realtime-v1"
    assert got.all("cookie") == []
    assert "CANARY" not in bed.relay.stderr()


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_client_that_leaves_closes_the_upstream_promptly(bed: Bed, how: str) -> None:
    bed.upstream.route("/v1/realtime", silent)
    client = await open_tunnel(bed)
    async with client:
        got = bed.upstream.requests[-1]
        loop = asyncio.get_running_loop()
        left_at = loop.time()
        (client.fin if how == "fin" else client.rst)()
        await bed.upstream.wait_closed(got, within=2.5)
    assert (got.closed_at or 0) - left_at < 2.5
    assert (await last_line(bed))["outcome"] == "client_gone"


async def test_upstream_that_leaves_closes_the_client(bed: Bed) -> None:
    bed.upstream.route("/v1/realtime", leave)
    async with await open_tunnel(bed) as client:
        got, _ = await client.read_until_close(within=5)
    assert got == b"bye"
    await bed.still_serves()


async def test_open_line_may_be_silent_for_longer_than_a_stream(bed: Bed) -> None:
    bed.upstream.route("/v1/realtime", echo)
    async with await open_tunnel(bed) as client:
        await asyncio.sleep(1.5)
        await client.send(b"still here")
        await client.read_until(b"still here")


async def test_frames_sent_before_the_101_are_not_lost(bed: Bed) -> None:
    """Some clients do not wait: what they send behind the request belongs to the tunnel, and is never read as a request."""

    async def slow(peer: Peer) -> None:
        await peer.sleep(0.1)
        await echo(peer)

    bed.upstream.route("/v1/realtime", slow)
    known = len(bed.upstream.requests)
    async with await bed.relay.connect() as client:
        await client.send(ask(*UPGRADE, KEY) + ask(KEY, path=b"/v1/smuggled"))
        head = await client.read_head()
        assert head.status == 101
        await client.send(b"end of the line")
        await client.read_until(b"end of the line")
        assert b"/v1/smuggled" in client.inbox
    assert [got.path for got in bed.upstream.requests[known:]] == ["/v1/realtime"]


async def test_side_that_does_not_read_stops_the_other_one(bed: Bed) -> None:
    """Both directions: what nobody takes is not read any more, so that the relay holds only what its buffers hold."""
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.send(SWITCHED)
        while not peer.is_gone:
            await peer.send(b"x" * 2**16)
            sent = peer.sent_bytes

    bed.upstream.route("/v1/realtime", flood)
    memory = bed.relay.process.memory_info().rss
    async with await bed.relay.connect(receive_buffer=2**14) as client:
        await client.send(ask(*UPGRADE, KEY))
        await client.read_head()
        client.pause()
        await asyncio.sleep(0.4)
        first = sent
        await asyncio.sleep(0.3)
        assert sent - first <= 2**20
        assert bed.relay.process.memory_info().rss - memory < 16 * MIB

    may_hear = asyncio.Event()

    async def deaf(peer: Peer) -> None:
        await peer.send(SWITCHED)
        peer.pause_reading()
        await may_hear.wait()
        peer.resume_reading()
        await peer.wait_closed()

    bed.upstream.route("/v1/realtime", deaf)
    async with await open_tunnel(bed) as client:
        with pytest.raises(TimeoutError):
            for _ in range(1024):
                await client.send(b"y" * 2**16, within=0.4)
        assert bed.relay.process.memory_info().rss - memory < 24 * MIB
        may_hear.set()
    await bed.still_serves()


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
async def test_upstream_that_does_not_switch_is_answered_as_http(bed: Bed, status: int) -> None:
    bed.upstream.route("/v1/realtime", scripts.error_answer(status, code="no_tunnel"))
    async with await bed.relay.connect() as client:
        await client.send(ask(*UPGRADE, KEY))
        answer = await client.read_response(method="GET")
    wanted = (502, "upstream_auth_error") if status in (401, 403) else (status, "no_tunnel")
    assert (answer.status, answer.error_code) == wanted


REFUSED: dict[str, tuple[bytes, Refusal]] = {
    "no key": (ask(*UPGRADE), Refusal(status=401, code="missing_key", outcome="unauthorized")),
    "wrong key": (ask(*UPGRADE, b"x-api-key: sk-x"), Refusal(status=401, code="invalid_api_key", outcome="unauthorized")),
    "route not allowed": (
        ask(*UPGRADE, b"Authorization: Bearer sk-fast"),
        Refusal(status=403, code="route_not_allowed", outcome="unauthorized"),
    ),
    "other path": (ask(*UPGRADE, KEY, path=b"/v1/files"), Refusal(status=400, code="bad_upgrade", closes=True)),
    "path below": (ask(*UPGRADE, KEY, path=b"/v1/realtime/x"), Refusal(status=400, code="bad_upgrade", closes=True)),
    "other protocol": (ask(b"Connection: Upgrade", b"Upgrade: h2c", KEY), Refusal(status=400, code="bad_upgrade", closes=True)),
    "list of protocols": (
        ask(b"Connection: Upgrade", b"Upgrade: websocket, h2c", KEY),
        Refusal(status=400, code="bad_upgrade", closes=True),
    ),
    "POST": (
        request(b"POST %b HTTP/1.1" % PATH, b"Host: relay", *UPGRADE, KEY, b"Content-Length: 0"),
        Refusal(status=400, code="bad_upgrade", closes=True),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_other_upgrade_is_refused(bed: Bed, name: str) -> None:
    data, wanted = REFUSED[name]
    await bed.refuse(data, wanted)
