"""One HTTP/1.1 connection to an upstream, driven by push: what a read brings is with the client before the read returns.

llhttp (by way of httptools) parses; it is strict, so bare LF, folded or control-laden headers, and length together
with chunked coding are refused. Body pieces of one read are joined and handed on in one call, after the parser is
done with it, so that nothing re-enters the parser and a malformed chunk never swallows the good ones before it.

Costs per 250-byte event on the development machine: parser 0.6 us, this file 0.5 us; the rest is the two system calls.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

import httptools

from relay.exchange import Framing, ResponseHead, UpstreamRequest
from relay.forward.ports import Receiver
from relay.stream import BodyEnd

COPY_BYTES: Final = 64 * 2**10
"""From this size on a body is cheaper to write by itself than to copy behind its head."""
MAX_HEADERS: Final = 128
MAX_LINE: Final = 8190
MAX_HEAD: Final = 64 * 2**10
"""Also of what may come behind the head without a byte of the body: trailers are a head's worth at most."""
MAX_INTERIM: Final = 16
"""1xx answers before the real one."""


class Home(Protocol):
    """Where an idle connection goes."""

    def put_back(self, connection: "Connection") -> None:
        """Take a connection that can serve another request."""

    def forget(self, connection: "Connection") -> None:
        """Take note that the connection is gone."""


