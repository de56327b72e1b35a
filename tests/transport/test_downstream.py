"""From a parsed request to its answer on a wire that only remembers: the pages, the refusals, and who is next on the connection."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from relay.config.tree import Server
from relay.exchange import Headers
from relay.transport.downstream import Downstream
from relay.transport.listener import Sent
from relay.transport.sink import ClientSink, Tap
from tests.transport.doubles import FakeTransport

HOST = (b"Host", b"relay")


class Whole:
    """The body of a request that has none, or has come."""

    def is_eof(self) -> bool:
        return True

    def at_eof(self) -> bool:
        return True


class FakeProtocol:
    """A client's connection as the listener shows it."""

    def __init__(self, peer: str = "127.0.0.1") -> None:
        self.fake = FakeTransport()
        self.transport: asyncio.Transport | None = self.fake
        self.sink: ClientSink | None = None
        self.peername = (peer, 5000)
        self.wire_bytes = 0

    def tap(self, tap: Tap) -> None: ...

    def send_continue(self) -> None: ...


class FakeGateway:
    """Writes down who asks, and answers nothing."""

    is_draining = False

    def __init__(self) -> None:
        self.arrivals: list[Any] = []

    async def serve(self, arrival: Any, client: ClientSink) -> None:
        self.arrivals.append(arrival)
        client.answer(200, [], b"served")


async def health(headers: Headers) -> tuple[int, bytes, bytes]:
    return 200, b"text/plain", b"ok"


class Bed:
    """One listener's front."""

    def __init__(self, **settings: Any) -> None:
        self.gateway = FakeGateway()
        self.pages = {"/healthz": health}
        self.downstream = Downstream(self.gateway, Server(**settings), self.pages)  # type: ignore[arg-type]

    async def ask(
        self,
        target: str,
        *headers: tuple[bytes, bytes],
        method: str = "GET",
        protocol: FakeProtocol | None = None,
        version: tuple[int, int] = (1, 1),
    ) -> tuple[bytes, Sent]:
        protocol = protocol or FakeProtocol()
        message = SimpleNamespace(method=method, path=target, raw_headers=headers, version=version, should_close=False)
        before = len(protocol.fake.written)
        sent = await self.downstream.handle(SimpleNamespace(protocol=protocol, message=message, payload=Whole()))  # type: ignore[arg-type]
        return protocol.fake.written[before:], sent


async def test_a_page_answers_get_and_head_alone() -> None:
    bed = Bed()
    assert (await bed.ask("/healthz", HOST))[0].endswith(b"\r\n\r\nok")
    assert (await bed.ask("/healthz?x=1", HOST, method="HEAD"))[0].endswith(b"Content-Length: 2\r\n\r\n")
    assert b" 405 " in (await bed.ask("/healthz", HOST, method="POST"))[0]
    assert b" 404 " in (await bed.ask("/nowhere", HOST))[0]
    assert bed.gateway.arrivals == []


@pytest.mark.parametrize("target", ["/v1", "/v1/", "/v1/models", "/v1/../x"])
async def test_the_api_goes_to_the_gateway_with_its_raw_target(target: str) -> None:
    bed = Bed()
    await bed.ask(f"{target}?a=%2F&a=?", HOST)
    (arrival,) = bed.gateway.arrivals
    assert (arrival.path, arrival.query, arrival.fault) == (target, "a=%2F&a=?", None)


@pytest.mark.parametrize(
    ("headers", "method", "version", "code"),
    [
        ((), "GET", (1, 1), "bad_host"),
        ((HOST, HOST), "GET", (1, 1), "bad_host"),
        (((b"Host", b"evil/path"),), "GET", (1, 1), "bad_host"),
        (((b"Host", b"a b"),), "GET", (1, 1), "bad_host"),
        ((HOST, (b"Transfer-Encoding", b"gzip, chunked")), "POST", (1, 1), "bad_transfer_encoding"),
        ((HOST, (b"Transfer-Encoding", b"chunked")), "POST", (1, 0), "bad_transfer_encoding"),
        ((HOST, (b"Upgrade", b"h2c")), "GET", (1, 1), "bad_upgrade"),
        ((HOST, (b"Expect", b"200-ok")), "POST", (1, 1), "expectation_failed"),
        ((HOST, (b"X", b"a" * 40_000)), "GET", (1, 1), "headers_too_large"),
        ((HOST,), "TRACE", (1, 1), "method_not_allowed"),
        ((HOST,), "CONNECT", (1, 1), "method_not_allowed"),
        ((HOST,), "GET", (2, 0), "bad_request"),
    ],
)
async def test_what_http_itself_asks_to_be_refused(
    headers: tuple[tuple[bytes, bytes], ...], method: str, version: tuple[int, int], code: str
) -> None:
    bed = Bed()
    answer, sent = await bed.ask("/healthz", *headers, method=method, version=version)
    assert b"x-relay-error: " + code.encode() in answer
    assert b"Connection: close" in answer
    assert not sent.keep_alive
    await bed.ask("/v1/files", *headers, method=method, version=version)
    assert bed.gateway.arrivals[0].fault.code == code


