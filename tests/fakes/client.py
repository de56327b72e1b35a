"""A raw HTTP/1.1 client on loopback that tells the truth about how an answer ended.

It has its own protocol instead of asyncio's streams, because a StreamReader forgets what it holds when a reset arrives, and
because a test must be able to stop reading, to close in every way there is, and to send bytes no library would.
"""

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Self

End = Literal["complete", "cut", "rst", "malformed"]
Pairs = Iterable[tuple[str | bytes, str | bytes]]
BODILESS = frozenset({204, 304})
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: closing sends an RST."""
DEFAULT_SECONDS = 15.0


@dataclass(slots=True, kw_only=True)
class Head:
    """A response head as it stood on the wire."""

    version: bytes
    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    raw: bytes

    def all(self, name: str) -> list[bytes]:
        """Return every value of a header, in order."""
        wanted = name.lower().encode("latin-1")
        return [value for key, value in self.headers if key.lower() == wanted]

    def header(self, name: str) -> bytes | None:
        """Return the value of a header, None when absent; several lines are joined by a comma."""
        values = self.all(name)
        return b", ".join(values) if values else None


@dataclass(slots=True, kw_only=True)
class Response:
    """A response and its end.

    `end`: `complete` when the framing was completed (for a close-delimited body: a FIN), `cut` when a FIN came first, `rst` when a
    reset did, `malformed` when the framing is broken.
    """

    head: Head
    body: bytes
    """Without the chunked framing."""
    end: End
    framing: Literal["none", "length", "chunked", "close"]
    chunks: list[bytes] = field(default_factory=list)
    raw: bytes = b""
    """Every byte from the head to the end of the body, framing included."""
    interim: list[Head] = field(default_factory=list)
    """1xx heads that came before."""

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self.head.headers

    def header(self, name: str) -> bytes | None:
        """Return the value of a header, None when absent."""
        return self.head.header(name)

    def all(self, name: str) -> list[bytes]:
        """Return every value of a header, in order."""
        return self.head.all(name)

    def json(self) -> dict[str, object]:
        """Parse the body, which must be a JSON object."""
        value = json.loads(self.body)
        assert isinstance(value, dict), self.body[:200]
        return value

    @property
    def error_code(self) -> object:
        """The `code` of an error body in OpenAI's shape, or None."""
        error = self.json().get("error")
        return error.get("code") if isinstance(error, dict) else None

    @property
    def data(self) -> list[bytes]:
        """The `data:` lines of an event stream, without the field name: enough for streams of one-line events."""
        return [line[5:].strip() for line in self.body.split(b"\n") if line.startswith(b"data:")]

    @property
    def has_done(self) -> bool:
        """Whether a line `data: [DONE]` stands in the body."""
        return b"[DONE]" in self.data


