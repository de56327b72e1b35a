"""The client's side of an answer on a wire that only remembers: heads, framing, ends, and the client that stops reading."""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from relay.exchange import Exchange, Framing, ResponseHead
from relay.transport.sink import ClientSink, Tap, header_name
from tests.transport.doubles import FakeTransport, exchange_for, head_of

RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
EVENTS = b"text/event-stream"


class FakeWire:
    """A client's connection."""

    def __init__(self) -> None:
        self.fake = FakeTransport()
        self.transport: asyncio.Transport | None = self.fake
        self.sink: ClientSink | None = None
        self.tapped: Tap | None = None

    def tap(self, tap: Tap) -> None:
        self.tapped = tap


@dataclass
class FakeCall:
    """An upstream's connection, as far as back-pressure goes."""

    log: list[str] = field(default_factory=list)
    on_writable: Callable[[], None] | None = None
    is_reused = False
    is_full = False

    def pause(self) -> None:
        self.log.append("pause")

    def resume(self) -> None:
        self.log.append("resume")

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...

    def upload_done(self) -> None: ...

    def close(self, receiver: object) -> None: ...


def sink_on(wire: FakeWire, **settings: Any) -> ClientSink:
    defaults: dict[str, Any] = {"is_head": False, "has_chunks": True, "keep_alive": True, "write_seconds": 30.0}
    sink = ClientSink(wire, **{**defaults, **settings})
    wire.sink = sink
    return sink


def opened(head: ResponseHead, first: bytes = b"", exchange: Exchange | None = None, **settings: Any) -> tuple[FakeWire, ClientSink]:
    wire = FakeWire()
    sink = sink_on(wire, **settings)
    sink.open(exchange or exchange_for(), head, first)
    return wire, sink


def split(wire: FakeWire) -> tuple[list[bytes], bytes]:
    head, _, body = wire.fake.written.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


def values(wire: FakeWire, name: bytes) -> list[bytes]:
    lines, _ = split(wire)
    return [value.strip() for key, _, value in (line.partition(b":") for line in lines[1:]) if key.lower() == name]


# Framing


def test_events_are_chunked_piece_by_piece() -> None:
    wire, sink = opened(head_of(framing=Framing.CHUNKED, content_type=EVENTS), b"data: 1\n\n")
    sink.write(b"x" * 26)
    sink.finish()
    _, body = split(wire)
    assert body == b"9\r\ndata: 1\n\n\r\n1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"
    assert values(wire, b"transfer-encoding") == [b"chunked"]
    assert values(wire, b"content-length") == []
    assert sink.bytes_out == 9 + 26
    assert sink.keep_alive and not wire.fake.is_closing()


def test_an_empty_first_piece_writes_no_chunk_since_that_would_be_the_last() -> None:
    wire, _ = opened(head_of(content_type=EVENTS))
    assert split(wire)[1] == b""


def test_events_with_a_length_are_chunked_all_the_same() -> None:
    wire, _ = opened(head_of(200, (b"Content-Length", b"5"), framing=Framing.LENGTH, length=5, content_type=EVENTS), b"data:")
    assert (values(wire, b"transfer-encoding"), values(wire, b"content-length")) == ([b"chunked"], [])


def test_other_bodies_keep_their_length_and_are_not_framed_again() -> None:
    wire, sink = opened(head_of(200, (b"Content-Length", b"5"), framing=Framing.LENGTH, length=5), b"he")
    sink.write(b"llo")
    sink.finish()
    assert (values(wire, b"content-length"), values(wire, b"transfer-encoding")) == ([b"5"], [])
    assert split(wire)[1] == b"hello"


def test_a_body_that_only_the_end_ended_becomes_chunked() -> None:
    wire, sink = opened(head_of(framing=Framing.CLOSE), b"hello")
    sink.finish()
    assert split(wire)[1] == b"5\r\nhello\r\n0\r\n\r\n"


def test_an_answer_to_head_keeps_the_length_and_has_no_body() -> None:
    wire, sink = opened(head_of(framing=Framing.NONE, length=500), b"never", is_head=True)
    sink.write(b"never")
    sink.finish()
    assert values(wire, b"content-length") == [b"500"]
    assert split(wire)[1] == b""
    wire, sink = opened(head_of(framing=Framing.NONE), is_head=True)
    sink.finish()
    assert values(wire, b"content-length") == values(wire, b"transfer-encoding") == []


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body_have_no_framing(status: int) -> None:
    wire, sink = opened(head_of(status, framing=Framing.NONE))
    sink.write(b"never")
    sink.finish()
    assert values(wire, b"content-length") == values(wire, b"transfer-encoding") == []
    assert split(wire)[1] == b""


