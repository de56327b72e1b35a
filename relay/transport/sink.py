"""The client's side of one exchange: head, framing and end of the answer, written straight to the transport.

aiohttp parses the request and owns the connection; its response classes are not used, since they write through
coroutines, change header bytes, and end every response with a clean last chunk, even one that was cut. So a stream's
event costs one bytes formatting and one `transport.write`.

The transport tells through the protocol when the client's buffers are full; that pauses the upstream's connection
directly. A client that takes nothing for `write_seconds` is cut by RST.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from array import array
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from time import monotonic
from typing import Final, Protocol

from relay.exchange import MAX_KEPT, Exchange, Framing, ResponseHead, header
from relay.forward.ports import Call
from relay.wire.headers import headers_down

_STATUS_LINES: Final = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii")) for status in HTTPStatus}
_RESET: Final = struct.pack("ii", 1, 0)
PAUSE_SECONDS: Final = 0.1
"""Shorter pauses can make no stall, and a slow client has thousands of them."""
NO_BODY: Final = frozenset({204, 304})


class Wire(Protocol):
    """The connection a sink writes to."""

    transport: asyncio.Transport | None
    sink: "ClientSink | None"

    def tap(self, tap: "Tap") -> None:
        """Give all further bytes of the client to `tap`."""


class Tap:
    """Takes a client's bytes after the upgrade, in the shape that aiohttp's protocol feeds."""

    __slots__ = ("_take",)

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Pass `data` on; the tunnel is not over."""
        self._take(data)
        return False, b""

    def feed_eof(self) -> None:
        """Do nothing: the lost connection cancels the handler."""


