"""Request bodies on their way in: read whole with bounds, or streamed to an upstream without being held.

Every wait has a bound: 30 s between bytes, and on average 1 KB/s. A chunked body that is far larger on the wire than
its content is an attack on the parser and is refused (A13).
"""

import asyncio
from time import monotonic
from typing import Final, Protocol

from relay.errors import ClientError
from relay.forward.ports import Call

GAP_SECONDS: Final = 30.0
MIN_RATE: Final = 1024.0
"""Bytes per second, counted once GAP_SECONDS have passed."""
WIRE_RATIO: Final = 16
WIRE_FLOOR: Final = 2**20
"""Wire bytes below which the ratio does not matter."""


class Payload(Protocol):
    """What aiohttp's parser fills with a request's body."""

    def is_eof(self) -> bool:
        """Tell whether the last byte has come."""

    def at_eof(self) -> bool:
        """Tell whether the last byte was read."""

    async def readany(self) -> bytes:
        """Wait for bytes; empty at the end."""

    def read_nowait(self, n: int = -1) -> bytes:
        """Return what is there."""


class BodyReader:
    """Reads one request's body within its bounds."""

    __slots__ = ("_asks_first", "_payload", "_read", "_waited", "_wire", "_wire_start", "deadline_at", "gap_seconds")

    def __init__(self, payload: Payload, wire: "WireCounter", *, asks_first: bool) -> None:
        """Read `payload`; `asks_first` tells whether the client waits for `100 Continue` (RFC 9110 section 10.1.1)."""
        self._payload = payload
        self._wire = wire
        self._asks_first = asks_first
        self._waited = 0.0
        self._wire_start = wire.wire_bytes
        self._read = 0
        self.gap_seconds = GAP_SECONDS
        self.deadline_at = float("inf")
        """When the whole body has to be there."""

    async def next(self) -> bytes:
        """Return the next bytes, empty at the end. Raises ClientError: request_timeout, amplified_body, bad_request."""
        if self._asks_first:
            self._asks_first = False
            self._wire.send_continue()
        payload = self._payload
        if payload.is_eof():
            return b"" if payload.at_eof() else self._count(payload.read_nowait(-1))
        begun = monotonic()
        try:
            async with asyncio.timeout(min(self.gap_seconds, self.deadline_at - begun)):
                data = await payload.readany()
        except TimeoutError:
            raise ClientError("request_timeout") from None
        # Only waits for the client count: an upstream that takes a body slowly is not its fault.
        self._waited += monotonic() - begun
        return self._count(data)

    def _count(self, data: bytes) -> bytes:
        self._read += len(data)
        if self._waited > GAP_SECONDS and self._read < MIN_RATE * self._waited:
            raise ClientError("request_timeout")
        on_wire = self._wire.wire_bytes - self._wire_start
        if on_wire > WIRE_FLOOR and on_wire > WIRE_RATIO * self._read:
            raise ClientError("amplified_body")
        return data

    async def whole(self, limit: int) -> bytes:
        """Read everything. Raises ClientError as `next`, and request_too_large past `limit` bytes."""
        first = await self.next()
        if self._payload.at_eof() and len(first) <= limit:
            return first
        data, is_whole = await self.part(limit, first)
        if not is_whole:
            raise ClientError("request_too_large")
        return data

    async def part(self, limit: int, first: bytes = b"") -> tuple[bytes, bool]:
        """Read until more than `limit` bytes are there or the end; also tell whether it was the end. Raises ClientError as `next`."""
        pieces = [first] if first else []
        size = len(first)
        while size <= limit:
            data = await self.next()
            if not data:
                return b"".join(pieces), True
            pieces.append(data)
            size += len(data)
        return b"".join(pieces), self._payload.at_eof() and size <= limit


class WireCounter(Protocol):
    """The connection a body comes from."""

    wire_bytes: int

    def send_continue(self) -> None:
        """Send an interim 100 answer."""


class StreamedUpload:
    """Copies a body from a client to an upstream, as fast as the slower side takes it."""

    __slots__ = ("_first", "_is_chunked", "_reader")

    def __init__(self, reader: BodyReader, first: bytes, *, is_chunked: bool) -> None:
        self._reader = reader
        self._first = first
        self._is_chunked = is_chunked

    async def run(self, call: Call) -> None:
        """Send `first` and all that follows. Raises ClientError when the client stalls."""
        data = self._first or await self._reader.next()
        while data:
            call.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
            await call.drain()
            data = await self._reader.next()
        if self._is_chunked:
            call.write(b"0\r\n\r\n")
        call.upload_done()