def test_a_client_of_http_1_0_gets_no_chunks_and_no_keep_alive() -> None:
    wire, sink = opened(head_of(content_type=EVENTS), b"data: 1\n\n", has_chunks=False)
    sink.write(b"data: 2\n\n")
    sink.finish()
    assert split(wire)[1] == b"data: 1\n\ndata: 2\n\n"
    assert values(wire, b"connection") == [b"close"]
    assert not sink.keep_alive


# Heads


def test_the_status_line_is_our_own_even_for_odd_statuses() -> None:
    assert split(opened(head_of(200))[0])[0][0] == b"HTTP/1.1 200 OK"
    assert split(opened(head_of(599))[0])[0][0] == b"HTTP/1.1 599 "


def test_the_upstreams_headers_pass_with_odd_bytes_and_repeated_ones_and_without_its_hops() -> None:
    head = head_of(
        200,
        (b"X-Odd", b"caf\xe9 \xff"),
        (b"x-odd", b"two"),
        (b"Set-Cookie", b"a=b"),
        (b"Connection", b"X-Drop"),
        (b"X-Drop", b"1"),
        (b"Transfer-Encoding", b"chunked"),
    )
    wire, _ = opened(head)
    assert values(wire, b"x-odd") == [b"caf\xe9 \xff", b"two"]
    assert values(wire, b"set-cookie") == values(wire, b"x-drop") == values(wire, b"connection") == []
    assert values(wire, b"transfer-encoding") == [b"chunked"]


def test_our_request_id_is_always_told_and_stands_in_for_a_missing_one() -> None:
    wire, _ = opened(head_of(200))
    assert values(wire, b"x-relay-request-id") == values(wire, b"x-request-id") == [b"0123abcd"]
    wire, _ = opened(head_of(200, (b"X-Request-ID", b"up-1"), (b"x-ratelimit-limit-requests", b"5")))
    assert values(wire, b"x-request-id") == [b"up-1"]
    assert values(wire, b"x-relay-request-id") == [b"0123abcd"]
    assert values(wire, b"x-ratelimit-limit-requests") == [b"5"]


def test_route_upstream_and_attempts_are_told() -> None:
    wire, _ = opened(head_of(200), exchange=exchange_for(route="fäst\r\n"))
    assert values(wire, b"x-relay-route") == [b"f??st??"]
    assert values(wire, b"x-relay-upstream") == [b"mine"]
    assert values(wire, b"x-relay-attempts") == [b"1"]


def test_a_configured_name_cannot_break_a_line() -> None:
    assert header_name("a\r\nb\x00 \x7fé*/") == b"a??b????" + b"?*/"


def test_events_are_not_to_be_buffered_or_cached() -> None:
    wire, _ = opened(head_of(content_type=EVENTS))
    assert values(wire, b"x-accel-buffering") == values(wire, b"cache-control") == [b"no"] or values(wire, b"cache-control") == [
        b"no-cache"
    ]
    wire, _ = opened(head_of(200, (b"Cache-Control", b"no-store"), content_type=EVENTS))
    assert values(wire, b"cache-control") == [b"no-store"]
    wire, _ = opened(head_of(200))
    assert values(wire, b"x-accel-buffering") == values(wire, b"cache-control") == []


def test_cors_lines_stand_in_every_head() -> None:
    cors = ((b"access-control-allow-origin", b"https://app"),)
    wire, _ = opened(head_of(200), cors=cors)
    assert values(wire, b"access-control-allow-origin") == [b"https://app"]
    wire = FakeWire()
    sink_on(wire, cors=cors).answer(401, [], b"{}")
    assert values(wire, b"access-control-allow-origin") == [b"https://app"]


def test_a_request_that_is_still_coming_ends_the_connection_and_says_so() -> None:
    wire = FakeWire()
    sink = sink_on(wire, is_request_whole=lambda: False)
    sink.answer(413, [], b"{}")
    assert values(wire, b"connection") == [b"close"]
    assert not sink.keep_alive


def test_an_answer_of_our_own_is_whole() -> None:
    wire = FakeWire()
    sink = sink_on(wire)
    sink.answer(404, [(b"content-type", b"application/json")], b'{"error":1}')
    assert wire.fake.written == b'HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nContent-Length: 11\r\n\r\n{"error":1}'
    assert (sink.bytes_out, sink.is_open, sink.keep_alive) == (11, True, True)
    wire = FakeWire()
    sink_on(wire, is_head=True, keep_alive=False).answer(200, [], b"body")
    assert wire.fake.written == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"


# Ends


def test_a_cut_closes_inside_the_framing() -> None:
    wire, sink = opened(head_of(content_type=EVENTS), b"data: 1\n\n")
    sink.cut(b"data: error\n\n")
    assert split(wire)[1] == b"9\r\ndata: 1\n\n\r\nd\r\ndata: error\n\n\r\n"
    assert wire.fake.is_closed and not wire.fake.is_aborted
    assert not sink.keep_alive


