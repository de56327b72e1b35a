"""Slow requests (A35, A36): whoever sends a byte now and then is cut in time, and costs nobody else anything.

The relay's own figures (15 s for the first request, 30 s between bytes) are tried in the slow tests; the rules, with short
figures, against a relay in the test's own process.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.app.application import App
from relay.config import load
from relay.transport import listener, upload
from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, answers_in, post
from tests.fakes import scripts
from tests.fakes.client import RawClient
from tests.fakes.relay import config_for
from tests.fakes.upstream import ScriptedUpstream

FIRST_REQUEST_SECONDS = 0.3
GAP_SECONDS = 0.3


@pytest.fixture
async def port(upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a relay in this process whose patience with clients is short."""
    monkeypatch.setattr(listener, "FIRST_REQUEST_SECONDS", FIRST_REQUEST_SECONDS)
    monkeypatch.setattr(upload, "GAP_SECONDS", GAP_SECONDS)
    monkeypatch.setattr(listener, "LINGER_SECONDS", 0.1)
    upstream.answers(scripts.json_answer(ANSWER))
    file = tmp_path / "relay.yaml"
    lines = [
        "server: {listen: '127.0.0.1:0'}",
        f"upstreams: {{mine: {{base_url: '{upstream.url}', api_key: sk-upstream}}}}",
        "routes: {'*': mine/*}",
    ]
    file.write_text("\n".join(lines))
    app = App(load(str(file), {}), reload=None, log_file=io.BytesIO())
    url = await app.start()
    yield int(url.rpartition(":")[2])
    await app.close()


async def drip(client: RawClient, data: bytes, pause: float) -> None:
    """Send a byte at a time until the other side closes."""
    for byte in data:
        if client.closed_how is not None:
            return
        try:
            await client.send(bytes([byte]))
        except ConnectionError:
            return
        await asyncio.sleep(pause)


async def test_a35_connection_that_never_sends_a_request_is_closed(port: int) -> None:
    async with await RawClient.open(port) as client:
        got, _ = await client.read_until_close(within=5)
    assert got == b""


async def test_a35_headers_that_drip_in_are_cut_however_steadily(port: int, upstream: ScriptedUpstream) -> None:
    started_at = time.monotonic()
    async with await RawClient.open(port) as client:
        await drip(client, post(b"X-Slow: " + b"y" * 1000), 0.02)
        got, _ = await client.read_until_close(within=5)
    assert answers_in(got) == 0
    assert time.monotonic() - started_at < 10 * FIRST_REQUEST_SECONDS
    assert upstream.requests == []


async def test_a35_connection_that_was_served_in_time_lives_on(port: int) -> None:
    async with await RawClient.open(port) as client:
        assert (await client.exchange(CHAT, {"model": "m"})).status == 200
        await asyncio.sleep(2 * FIRST_REQUEST_SECONDS)
        assert (await client.exchange(CHAT, {"model": "m"})).status == 200


async def test_a35_long_answer_to_a_first_request_in_time_is_not_cut(port: int, upstream: ScriptedUpstream) -> None:
    upstream.route("long", scripts.after(3 * FIRST_REQUEST_SECONDS, scripts.json_answer(ANSWER)))
    async with await RawClient.open(port) as client:
        assert (await client.exchange(CHAT, {"model": "long"})).status == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
async def test_a36_body_that_stops_coming_is_refused_and_closed(port: int, path: str) -> None:
    async with await RawClient.open(port) as client:
        await client.send(post(b"Content-Length: 50", body=b'{"model":', path=path.encode()))
        answer = await client.read_response(within=5)
        await client.read_until_close(within=5)
    assert (answer.status, answer.error_code, answer.header("connection")) == (408, "request_timeout", b"close")


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
async def test_a36_body_that_drips_in_is_refused_however_steadily(port: int, path: str) -> None:
    async with await RawClient.open(port) as client:
        await client.send(post(b"Content-Length: 5000", b"Content-Type: application/json", body=b"", path=path.encode()))
        await drip(client, b"y" * 200, 0.02)
        answer = await client.read_response(within=5)
    assert (answer.status, answer.error_code) == (408, "request_timeout")


async def test_a36_slow_body_that_keeps_a_decent_rate_is_read(port: int, upstream: ScriptedUpstream) -> None:
    body = b'{"model":"m","x":"' + b"y" * 20_000 + b'"}'
    async with await RawClient.open(port) as client:
        await client.send(post(b"Content-Length: %d" % len(body), body=b""))
        for start in range(0, len(body), 2000):
            await client.send(body[start : start + 2000])
            await asyncio.sleep(0.05)
        assert (await client.read_response()).status == 200
    assert upstream.requests[-1].body == body


@pytest.mark.slow
async def test_a35_a36_the_relays_own_figures(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> None:
    bed = Bed(await shared_relay_with(config_for(shared_upstream)), shared_upstream)

    async def seconds(data: bytes, drops: bytes) -> tuple[float, bytes]:
        started_at = time.monotonic()
        async with await bed.relay.connect() as client:
            await client.send(data)
            await drip(client, drops, 0.3)
            got, _ = await client.read_until_close(within=45)
        return time.monotonic() - started_at, got

    silent, headers, stopped, dripping = await asyncio.gather(
        seconds(b"", b""),
        seconds(b"POST / HTTP/1.1\r\nX-Slow: ", b"y" * 100),
        seconds(post(b"Content-Length: 50", body=b"{"), b""),
        seconds(post(b"Content-Length: 5000", body=b""), b"y" * 150),
    )
    assert 14 < silent[0] < 20
    assert 14 < headers[0] < 20
    assert 29 < stopped[0] < 40
    assert stopped[1].startswith(b"HTTP/1.1 408 ")
    assert 29 < dripping[0] < 40
    assert dripping[1].startswith(b"HTTP/1.1 408 ")
    await bed.still_serves()