class RawClient(asyncio.Protocol):
    """One connection. `async with await RawClient.open(port) as client` closes it in any case."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._is_write_paused = False
        self.transport: asyncio.Transport
        self.inbox = bytearray()
        """Bytes that came and were not yet read by a method."""
        self.received_bytes = 0
        self.first_byte_at: float | None = None
        self.last_byte_at: float | None = None
        self.closed_at: float | None = None
        """Monotonic time at which the other side's FIN or RST was seen."""
        self.closed_how: Literal["fin", "rst"] | None = None
        self.host = b"127.0.0.1"
        self._is_lost = False

    @classmethod
    async def open(
        cls, port: int, host: str = "127.0.0.1", *, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None
    ) -> Self:
        """Connect; a small `receive_buffer` makes a client that stops reading felt soon. Raises OSError."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, (host, port))
            _, client = await loop.create_connection(cls, sock=sock, ssl=tls, server_hostname="localhost" if tls else None)
        except BaseException:
            sock.close()
            raise
        client.host = f"{host}:{port}".encode()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.last_byte_at = time.monotonic()
        if self.first_byte_at is None:
            self.first_byte_at = self.last_byte_at
        self.received_bytes += len(data)
        self.inbox += data
        self._wake()

    def eof_received(self) -> bool:
        self._note_closed("fin")
        return self.transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._note_closed("fin" if exc is None else "rst")

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._wake()

    def _note_closed(self, how: Literal["fin", "rst"]) -> None:
        if self.closed_how is None:
            self.closed_how = how
            self.closed_at = time.monotonic()
        self._wake()

    def _wake(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._event.wait()
        except TimeoutError:
            raise TimeoutError(f"waited {seconds} s; closed: {self.closed_how}; unread: {bytes(self.inbox[-2000:])!r}") from None

    # What goes out.

    async def send(self, data: bytes, *, within: float = DEFAULT_SECONDS) -> None:
        """Write, and wait while the other side does not read; raises ConnectionError when it has closed."""
        if self._is_lost or self.transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        self.transport.write(data)
        await self._until(lambda: not self._is_write_paused or self._is_lost, within)

    async def request(
        self,
        method: str,
        target: str | bytes,
        headers: Pairs = (),
        body: bytes | None = None,
        *,
        version: str = "HTTP/1.1",
    ) -> None:
        """Send a request; Host and Content-Length are added unless they are given."""
        lines = [(_bytes(name), _bytes(value)) for name, value in headers]
        names = {name.lower() for name, _ in lines}
        if b"host" not in names:
            lines.insert(0, (b"Host", self.host))
        if body is not None and not names & {b"content-length", b"transfer-encoding"}:
            lines.append((b"Content-Length", str(len(body)).encode()))
        head = b" ".join((method.encode("latin-1"), _bytes(target), version.encode("latin-1")))
        await self.send(b"\r\n".join([head, *(name + b": " + value for name, value in lines)]) + b"\r\n\r\n" + (body or b""))

    async def post(self, target: str, value: object, headers: Pairs = (), *, version: str = "HTTP/1.1") -> None:
        """Send a POST with a JSON body; bytes are sent as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        await self.request("POST", target, [("Content-Type", "application/json"), *headers], body, version=version)

    async def send_chunk(self, data: bytes) -> None:
        """Send one HTTP chunk of a request body; an empty one ends it."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    # What comes in.

    async def read_until(self, marker: bytes, *, within: float = DEFAULT_SECONDS) -> bytes:
        """Wait until `marker` stands in the unread bytes; return these without taking them. Raises EOFError on an end before."""
        await self._until(lambda: marker in self.inbox or self.closed_how is not None, within)
        if marker not in self.inbox:
            raise EOFError(f"{self.closed_how} before {marker!r}; unread: {bytes(self.inbox[-2000:])!r}")
        return bytes(self.inbox)

    async def read_head(self, *, within: float = DEFAULT_SECONDS) -> Head:
        """Take one response head, interim ones included; raises EOFError on an end before it."""
        await self.read_until(b"\r\n\r\n", within=within)
        raw = self._take(self.inbox.find(b"\r\n\r\n") + 4)
        first, *lines = raw[:-4].split(b"\r\n")
        version, _, rest = first.partition(b" ")
        status, _, reason = rest.partition(b" ")
        headers = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
        return Head(version=version, status=int(status), reason=reason, headers=headers, raw=raw)

    async def read_response(self, *, method: str = "POST", within: float = DEFAULT_SECONDS) -> Response:
        """Take one whole response; what follows it on the connection stays unread. Raises TimeoutError, and EOFError without a head."""
        async with asyncio.timeout(within + 1):
            interim = []
            head = await self.read_head(within=within)
            while head.status < 200 and head.status != 101:
                interim.append(head)
                head = await self.read_head(within=within)
            response = await self._read_body(head, method, within)
        response.interim = interim
        response.raw = head.raw + response.raw
        return response

    async def _read_body(self, head: Head, method: str, within: float) -> Response:
        if method == "HEAD" or head.status in BODILESS or head.status == 101:
            return Response(head=head, body=b"", end="complete", framing="none")
        if (head.header("transfer-encoding") or b"").lower() == b"chunked":
            return await self._read_chunked(head, within)
        length = head.header("content-length")
        if length is None:
            body, how = await self.read_until_close(within=within)
            return Response(head=head, body=body, end="complete" if how == "fin" else "rst", framing="close", raw=body)
        size = int(length)
        await self._until(lambda: len(self.inbox) >= size or self.closed_how is not None, within)
        body = self._take(size)
        end: End = "complete" if len(body) == size else self._short_end()
        return Response(head=head, body=body, end=end, framing="length", raw=body)

    async def _read_chunked(self, head: Head, within: float) -> Response:
        chunks: list[bytes] = []
        raw = bytearray()

        def response(end: End) -> Response:
            return Response(head=head, body=b"".join(chunks), end=end, framing="chunked", chunks=chunks, raw=bytes(raw))

        while True:
            await self._until(lambda: b"\r\n" in self.inbox or self.closed_how is not None, within)
            line_end = self.inbox.find(b"\r\n")
            if line_end < 0:
                raw += self._take(len(self.inbox))
                return response(self._short_end())
            line = bytes(self.inbox[:line_end])
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                raw += self._take(len(self.inbox))
                return response("malformed")
            whole = line_end + 2 + size + 2
            await self._until(lambda whole=whole: len(self.inbox) >= whole or self.closed_how is not None, within)  # type: ignore[misc]
            piece = self._take(whole)
            raw += piece
            data = piece[line_end + 2 : line_end + 2 + size]
            if data:
                chunks.append(data)
            if len(piece) < whole:
                return response(self._short_end())
            if not piece.endswith(b"\r\n"):
                return response("malformed")
            if size == 0:
                return response("complete")

    async def read_until_close(self, *, within: float = DEFAULT_SECONDS) -> tuple[bytes, Literal["fin", "rst"]]:
        """Take everything up to the end of the connection; return it and how that came."""
        await self._until(lambda: self.closed_how is not None, within)
        assert self.closed_how is not None
        return self._take(len(self.inbox)), self.closed_how

    async def exchange(self, target: str, value: object, headers: Pairs = ()) -> Response:
        """Send a POST with JSON and take its answer."""
        await self.post(target, value, headers)
        return await self.read_response()

    def _take(self, size: int) -> bytes:
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        return data

    def _short_end(self) -> End:
        return "rst" if self.closed_how == "rst" else "cut"

    # How it stops.

    def pause(self) -> None:
        """Stop reading."""
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self.transport.resume_reading()

    def fin(self) -> None:
        """Close: a FIN, as everything that came was read (while paused the kernel makes it an RST)."""
        self.transport.close()

    def half_close(self) -> None:
        """Send a FIN and keep reading."""
        self.transport.write_eof()

    def rst(self) -> None:
        """Reset the connection."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    async def close(self) -> None:
        """Close and wait for the socket to be gone."""
        self.transport.abort()
        await self._until(lambda: self._is_lost, 5)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