def test_nothing_follows_a_cut() -> None:
    wire, sink = opened(head_of(content_type=EVENTS), b"data: 1\n\n")
    sink.cut(b"")
    before = wire.fake.written
    sink.write(b"late")
    sink.finish()
    sink.cut(b"again")
    sink.set_reading(on=False)
    assert wire.fake.written == before
    assert wire.fake.is_reading


def test_a_client_of_http_1_0_is_cut_by_rst() -> None:
    wire, sink = opened(head_of(content_type=EVENTS), b"data: 1\n\n", has_chunks=False)
    sink.cut(b"data: error\n\n")
    assert wire.fake.is_aborted
    assert wire.fake.sock.options == [RESET]
    assert split(wire)[1] == b"data: 1\n\n"


def test_a_client_that_is_gone_swallows_everything() -> None:
    wire = FakeWire()
    sink = sink_on(wire)
    sink.lost()
    wire.fake.is_aborted = True
    sink.open(exchange_for(), head_of(content_type=EVENTS), b"data: 1\n\n")
    sink.write(b"late")
    sink.finish()
    sink.cut(b"late")
    sink.answer(500, [], b"late")
    assert wire.fake.written == b""


# Tunnels


def test_a_switch_passes_the_101_on_and_taps_the_client() -> None:
    wire = FakeWire()
    sink = sink_on(wire)
    taken: list[bytes] = []
    head = head_of(101, (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", b"x="), framing=Framing.NONE)
    sink.switch(exchange_for(method="GET"), head, b"\x81", taken.append)
    lines, body = split(wire)
    assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
    assert (values(wire, b"upgrade"), values(wire, b"connection")) == ([b"websocket"], [b"Upgrade"])
    assert values(wire, b"sec-websocket-accept") == [b"x="]
    assert body == b"\x81"
    assert not sink.keep_alive
    assert wire.tapped is not None
    assert wire.tapped.feed_data(b"frame") == (False, b"")
    wire.tapped.feed_eof()
    assert taken == [b"frame"]
    sink.set_reading(on=False)
    assert not wire.fake.is_reading
    sink.set_reading(on=True)
    assert wire.fake.is_reading


# Back-pressure


async def test_a_full_client_pauses_the_upstream_and_an_empty_one_resumes_it() -> None:
    _, sink = opened(head_of())
    call = FakeCall()
    sink.follow(call)
    sink.pause()
    assert sink.is_paused
    sink.resume()
    assert not sink.is_paused
    assert call.log == ["pause", "resume"]
    assert sink.backpressure_seconds >= 0.0


async def test_a_call_that_begins_while_the_client_is_full_is_paused_at_once() -> None:
    _, sink = opened(head_of())
    sink.pause()
    call = FakeCall()
    sink.follow(call)
    assert call.log == ["pause"]
    sink.resume()


async def test_a_call_that_is_over_is_left_alone() -> None:
    _, sink = opened(head_of())
    call = FakeCall()
    sink.follow(call)
    sink.follow(None)
    sink.pause()
    sink.resume()
    assert call.log == []


async def test_a_client_that_takes_nothing_is_cut_by_rst() -> None:
    """F35."""
    wire, sink = opened(head_of(), write_seconds=0.01)
    wire.fake.buffered = 1000
    sink.pause()
    await asyncio.sleep(0.03)
    assert wire.fake.is_aborted
    assert wire.fake.sock.options == [RESET]
    assert sink.has_stalled
    sink.write(b"late")
    sink.lost()


async def test_a_client_that_reads_slowly_is_given_time() -> None:
    wire, sink = opened(head_of(), write_seconds=0.02)
    wire.fake.buffered = 1000
    sink.pause()
    for left in range(999, 996, -1):
        wire.fake.buffered = left
        await asyncio.sleep(0.01)
        assert not wire.fake.is_aborted, f"cut with {left} left"
    sink.resume()
    await asyncio.sleep(0.03)
    assert not wire.fake.is_aborted


async def test_no_timer_outlives_the_client() -> None:
    wire, sink = opened(head_of(), write_seconds=0.01)
    sink.pause()
    sink.lost()
    await asyncio.sleep(0.02)
    assert not wire.fake.is_aborted
    assert sink.backpressure_seconds > 0.0


async def test_a_finished_answer_that_is_still_on_its_way_is_watched_until_it_is_taken() -> None:
    wire, sink = opened(head_of(), write_seconds=0.01)
    sink.pause()
    sink.finish()
    sink.release()
    assert wire.sink is sink
    await asyncio.sleep(0.03)
    assert wire.fake.is_aborted


async def test_a_finished_answer_lets_go_of_its_wire() -> None:
    wire, sink = opened(head_of())
    sink.finish()
    sink.release()
    assert wire.sink is None