@pytest.mark.parametrize("host", [b"relay", b"127.0.0.1:8080", b"[::1]:8080", b"a.b-c_d"])
async def test_ordinary_hosts_are_accepted(host: bytes) -> None:
    assert b" 200 " in (await Bed().ask("/healthz", (b"Host", host)))[0]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("9.9.9.9", b"1.1.1.1", "9.9.9.9"),
        ("10.0.0.1", b"1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", b"6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
        ("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.1"),
        ("10.0.0.1", b"\r<script>" + b"x" * 100, "<script>" + "x" * 56),
    ],
)
async def test_forwarded_addresses_are_believed_from_trusted_proxies_alone(peer: str, forwarded: bytes, client: str) -> None:
    bed = Bed(trusted_proxies=("10.0.0.0/8",))
    await bed.ask("/v1/files", HOST, (b"X-Forwarded-For", forwarded), protocol=FakeProtocol(peer))
    assert bed.gateway.arrivals[0].client_ip == client


async def test_without_origins_nothing_is_said_about_them() -> None:
    answer, _ = await Bed().ask("/healthz", HOST, (b"Origin", b"https://app"))
    assert b"access-control" not in answer.lower()
    assert b"vary" not in answer.lower()


async def test_a_listed_origin_may_read_and_another_may_not() -> None:
    bed = Bed(cors_origins=("https://app",))
    assert b"access-control-allow-origin: https://app" in (await bed.ask("/healthz", HOST, (b"Origin", b"https://app")))[0]
    for origin in (b"https://app.evil", b"null", b"*"):
        answer, _ = await bed.ask("/healthz", HOST, (b"Origin", origin))
        assert b"access-control-allow-origin" not in answer
        assert b"vary: Origin" in answer


async def test_a_preflight_is_answered_without_the_gateway() -> None:
    bed = Bed(cors_origins=("https://app",))
    headers = (HOST, (b"Origin", b"https://app"), (b"Access-Control-Request-Method", b"POST"), (b"Access-Control-Request-Headers", b"x-a"))
    answer, _ = await bed.ask("/v1/chat/completions", *headers, method="OPTIONS")
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert b"access-control-allow-headers: x-a" in answer
    assert bed.gateway.arrivals == []
    await bed.ask("/v1/chat/completions", HOST, (b"Origin", b"https://app"), method="OPTIONS")
    assert len(bed.gateway.arrivals) == 1


async def test_an_answer_behind_one_that_is_not_taken_yet_inherits_its_pause() -> None:
    bed = Bed()
    protocol = FakeProtocol()
    protocol.fake.buffered = 1000
    first = ClientSink(protocol, is_head=False, has_chunks=True, keep_alive=True, write_seconds=0.01)
    protocol.sink = first
    first.pause()
    first.release()
    assert protocol.sink is first
    await bed.ask("/healthz", HOST, protocol=protocol)
    second = protocol.sink
    assert second is not None and second is not first and second.is_paused
    second.resume()
    await asyncio.sleep(0.03)
    assert not protocol.fake.is_aborted, "the first answer's watch outlived its place on the wire"


async def test_a_client_that_left_before_its_turn_is_not_served() -> None:
    bed = Bed()
    protocol = FakeProtocol()
    protocol.transport = None
    answer, sent = await bed.ask("/v1/files", HOST, protocol=protocol)
    assert (answer, sent.keep_alive, bed.gateway.arrivals) == (b"", False, [])