class Connection(asyncio.Protocol):
    """A connection, and the call that is on it."""

    __slots__ = (
        "_content_length",
        "_content_type",
        "_encoding",
        "_error",
        "_feed",
        "_framing_bytes",
        "_full_since",
        "_has_body",
        "_head",
        "_head_bytes",
        "_headers",
        "_home",
        "_interim",
        "_is_chunked",
        "_is_complete",
        "_is_dirty",
        "_is_paused",
        "_is_reading_head",
        "_is_tunnel",
        "_is_uploading",
        "_keeps_alive",
        "_method",
        "_parser",
        "_parts",
        "_received",
        "_waiter",
        "idle_since",
        "is_lost",
        "on_writable",
        "receiver",
        "served",
        "transport",
    )

    def __init__(self, home: Home) -> None:
        self._home = home
        self.transport: asyncio.Transport | None = None
        self.receiver: Receiver | None = None
        self.served = 0
        self.idle_since = 0.0
        self.is_lost = False
        self._waiter: asyncio.Future[None] | None = None
        self._full_since = 0.0
        self._is_paused = False
        self.on_writable: Callable[[], None] | None = None
        """Called when the upstream takes bytes again."""
        self._parts: list[bytes] = []
        self._new_parser()
        self._reset("GET")

    def _new_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def _reset(self, method: str) -> None:
        self._method = method
        self._headers: list[tuple[bytes, bytes]] = []
        self._head: ResponseHead | None = None
        self._head_bytes = 0
        self._framing_bytes = 0
        self._content_length: int | None = None
        self._content_type = b""
        self._encoding = b""
        self._is_chunked = False
        self._is_complete = False
        self._is_reading_head = True
        self._interim = 0
        self._received = False
        self._keeps_alive = False
        self._is_dirty = False
        self._is_tunnel = False
        self._is_uploading = False

    # The call

    def start(self, request: UpstreamRequest, receiver: Receiver) -> None:
        """Send `request` and tell `receiver` what comes back."""
        assert self.transport is not None
        self._reset(request.method)
        self._is_uploading = request.is_upload
        self.receiver = receiver
        self.served += 1
        if len(request.body) < COPY_BYTES:
            self.transport.write(request.head + request.body)
        else:
            self.transport.write(request.head)
            self.transport.write(request.body)

    @property
    def is_reused(self) -> bool:
        """Tell whether another request was served before."""
        return self.served > 1

    @property
    def is_usable(self) -> bool:
        """Tell whether a request may be sent."""
        return not self.is_lost and self.transport is not None and not self.transport.is_closing()

    def pause(self) -> None:
        """Stop reading."""
        if self.transport is not None and not self._is_paused and self.is_usable:
            self._is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and self._is_paused:
            self._is_paused = False
            if self.is_usable:
                self.transport.resume_reading()

    def close(self, receiver: Receiver) -> None:
        """Give up the call of `receiver`, and with it the connection; does nothing when that call is over already."""
        if self.receiver is receiver:
            self.receiver = None
            self.discard()

    def discard(self) -> None:
        """Close the connection at once."""
        if self.transport is not None and not self.is_lost:
            self.transport.abort()

    def write(self, data: bytes) -> None:
        """Send body bytes of an upload."""
        if self.transport is not None and self.is_usable:
            self.transport.write(data)

    def upload_done(self) -> None:
        """Take note that the whole body was sent."""
        self._is_uploading = False

    async def drain(self) -> None:
        """Wait until the connection takes more bytes; returns at once when it is gone."""
        if self._waiter is not None and not self.is_lost:
            await self._waiter

    @property
    def is_full(self) -> bool:
        """Tell whether the upstream takes no more bytes for now."""
        return self._waiter is not None

    @property
    def full_since(self) -> float | None:
        """Tell since when the upstream takes no more bytes; None when it does."""
        return None if self._waiter is None else self._full_since

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's and our TLS transports duck-type asyncio.Transport

    def pause_writing(self) -> None:
        """Make `drain` wait."""
        self._full_since = monotonic()
        self._waiter = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Let `drain` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None
        if self.on_writable is not None:
            self.on_writable()

    def data_received(self, data: bytes) -> None:
        """Parse, hand the body on, and end or release the call."""
        receiver = self.receiver
        if receiver is None:
            # Bytes nobody asked for: the connection cannot be trusted with another request.
            self.discard()
            return
        try:
            if self._is_tunnel:
                if receiver.relay is not None:
                    receiver.relay.feed(data, monotonic())
                return
            is_garbage = False
            try:
                self._feed(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._switch(receiver, data[upgrade.args[0] :]):
                    is_garbage = True
            except httptools.HttpParserError:
                # Bytes behind a whole answer do not spoil it, but nothing can follow them.
                is_garbage = not self._is_complete
                self._is_dirty = True
            if self._is_reading_head:
                self._received = True
                self._head_bytes += len(data)
                is_garbage = is_garbage or self._head_bytes > MAX_HEAD
            elif self._head is None:
                receiver.head(self._take_head())
            elif not self._parts:
                # Sizes of chunks, and trailers: the parser collects a trailer's line however long it is.
                self._framing_bytes += len(data)
                is_garbage = is_garbage or self._framing_bytes > MAX_HEAD
            if self._parts:
                body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                self._framing_bytes = 0
                if receiver.relay is not None and self.receiver is receiver:
                    receiver.relay.feed(body, monotonic())
            if is_garbage:
                self._end(BodyEnd.GARBAGE)
            elif self._is_complete:
                self._end(BodyEnd.WHOLE)
        except Exception as error:  # a bug of ours ends one exchange, and is never taken for the upstream's fault
            self.receiver = None
            self.discard()
            receiver.crash(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the call that is on the connection."""
        self.is_lost = True
        self.resume_writing()
        self._home.forget(self)
        # A close-delimited body that ends by RST looks the same as one that ends by FIN, but for `exc`.
        if exc is not None or (self._head is None and not self._received):
            self._end(BodyEnd.RESET)
        elif self._is_tunnel or (self._head is not None and self._head.framing is Framing.CLOSE):
            self._end(BodyEnd.OPEN)
        else:
            self._end(BodyEnd.CUT)

    def _end(self, how: BodyEnd) -> None:
        receiver = self.receiver
        if receiver is None:
            return
        self.receiver = None
        if how is BodyEnd.WHOLE and self._can_stay():
            self.idle_since = monotonic()
            self._home.put_back(self)
        else:
            self.discard()
        try:
            receiver.end(how, anything=self._received or self._head is not None)
        except Exception as error:  # as in `data_received`
            receiver.crash(error)

    def _can_stay(self) -> bool:
        return self._keeps_alive and not (self._is_dirty or self._is_paused or self._is_uploading or self._method == "HEAD")

    def _switch(self, receiver: Receiver, rest: bytes) -> bool:
        """Become a tunnel, when the receiver asked for one."""
        if receiver.switch is None or self._parser.get_status_code() != 101:
            return False
        self._is_tunnel = True
        receiver.switch(self._take_head(), rest)
        return True

    def _take_head(self) -> ResponseHead:
        framing = Framing.NONE
        if self._method != "HEAD" and self._parser.get_status_code() not in (204, 304):
            framing = Framing.CHUNKED if self._is_chunked else Framing.LENGTH if self._content_length is not None else Framing.CLOSE
        self._head = head = ResponseHead(
            status=self._parser.get_status_code(),
            headers=tuple(self._headers),
            framing=framing,
            content_length=self._content_length,
            content_type=self._content_type,
            is_encoded=self._encoding not in (b"", b"identity"),
            received_at=monotonic(),
        )
        return head

    # httptools

    def on_message_begin(self) -> None:
        """Refuse an answer that nobody asked for."""
        if self._is_complete:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header line; trailers are dropped."""
        if not self._is_reading_head:
            return
        if len(self._headers) >= MAX_HEADERS or len(name) + len(value) > MAX_LINE:
            raise ValueError("response head too large")
        self._headers.append((name, value))
        match name.lower():
            case b"content-length":
                self._content_length = int(value)
            case b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    # Another coding would reach the client without the header that names it.
                    raise ValueError("a transfer coding that was not offered")
                self._is_chunked = True
            case b"content-type":
                self._content_type = value.split(b";", 1)[0].strip().lower()
            case b"content-encoding":
                self._encoding = value.strip().lower()

    def on_headers_complete(self) -> None:
        """Tell an interim answer from the real one."""
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            raise ValueError("not HTTP/1")
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise ValueError("too many interim answers")
            self._headers.clear()
            # Nothing of an interim answer may pass for a part of the real one.
            self._content_length = None
            self._content_type = self._encoding = b""
            self._is_chunked = False
            return
        self._is_reading_head = False
        if self._method == "HEAD":
            self._is_complete = True

    def on_body(self, data: bytes) -> None:
        """Collect one piece of the body."""
        if self._method != "HEAD":
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """Take note of the end, unless it was an interim answer's or the beginning of a tunnel."""
        if not self._is_reading_head and self._parser.get_status_code() != 101:
            self._is_complete = True
            # The parser forgets the head right after this call.
            self._keeps_alive = self._parser.should_keep_alive()