class ClientSink:
    """Writes one answer to one client."""

    __slots__ = (
        "_call",
        "_cors",
        "_has_chunks",
        "_is_chunked",
        "_is_head",
        "_is_request_whole",
        "_paused_at",
        "_pending",
        "_timer",
        "_transport",
        "_transport_write",
        "_wire",
        "backpressure_seconds",
        "bytes_out",
        "has_stalled",
        "is_closed",
        "is_open",
        "is_paused",
        "keep_alive",
        "pauses",
        "write",
        "write_seconds",
    )

    def __init__(
        self,
        wire: Wire,
        *,
        is_head: bool,
        has_chunks: bool,
        keep_alive: bool,
        write_seconds: float,
        cors: tuple[tuple[bytes, bytes], ...] = (),
        is_request_whole: Callable[[], bool] | None = None,
    ) -> None:
        """Answer on `wire`; `is_request_whole` tells whether the last byte of the request has come."""
        assert wire.transport is not None
        self._wire = wire
        self._transport = wire.transport
        self._transport_write = wire.transport.write
        self._is_head = is_head
        self._has_chunks = has_chunks
        self.write_seconds = write_seconds
        self._cors = cors
        self._is_request_whole = is_request_whole
        self._is_chunked = False
        self._call: Call | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused_at = 0.0
        self._pending = 0
        self.keep_alive = keep_alive and has_chunks
        """Whether another request may follow on the connection."""
        self.is_open = False
        """Whether a response head was written."""
        self.is_paused = False
        self.is_closed = False
        self.has_stalled = False
        self.bytes_out = 0
        self.backpressure_seconds = 0.0
        self.pauses: list[tuple[float, float]] = []
        """When the client took nothing for longer than PAUSE_SECONDS."""
        self.write: Callable[[bytes], None] = self._write_raw

    # Writing

    def _write_chunk(self, data: bytes) -> None:
        if not self.is_closed:
            self._transport_write(b"%x\r\n%b\r\n" % (len(data), data))
            self.bytes_out += len(data)

    def _write_raw(self, data: bytes) -> None:
        if not self.is_closed:
            self._transport_write(data)
            self.bytes_out += len(data)

    def _write_nothing(self, data: bytes) -> None:
        """Drop a body that an answer to HEAD must not have."""

    def open(self, exchange: Exchange, head: ResponseHead, first: bytes) -> None:
        """Send the filtered response head of an upstream together with `first`."""
        lines = _head_lines(exchange, head)
        lines += [b"%b: %b" % pair for pair in self._relay_headers(exchange, head)]
        framing = self._frame(head, is_stream=exchange.request.is_stream)
        if framing is not None:
            lines.append(framing)
        data = self._head_bytes(head.status, lines)
        if first and not self._is_head:
            data += b"%x\r\n%b\r\n" % (len(first), first) if self._is_chunked else first
            self.bytes_out += len(first)
        self._send_head(data)

    def switch(self, exchange: Exchange, head: ResponseHead, first: bytes, take: Callable[[bytes], None]) -> None:
        """Leave HTTP: send an upstream's 101 and `first`; from now on what the client sends goes to `take`."""
        lines = _head_lines(exchange, head)
        lines += [b"Connection: Upgrade", b"Upgrade: websocket", b"x-relay-request-id: %b" % exchange.request.id.encode("ascii")]
        self.write = self._write_raw
        self.keep_alive = True
        self._send_head(self._head_bytes(101, lines) + first)
        self.keep_alive = False
        self._wire.tap(Tap(take))

    def set_reading(self, *, on: bool) -> None:
        """Stop or go on reading from the client of a tunnel."""
        if not self.is_closed:
            (self._transport.resume_reading if on else self._transport.pause_reading)()

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer of the relay's own."""
        lines = [b"%b: %b" % pair for pair in headers]
        lines.append(b"Content-Length: %d" % len(body))
        data = self._head_bytes(status, lines)
        if not self._is_head:
            data += body
            self.bytes_out += len(body)
        self._send_head(data)

    def _send_head(self, data: bytes) -> None:
        self.is_open = True
        if not self.is_closed:
            self._transport_write(data)

    def _head_bytes(self, status: int, lines: list[bytes]) -> bytes:
        lines += [b"%b: %b" % pair for pair in self._cors]
        if self._is_request_whole is not None and not self._is_request_whole():
            # What is still to come of the request is not read to its end, and the client must know (RFC 9112 section 9.6).
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close")
        start = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        return b"%b%b\r\n\r\n" % (start, b"\r\n".join(lines))

    def _relay_headers(self, exchange: Exchange, head: ResponseHead) -> list[tuple[bytes, bytes]]:
        request_id = exchange.request.id.encode("ascii")
        lines = [
            (b"x-relay-request-id", request_id),
            (b"x-relay-route", header_name(exchange.route.name if exchange.route is not None else "")),
        ]
        if not exchange.is_begun_early:
            lines.append((b"x-relay-upstream", header_name(exchange.attempts[-1].target.upstream.name)))
            lines.append((b"x-relay-attempts", b"%d" % len(exchange.attempts)))
        if header(head.headers, b"x-request-id") is None:
            lines.append((b"x-request-id", request_id))
        if exchange.answer_bound is not None:
            lines.append((b"x-relay-max-tokens", b"%d" % exchange.answer_bound))
        if exchange.is_rewritten is not None:
            lines.append((b"x-relay-rewritten", exchange.is_rewritten.encode("ascii")))
        if exchange.advice:
            lines += _advice(exchange.advice, head)
        if head.is_event_stream:
            # Proxies in front must not collect events (nginx reads this one).
            lines.append((b"x-accel-buffering", b"no"))
            if header(head.headers, b"cache-control") is None:
                lines.append((b"cache-control", b"no-cache"))
        return lines

    def _frame(self, head: ResponseHead, *, is_stream: bool) -> bytes | None:
        """Choose the answer's framing: events are always chunked, other bodies keep their length."""
        may_be_events = head.is_event_stream or (is_stream and head.content_type in (b"", b"text/plain"))
        if self._is_head:
            self.write = self._write_nothing
            return b"Content-Length: %d" % head.content_length if head.content_length is not None else None
        if head.status in NO_BODY:
            self.write = self._write_nothing
            return None
        if head.content_length is not None and head.framing is Framing.LENGTH and not may_be_events:
            return b"Content-Length: %d" % head.content_length
        if self._has_chunks:
            self._is_chunked = True
            self.write = self._write_chunk
            return b"Transfer-Encoding: chunked"
        return None

    # Ending

    def finish(self) -> None:
        """End the answer cleanly."""
        if self._is_chunked and not self.is_closed:
            self._transport_write(b"0\r\n\r\n")

    def cut(self, last: bytes) -> None:
        """Send `last`, then close without a last chunk: a FIN inside the framing, or an RST where nothing else can tell."""
        self.keep_alive = False
        if self.is_closed:
            return
        if not self._has_chunks:
            self._reset()
            return
        if last:
            self.write(last)
        self.is_closed = True
        self._transport.close()

    def _reset(self) -> None:
        """Abort the connection so that the client sees an RST."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.is_closed = True
        self._transport.abort()

    def lost(self) -> None:
        """Take note that the connection is gone."""
        self.is_closed = True
        self._stop_timer()
        self._account_pause()

    def release(self) -> None:
        """Let go of the connection: the exchange is over."""
        if not self.is_paused:
            self._wire.sink = None
        # Nobody writes any more: without the circle of the two its memory is free at once.
        self.write = _write_to_nobody

    # Back-pressure

    def follow(self, call: Call | None) -> None:
        """Pause and resume `call` as the client's buffers fill and drain."""
        self._call = call
        if call is not None and self.is_paused:
            call.pause()

    def pause(self) -> None:
        """Take note that the client's buffers are full."""
        self.is_paused = True
        self._paused_at = monotonic()
        self._pending = self._untaken()
        if self._call is not None:
            self._call.pause()
        self._timer = asyncio.get_running_loop().call_later(self.write_seconds, self._look)

    def resume(self) -> None:
        """Take note that the client's buffers have room again."""
        self.is_paused = False
        self._stop_timer()
        self._account_pause()
        if self._call is not None:
            self._call.resume()

    def _look(self) -> None:
        """Cut a client that took nothing; one that reads slowly but reads is given time."""
        pending = self._untaken()
        if pending < self._pending:
            self._pending = pending
            self._timer = asyncio.get_running_loop().call_later(self.write_seconds, self._look)
            return
        self.has_stalled = True
        self._reset()

    def _untaken(self) -> int:
        """Count what the client has not taken, the kernel's share too: that one moves long before our own does."""
        return self._transport.get_write_buffer_size() + _in_kernel(self._transport.get_extra_info("socket"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def account(self) -> None:
        """Count the part of a pause that has passed already."""
        if self._paused_at:
            self._account_pause()
            self._paused_at = monotonic()

    def _account_pause(self) -> None:
        if self._paused_at:
            now = monotonic()
            self.backpressure_seconds += now - self._paused_at
            if now - self._paused_at > PAUSE_SECONDS and len(self.pauses) < MAX_KEPT:
                self.pauses.append((self._paused_at, now))
            self._paused_at = 0.0


def _write_to_nobody(data: bytes) -> None:
    """Drop bytes of an answer that is over."""


def _in_kernel(sock: socket.socket | None) -> int:
    """Count the bytes that the kernel holds because the client has not acknowledged them."""
    if sock is None or sock.fileno() < 0:
        return 0
    count = array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    except OSError:
        return 0  # a system that does not tell: our own buffer alone is looked at
    return count[0]


def _head_lines(exchange: Exchange, head: ResponseHead) -> list[bytes]:
    """Return the upstream's lines that pass; how the caller's own limits stand takes the place of how the relay's account does."""
    lines = headers_down(head.headers)
    if exchange.limit_headers:
        own = {name for name, _ in exchange.limit_headers}
        lines = [pair for pair in lines if pair[0].lower() not in own]
        lines += exchange.limit_headers
    return [b"%b: %b" % pair for pair in lines]


@lru_cache(1024)
def header_name(name: str) -> bytes:
    """Encode a configured name for a header line: printable ASCII, anything else as `?`."""
    return bytes(byte if 0x20 < byte < 0x7F else 0x3F for byte in name.encode("utf-8"))


def _advice(advice: Mapping[str, str], head: ResponseHead) -> list[tuple[bytes, bytes]]:
    """Return what an SDK is told about trying again, as far as the upstream has not told it already."""
    if header(head.headers, b"x-should-retry") is not None:
        return []
    says_when = header(head.headers, b"retry-after") is not None or header(head.headers, b"retry-after-ms") is not None
    if says_when and "retry-after" in advice:
        return []
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in advice.items()]
