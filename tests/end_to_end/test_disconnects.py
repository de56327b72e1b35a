"""A client that leaves, in whatever phase and however, takes its upstream connection with it, and nothing of it stays behind.

Each case is many disconnects at once in one phase, half of them by FIN and half by RST. The time until the upstream saw its connection
closed is printed (p50, p99) and bounded by ten times what is promised.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Literal

import psutil
import pytest

from tests.conftest import RelayWith
from tests.fakes.certificates import Authority
from tests.fakes.client import RawClient
from tests.fakes.events import DONE, chat_stream, content, role
from tests.fakes.ports import swallowing_port
from tests.fakes.relay import Metrics, RelayProcess
from tests.fakes.scripts import EVENT_STREAM, JSON, body, hang, head, raw, sse
from tests.fakes.upstream import Peer, Request, ScriptedUpstream

CHAT = "/v1/chat/completions"
How = Literal["fin", "rst"]
BOUND_SECONDS = 2.5
"""Ten times the promised 250 ms."""
BATCH = 20
COUNT = 100
MANY = 1000
PLAIN_AND_TLS = ["plain", "tls"]


class SilentServer:
    """Accepts connections and never says a word: a TLS handshake with it does not end. The first one, a warm-up, is closed."""

    def __init__(self) -> None:
        self.open_count = 0
        self.accepted = 0
        self.port = 0

    async def __aenter__(self) -> "SilentServer":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.accepted == 1:
            writer.close()
            return
        self.open_count += 1
        try:
            while await reader.read(65536):
                continue
        except ConnectionError:  # an RST is as good an end as a FIN
            return
        finally:
            self.open_count -= 1
            writer.close()


class Bed:
    """A relay in front of a plain upstream, a TLS one, one that never accepts and one that never shakes hands."""

    def __init__(self, relay: RelayProcess, plain: ScriptedUpstream, tls: ScriptedUpstream, silent: SilentServer) -> None:
        self.relay = relay
        self.upstreams = {"plain": plain, "tls": tls}
        self.silent = silent

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.relay.pid}/fd"))

    def connecting(self) -> int:
        """Connections of the relay that are being opened."""
        return sum(one.status == psutil.CONN_SYN_SENT for one in self.relay.process.net_connections("tcp"))


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, authority: Authority) -> AsyncIterator[Bed]:
    async with ScriptedUpstream() as plain, ScriptedUpstream(authority.server()) as tls, SilentServer() as silent:
        with swallowing_port() as port:
            config = {
                "upstreams": {
                    "plain": {"base_url": plain.url, "api_key": "sk-up"},
                    "tls": {"base_url": tls.url, "api_key": "sk-up", "ca_file": str(authority.file)},
                    "hole": {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "sk-up"},
                    "mute": {"base_url": f"https://127.0.0.1:{silent.port}/v1", "api_key": "sk-up", "ca_file": str(authority.file)},
                },
                "routes": {f"{name}/*": f"{name}/*" for name in ("plain", "tls", "hole", "mute")} | {"*": "plain/*"},
                "timeouts": {"connect": "20s", "first_token": "30s", "between_tokens": "30s", "write": "30s", "total": "60s"},
            }
            relay = await shared_relay_with(config)
            # The warm-ups must be over before descriptors are counted.
            await until(lambda: silent.accepted == 1 and tls.open_count == 1)
            await asyncio.sleep(0.1)
            yield Bed(relay, plain, tls, silent)


def leave(client: RawClient, how: How) -> float:
    """Close, and return the time of it."""
    at = time.monotonic()
    client.fin() if how == "fin" else client.rst()
    return at


def how_of(number: int) -> How:
    return "fin" if number % 2 else "rst"


Wait = Callable[[RawClient, str], Awaitable[None]]
"""Brings one exchange to the phase in which the client leaves."""


async def leave_many(bed: Bed, count: int, begin: Wait, names: list[str], closed: Callable[[str], Awaitable[float]]) -> list[float]:
    """Disconnect `count` clients, a batch at a time; return the seconds until each upstream connection was seen closed."""
    seconds: list[float] = []
    for start in range(0, count, BATCH):
        batch = names[start : start + BATCH]
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(await bed.relay.connect()) for _ in batch]
            await asyncio.gather(*(begin(client, name) for client, name in zip(clients, batch, strict=True)))
            left = [leave(client, how_of(number)) for number, client in enumerate(clients)]
            ended = await asyncio.gather(*(closed(name) for name in batch))
            for upstream in bed.upstreams.values():
                upstream.requests.clear()  # so that looking for one does not grow with their number
            seconds += [end - at for at, end in zip(left, ended, strict=True)]
    return seconds


def report(what: str, seconds: list[float]) -> None:
    """Print the percentiles and check the bound."""
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    print(f"{what}: {len(ordered)} disconnects, upstream closed after p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")
    assert ordered[-1] <= BOUND_SECONDS, ordered[-5:]


async def check_rest(bed: Bed, before: int, count: int, names: list[str], *, outcome: str = "client_gone") -> None:
    """Check that every exchange ended once as told, after one attempt, and that no descriptor is left over."""
    lines = [line for line in await bed.relay.wait_log("request", count=1) if line["model"] in set(names)]
    deadline = time.monotonic() + BOUND_SECONDS
    while len(lines) < count and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        lines = [line for line in bed.relay.logs("request") if line["model"] in set(names)]
    assert len(lines) == count
    assert {(line["outcome"], line["attempts"]) for line in lines} == {(outcome, 1)}
    await bed.relay.assert_identities()
    while bed.descriptors() > before and time.monotonic() < deadline + BOUND_SECONDS:
        await asyncio.sleep(0.05)
    assert bed.descriptors() <= before


async def run_phase(bed: Bed, what: str, security: str, count: int, script: Callable[[], object], begin: Wait) -> None:
    """Disconnect `count` clients in a phase that a script of the upstream and `begin` make, and check everything."""
    upstream = bed.upstreams[security]
    before = bed.descriptors()
    counted = await bed.relay.metrics()
    names = [f"{security}/{what}-{count}-{number}" for number in range(count)]
    for name in names:
        upstream.route(upstream_name(what, name), script())  # type: ignore[arg-type]

    async def closed(name: str) -> float:
        (request,) = upstream.of(upstream_name(what, name))  # one attempt, and no further one
        assert await upstream.wait_closed(request, within=BOUND_SECONDS) in ("fin", "rst")
        assert request.closed_at is not None
        return request.closed_at

    report(f"{what}, {security}", await leave_many(bed, count, begin, names, closed))
    await check_rest(bed, before, count, names)
    added = (await bed.relay.metrics()).since(counted)
    assert added.sum("relay_requests_total") == added.sum("relay_requests_total", outcome="client_gone") == count
    assert added.sum("relay_upstream_attempts_total", result="cancelled") == added.sum("relay_upstream_attempts_total") == count
    assert not any(upstream.of(upstream_name(what, name)) for name in names)


def upstream_name(what: str, name: str) -> str:
    """The model as the upstream gets it: bodies of opaque paths are never rewritten."""
    return name if what == "opaque" else name.partition("/")[2]


def is_stream(name: str) -> dict[str, object]:
    return {"model": name, "stream": True}


async def waiting(bed: Bed, security: str, count: int) -> None:
    async def begin(client: RawClient, name: str) -> None:
        await client.post(CHAT, is_stream(name))
        await bed.upstreams[security].wait_for(name.partition("/")[2])

    await run_phase(bed, "waiting", security, count, hang, begin)


async def silent_head(bed: Bed, security: str, count: int) -> None:
    async def begin(client: RawClient, name: str) -> None:
        await client.post(CHAT, is_stream(name))
        await bed.upstreams[security].wait_for(name.partition("/")[2])

    await run_phase(bed, "silent-head", security, count, lambda: sse([role()], end="hang"), begin)


async def streaming(bed: Bed, security: str, count: int) -> None:
    async def begin(client: RawClient, name: str) -> None:
        await client.post(CHAT, is_stream(name))
        await client.read_until(b"first")

    await run_phase(bed, "streaming", security, count, lambda: sse([role(), content("first")], end="hang"), begin)


async def busy(bed: Bed, security: str, count: int) -> None:
    def script() -> Callable[[Peer], Awaitable[None]]:
        async def send(peer: Peer) -> None:
            await peer.send(head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]))
            while not peer.is_gone:
                await peer.send_chunk(content("more"))
                await asyncio.sleep(0.005)

        return send

    async def begin(client: RawClient, name: str) -> None:
        await client.post(CHAT, is_stream(name))
        await client.read_until(b"more")

    await run_phase(bed, "busy", security, count, script, begin)


async def non_streaming(bed: Bed, security: str, count: int) -> None:
    async def begin(client: RawClient, name: str) -> None:
        await client.post(CHAT, {"model": name})
        await bed.upstreams[security].wait_for(name.partition("/")[2])

    await run_phase(bed, "whole", security, count, lambda: body([b'{"id":', b'"half'], end="hang"), begin)


async def opaque(bed: Bed, security: str, count: int) -> None:
    async def begin(client: RawClient, name: str) -> None:
        await client.post("/v1/audio/speech", {"model": name})
        await client.read_until(b"sound")

    await run_phase(bed, "opaque", security, count, lambda: body([b"sound"], headers=[("Content-Type", "audio/mpeg")], end="hang"), begin)


async def uploading(bed: Bed, security: str, count: int) -> None:
    """Leave in the middle of a body."""
    upstream = bed.upstreams[security]
    before = bed.descriptors()
    counted = await bed.relay.metrics()
    seconds: list[float] = []

    async def receive(peer: Peer) -> None:
        await peer.wait_closed()

    async def one(number: int) -> None:
        path = f"/v1/images/up-{security}-{count}-{number}"
        upstream.route(path, receive, early=True)
        async with await bed.relay.connect() as client:
            request = await begin_upload(client, upstream, path, f"{security}/x")
            at = leave(client, how_of(number))
            await upstream.wait_closed(request, within=BOUND_SECONDS)
            assert request.closed_at is not None
            seconds.append(request.closed_at - at)

    for start in range(0, count, BATCH):
        await asyncio.gather(*(one(number) for number in range(start, start + BATCH)))
        upstream.requests.clear()
    report(f"uploading, {security}", seconds)
    await check_uploads(bed, before, counted, count)


async def check_uploads(bed: Bed, before: int, counted: Metrics, count: int) -> None:
    """Check that all uploads since `counted` ended as told, and that no descriptor is left over."""
    added = (await bed.relay.settled(within=BOUND_SECONDS)).since(counted)
    assert added.sum("relay_requests_total") == added.sum("relay_requests_total", outcome="client_gone") == count
    await until(lambda: bed.descriptors() <= before)
    await bed.relay.assert_identities()


async def begin_upload(client: RawClient, upstream: ScriptedUpstream, path: str, model: str) -> Request:
    """Send the head and a part of the body, and wait until the upstream has heard of it."""
    lines = [("Content-Type", "multipart/form-data; boundary=b"), ("Content-Length", str(2**26))]
    await client.request("POST", f"{path}?model={model}", lines)
    await client.send(b"x" * 100_000)
    return await request_at(upstream, path)


async def request_at(upstream: ScriptedUpstream, path: str) -> Request:
    async with asyncio.timeout(5):
        while not upstream.of(path):
            await upstream.changed()
    (request,) = upstream.of(path)
    return request


async def fill(client: RawClient) -> None:
    """Send until nobody takes any more."""
    try:
        for _ in range(600):
            await client.send(b"x" * 100_000, within=1.0)
    except TimeoutError:
        return
    raise AssertionError("60 MB went into a relay whose upstream reads nothing")


async def connecting(bed: Bed, security: str, count: int) -> None:
    """Leave while the relay connects: `plain` to a port that never accepts, `tls` in a handshake that never ends."""
    before = bed.descriptors()
    counted = await bed.relay.metrics()
    name = "hole" if security == "plain" else "mute"
    names = [f"{name}/connecting-{count}-{number}" for number in range(count)]

    def open_now() -> int:
        return bed.connecting() if security == "plain" else bed.silent.open_count

    seconds: list[float] = []
    for start in range(0, count, BATCH):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(await bed.relay.connect()) for _ in range(BATCH)]
            for client, model in zip(clients, names[start : start + BATCH], strict=True):
                await client.post(CHAT, is_stream(model))
            await until(lambda: open_now() == BATCH)
            left = [leave(client, how_of(number)) for number, client in enumerate(clients)]
            await until(lambda: open_now() == 0)
            seconds += [time.monotonic() - at for at in left]
    report(f"connecting, {security}", seconds)
    await check_rest(bed, before, count, names)
    added = (await bed.relay.metrics()).since(counted)
    assert added.sum("relay_requests_total") == added.sum("relay_requests_total", outcome="client_gone") == count


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


PHASES: dict[str, Callable[[Bed, str, int], Awaitable[None]]] = {
    "connecting": connecting,
    "waiting": waiting,
    "silent_head": silent_head,
    "streaming": streaming,
    "busy": busy,
    "non_streaming": non_streaming,
    "opaque": opaque,
    "uploading": uploading,
}


@pytest.mark.parametrize("security", PLAIN_AND_TLS)
@pytest.mark.parametrize("phase", list(PHASES))
async def test_client_that_leaves_takes_its_upstream_along(bed: Bed, phase: str, security: str) -> None:
    await PHASES[phase](bed, security, COUNT)


@pytest.mark.slow
@pytest.mark.parametrize("security", PLAIN_AND_TLS)
@pytest.mark.parametrize("phase", list(PHASES))
async def test_a_thousand_clients_that_leave_take_their_upstreams_along(bed: Bed, phase: str, security: str) -> None:
    await PHASES[phase](bed, security, MANY)


async def test_client_that_resets_an_upload_nobody_reads_takes_its_upstream_along(bed: Bed) -> None:
    """The relay has stopped reading too, and hears nothing: it has to look. (Behind unsent bytes no FIN comes through, only a reset.)"""
    upstream = bed.upstreams["plain"]
    before = bed.descriptors()
    counted = await bed.relay.metrics()

    async def ignore(peer: Peer) -> None:
        peer.pause_reading()
        await peer.wait_closed()

    def held() -> int:
        # Our paused upstream would not see the end either, so the relay's side is looked at.
        return sum(one.raddr != () and one.raddr.port == upstream.port for one in bed.relay.process.net_connections("tcp"))

    idle = held()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await bed.relay.connect()) for _ in range(BATCH)]
        for number, client in enumerate(clients):
            upstream.route(f"/v1/images/stuck-{number}", ignore, early=True)
            await begin_upload(client, upstream, f"/v1/images/stuck-{number}", "plain/x")
        await asyncio.gather(*map(fill, clients))
        assert held() == idle + BATCH
        at = min(leave(client, "rst") for client in clients)
        await until(lambda: held() <= idle)
        report("uploading, nobody reads, plain", [time.monotonic() - at])
    await check_uploads(bed, before, counted, BATCH)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("security", PLAIN_AND_TLS)
async def test_client_that_leaves_right_after_done_has_a_complete_answer(bed: Bed, security: str, how: How) -> None:
    name = f"{security}/done-{how}"
    bed.upstreams[security].route(f"done-{how}", sse(chat_stream("a"), end="hang"))
    async with await bed.relay.connect() as client:
        await client.post(CHAT, is_stream(name))
        await client.read_until(DONE)
        leave(client, how)
        (request,) = bed.upstreams[security].of(f"done-{how}")
        await bed.upstreams[security].wait_closed(request, within=BOUND_SECONDS)
    (line,) = await bed.relay.wait_log(model=name)
    assert (line["outcome"], line["error_code"]) == ("complete", None)
    await bed.relay.assert_identities()


async def test_client_that_leaves_before_its_body_is_whole_reaches_no_upstream(bed: Bed) -> None:
    counted = await bed.relay.metrics()
    sent = len(bed.upstreams["plain"].requests)
    for number in range(BATCH):
        async with await bed.relay.connect() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
            await asyncio.sleep(0.01)
            leave(client, how_of(number))
    added = (await bed.relay.settled()).since(counted)
    assert len(bed.upstreams["plain"].requests) == sent
    assert added.sum("relay_upstream_attempts_total") == 0
    assert added.sum("relay_requests_total") == added.sum("relay_requests_total", outcome="client_gone") == BATCH


async def test_upstream_connection_of_a_client_that_left_is_not_used_again(bed: Bed) -> None:
    plain = bed.upstreams["plain"]
    plain.route("left", raw(head(200, [*JSON, ("Content-Length", "20")]), b'{"id":', end="hang"))
    plain.route("next", body([b'{"id":"next"}']))
    async with await bed.relay.connect() as client:
        await client.post(CHAT, {"model": "left"})
        await plain.wait_for("left")
        client.fin()
    await bed.relay.settled()
    assert (await bed.relay.post(CHAT, {"model": "next"})).body == b'{"id":"next"}'
    assert plain.of("left")[0].connection is not plain.of("next")[0].connection
