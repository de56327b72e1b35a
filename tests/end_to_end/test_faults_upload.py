"""F36: a client that stops in the middle of its upload, or sends it by drops.

The relay's own bounds (30 s between bytes, 1 KB/s) are tried in a slow test against `relay serve`; the others run it in the test's
loop, with a bound of a fraction of a second, and look at the same things.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.transport import listener, upload
from tests.conftest import RelayWith
from tests.end_to_end.fault_bed import CLOSE_SECONDS
from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.fakes.client import RawClient, Response
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import respond
from tests.fakes.upstream import Peer, ScriptedUpstream

GAP_SECONDS = 0.3
LINGER_SECONDS = 0.1
START = b'{"model": "some-model", "messages": ['
JSON = ("Content-Type", "application/json")
CHUNKED = ("Transfer-Encoding", "chunked")


@pytest.fixture
async def impatient(upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RelayInLoop]:
    """A relay with short bounds on uploads."""
    monkeypatch.setattr(upload, "GAP_SECONDS", GAP_SECONDS)
    monkeypatch.setattr(listener, "LINGER_SECONDS", LINGER_SECONDS)
    upstream.answers(respond(200, body=b"{}"))
    async with relay_in_loop(config_for(upstream), tmp_path) as relay:
        yield relay
        await relay.assert_identities()


async def refused(relay: RelayProcess, client: RawClient, *, within: float = CLOSE_SECONDS, **fields: object) -> Response:
    """Take the 408 and the close, and look at the log line and the counter."""
    response = await client.read_response(within=within)
    assert (response.status, response.error_code, response.end) == (408, "request_timeout", "complete")
    assert response.header("connection") == b"close"
    await client.read_until_close(within=CLOSE_SECONDS)
    (line,) = await relay.wait_log(status=408)
    expected = {"outcome": "client_stalled", "error_code": "request_timeout", **fields}
    assert {name: line[name] for name in expected} == expected
    metrics = await relay.settled()
    assert metrics.sum("relay_requests_total") == metrics.sum("relay_requests_total", outcome="client_stalled") == 1
    return response


@pytest.mark.parametrize("framing", [("Content-Length", "5000"), CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/batches"], ids=["parsed", "peeked"])
async def test_f36_a_stalled_request_gets_408_and_reaches_no_upstream(
    path: str, framing: tuple[str, str], impatient: RelayInLoop, upstream: ScriptedUpstream
) -> None:
    async with await impatient.connect() as client:
        await client.request("POST", path, [JSON, framing], b"25\r\n" + START + b"\r\n" if framing is CHUNKED else START)
        await refused(impatient, client, attempts=0, upstream=None)
    assert upstream.connection_count == 0


async def test_f36_an_upload_by_drops_gets_408(impatient: RelayInLoop, upstream: ScriptedUpstream) -> None:
    async with await impatient.connect() as client:
        await client.request("POST", "/v1/chat/completions", [JSON, ("Content-Length", "5000")], START)
        for _ in range(30):
            await asyncio.sleep(0.05)
            if client.closed_how is not None:
                break
            await client.send(b" ")
        await refused(impatient, client, attempts=0)
    assert upstream.connection_count == 0


@pytest.mark.parametrize("framing", [("Content-Length", "5000"), CHUNKED], ids=["length", "chunked"])
async def test_f36_a_stalled_upload_that_an_upstream_is_getting_is_taken_from_it(
    framing: tuple[str, str], impatient: RelayInLoop, upstream: ScriptedUpstream
) -> None:
    async def script(peer: Peer) -> None:
        await peer.body()

    upstream.route("/v1/files", script, early=True)
    async with await impatient.connect() as client:
        start = b"A" * 100
        body = b"64\r\n" + start + b"\r\n" if framing is CHUNKED else start
        await client.request("POST", "/v1/files", [("Content-Type", "application/octet-stream"), framing], body)
        await refused(impatient, client, attempts=1, upstream="mine")
    (request,) = upstream.of("/v1/files")
    assert await upstream.wait_closed(request, within=CLOSE_SECONDS) in ("fin", "rst")
    assert request.body_complete_at is None, "the upstream was made to believe that it had everything"
    metrics = await impatient.settled()
    assert metrics.sum("relay_upstream_attempts_total") == metrics.sum("relay_upstream_attempts_total", result="cancelled") == 1


@pytest.mark.slow
async def test_f36_a_request_that_stalls_for_half_a_minute_gets_408(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    relay = await relay_with(config_for(upstream))
    async with await relay.connect() as client:
        await client.request("POST", "/v1/chat/completions", [JSON, ("Content-Length", "5000")], START)
        await refused(relay, client, within=upload.GAP_SECONDS + CLOSE_SECONDS, attempts=0)
    assert upstream.connection_count == 0
