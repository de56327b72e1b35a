"""Uploads that end before they are whole: whoever sends one reads its answer, and nothing of it is an error of the relay's own."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, Refusal, post
from tests.fakes import scripts
from tests.fakes.relay import config_for
from tests.fakes.upstream import Peer, ScriptedUpstream

PIECE = b"x" * 1000
PIECES = 5
GARBLED = Refusal(status=400, code="bad_request", closes=True)


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    bed = Bed(await shared_relay_with(config_for(shared_upstream)), shared_upstream)
    yield bed
    await bed.settle_accounts()  # stopping it finds any `connection_failure` in its log


@pytest.mark.parametrize("status", [200, 413])
async def test_who_goes_on_sending_behind_an_early_answer_reads_that_answer_before_the_connection_is_closed(bed: Bed, status: int) -> None:
    async def early(peer: Peer) -> None:
        await scripts.json_answer(ANSWER, status)(peer)

    bed.upstream.route(f"/v1/early-{status}", early, early=True)
    async with await bed.relay.connect() as client:
        length = 1000 * len(PIECE)
        await client.send(b"POST /v1/early-%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (status, length) + PIECE)
        await client.read_until(b"\r\n\r\n")
        for _ in range(PIECES):
            # Well within the second for which the rest is read.
            await client.send(PIECE)
            await asyncio.sleep(0.005)
        answer = await client.read_response()
        assert (answer.status, answer.json(), answer.end) == (status, ANSWER, "complete")
        assert answer.header("connection") == b"close"
    await bed.still_serves()


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
@pytest.mark.parametrize("rest", [b"zz\r\n", b"5\r\nabcdefgh\r\n", b"-1\r\n", b"F" * 18 + b"\r\n"])
async def test_a_body_that_stops_being_http_is_the_callers_fault_alone(bed: Bed, path: str, rest: bytes) -> None:
    begun = post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n", path=path.encode())
    async with await bed.relay.connect() as client:
        await client.send(begun)
        await asyncio.sleep(0.05)  # the rest comes as bytes of their own, when somebody is reading the body
        await client.send(rest)
        answer = await client.read_response()
        assert await client.read_until_close(within=5) == (b"", "fin")
    bed.check(answer, GARBLED)
    await bed.still_serves()
