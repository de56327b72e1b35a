"""The pools: who gets which connection, how long one is kept, and what a reload leaves behind."""

import asyncio

import pytest

from relay.config.tree import Upstream
from relay.errors import ConnectFailed
from relay.stream import BodyEnd
from relay.transport import upstream as pools_module
from relay.transport.fetch import MAX_BYTES, fetch
from relay.transport.upstream import IDLE_SECONDS, UpstreamPools
from tests.fakes import scripts
from tests.fakes.ports import free_port
from tests.fakes.upstream import ScriptedUpstream
from tests.transport.doubles import RecordingReceiver

HEAD = b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n"


def upstream_of(fake: ScriptedUpstream, name: str = "mine") -> Upstream:
    return Upstream(name=name, base_url=fake.url)


async def answer(
    pools: UpstreamPools, upstream: Upstream, *, is_fresh: bool = False, is_upload: bool = False
) -> tuple[object, RecordingReceiver]:
    from relay.exchange import UpstreamRequest

    receiver = RecordingReceiver()
    request = UpstreamRequest(upstream=upstream, method="GET", head=HEAD, body=b"", is_upload=is_upload)
    connection = await pools.begin(request, receiver, 2.0, is_fresh=is_fresh)
    async with asyncio.timeout(2.0):
        while not receiver.ends:
            await asyncio.sleep(0.002)
    return connection, receiver


async def test_a_connection_is_used_again(upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.json_answer({}))
    pools, mine = UpstreamPools(), upstream_of(upstream)
    first, receiver = await answer(pools, mine)
    assert receiver.how is BodyEnd.WHOLE
    assert pools.counts() == {"mine": (1, 1)}
    second, _ = await answer(pools, mine)
    assert second is first
    fresh, _ = await answer(pools, mine, is_fresh=True)
    assert fresh is not first
    assert pools.counts() == {"mine": (2, 2)}
    pools.close()


async def test_an_upload_never_takes_a_connection_that_may_be_stale(upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.json_answer({}))
    pools, mine = UpstreamPools(), upstream_of(upstream)
    first, _ = await answer(pools, mine)
    second, _ = await answer(pools, mine, is_upload=True)
    assert second is not first
    pools.close()


async def test_an_old_connection_is_not_used_and_is_closed(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.answers(scripts.json_answer({}))
    pools, mine = UpstreamPools(), upstream_of(upstream)
    first, _ = await answer(pools, mine)
    later = pools_module.monotonic() + IDLE_SECONDS + 1
    monkeypatch.setattr(pools_module, "monotonic", lambda: later)
    second, _ = await answer(pools, mine)
    assert second is not first
    await upstream.wait_open_count(1)
    pools.close()


async def test_a_connection_that_the_upstream_closed_is_not_used(upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.json_answer({}))
    pools, mine = UpstreamPools(), upstream_of(upstream)
    first, _ = await answer(pools, mine)
    first.discard()  # type: ignore[attr-defined]  # a Connection
    second, receiver = await answer(pools, mine)
    assert second is not first and receiver.how is BodyEnd.WHOLE
    pools.close()


async def test_a_connection_made_ahead_counts_as_one_that_has_idled(upstream: ScriptedUpstream) -> None:
    """F5: it may be stale when its time comes, and then the request is sent again."""
    upstream.answers(scripts.json_answer({}))
    pools, mine = UpstreamPools(), upstream_of(upstream)
    await pools.pool(mine).warm_up(2.0)
    connection, _ = await answer(pools, mine)
    assert pools.counts() == {"mine": (1, 1)}
    assert connection.is_reused  # type: ignore[attr-defined]  # a Connection
    pools.close()


async def test_a_changed_upstream_gets_a_pool_of_its_own(upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.json_answer({}))
    pools = UpstreamPools()
    first, _ = await answer(pools, upstream_of(upstream))
    second, _ = await answer(pools, upstream_of(upstream))
    assert second is not first
    await upstream.wait_open_count(1)
    pools.close()
    await upstream.wait_open_count(0)


async def test_a_refused_connection_sends_nothing() -> None:
    with pytest.raises(ConnectFailed):
        await answer(UpstreamPools(), Upstream(name="x", base_url=f"http://127.0.0.1:{free_port()}/v1"))


@pytest.mark.parametrize(
    ("script", "body"),
    [
        (scripts.json_answer({"data": []}), True),
        (scripts.json_answer({}, status=500), False),
        (scripts.close(), False),
        (scripts.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", end="fin"), False),
        (scripts.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), False),
        (scripts.respond(body=b"x" * (MAX_BYTES + 1)), False),
    ],
    ids=["good", "500", "closed", "cut", "malformed", "too large"],
)
async def test_a_fetch_gives_the_body_of_a_whole_200_alone(upstream: ScriptedUpstream, script: scripts.Script, body: bool) -> None:
    upstream.answers(script)
    pools = UpstreamPools()
    async with asyncio.timeout(5.0):
        found = await fetch(pools, upstream_of(upstream), "/v1/models", lambda upstream: b"sk-up")
    assert (found is not None) == body
    assert upstream.requests[0].path == "/v1/models"
    assert upstream.requests[0].all("authorization") == [b"Bearer sk-up"]
    pools.close()


async def test_a_fetch_that_is_given_up_closes_its_connection(upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.hang())
    pools = UpstreamPools()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await fetch(pools, upstream_of(upstream), "/v1/models", lambda upstream: None)
    await upstream.wait_open_count(0)
    pools.close()
