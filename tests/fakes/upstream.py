"""A scripted upstream on a raw loopback socket: every byte, pause, cut and reset of an answer is the test's own choice.

It reads requests itself (Content-Length, chunked, Upgrade), so that nothing a well-behaved library would tidy up is hidden. A
script is an async callable that is given the `Peer` of one request. It is chosen by the `model` of the JSON body, else by the path, else it
is the default set by `answers`; so hundreds of cases can share one relay and one upstream at the same time.
"""

import asyncio
import json
import socket
import ssl
import struct
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Self

from tests.fakes.scripts import Script, respond

Headers = list[tuple[bytes, bytes]]

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: closing sends an RST."""


class PeerGone(Exception):
    """The other side has closed: nothing can be sent any more. Ends a script quietly."""


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One request as it came in, and what became of its connection."""

    method: bytes
    target: bytes
    version: bytes
    headers: Headers
    """Name and value in their own spelling and order."""
    head: bytes
    """The raw head, the empty line included."""
    connection: "Connection" = field(repr=False)
    arrived_at: float
    """Monotonic time at which the head was complete."""
    body: bytes = b""
    """The body without its framing; empty until it is whole."""
    body_complete_at: float | None = None
    chunk_count: int = 0
    number_on_connection: int = 0
    """0 for the first request of its connection: a higher number means that the connection was reused."""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition(b"?")[0].decode("latin-1")

    @property
    def model(self) -> str | None:
        """The `model` of a JSON body, or None."""
        value = self.json().get("model") if self.body[:1] == b"{" else None
        return value if isinstance(value, str) else None

    @property
    def closed_at(self) -> float | None:
        """Monotonic time at which the relay's FIN or RST was seen; None while the connection is open."""
        return self.connection.closed_at

    @property
    def closed_how(self) -> str | None:
        """How the connection ended: `fin` or `rst` by the relay, `self` by the script, None while it is open."""
        return self.connection.closed_how

    def json(self) -> dict[str, object]:
        """Parse the body; an empty dict when it is no JSON object."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def header(self, name: str) -> bytes | None:
        """Return the only value of a header, None when absent; several lines are joined by a comma."""
        values = self.all(name)
        return b", ".join(values) if values else None

    def all(self, name: str) -> list[bytes]:
        """Return every value of a header, in order."""
        wanted = name.lower().encode("latin-1")
        return [value for key, value in self.headers if key.lower() == wanted]


class Peer:
    """What a script has in hand: the request, and the connection to answer on."""

    __slots__ = ("_connection", "request")

    def __init__(self, connection: "Connection", request: Request) -> None:
        self._connection = connection
        self.request = request

    async def send(self, data: bytes) -> None:
        """Write in one call, and wait while the relay does not read; raises PeerGone when it has closed."""
        connection = self._connection
        if connection.is_gone:
            raise PeerGone
        connection.transport.write(data)
        connection.sent_bytes += len(data)
        while connection.is_paused and not connection.is_gone:
            await connection.changed()
        if connection.is_gone and connection.is_paused:
            raise PeerGone

    async def send_chunk(self, data: bytes) -> None:
        """Write one HTTP chunk in one call."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def body(self) -> bytes:
        """Wait for the whole request body (for scripts that start at the head); raises PeerGone."""
        while self.request.body_complete_at is None:
            if self._connection.is_gone:
                raise PeerGone
            await self._connection.changed()
        return self.request.body

    async def read_raw(self) -> bytes:
        """Wait for bytes beyond the request (a tunnel's, a pipelined request's); empty when the relay has closed."""
        connection = self._connection
        while not connection.inbox and not connection.is_gone:
            await connection.changed()
        data = bytes(connection.inbox)
        connection.inbox.clear()
        return data

    def pause_reading(self) -> None:
        """Stop reading, so that an upload meets a full socket."""
        self._connection.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._connection.transport.resume_reading()

    async def fin(self) -> None:
        """Close after what was written."""
        self._connection.note_closed("self")
        self._connection.transport.close()

    async def half_close(self) -> None:
        """Send a FIN and keep reading (not over TLS)."""
        self._connection.transport.write_eof()

    async def rst(self) -> None:
        """Reset the connection; bytes the kernel has handed over already stay readable for the relay."""
        connection = self._connection
        connection.note_closed("self")
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.transport.abort()

    async def wait_closed(self) -> str:
        """Wait until the connection is over; return `fin` or `rst` by the relay, or `self`."""
        connection = self._connection
        while connection.closed_how is None:
            await connection.changed()
        return connection.closed_how

    async def sleep(self, seconds: float) -> None:
        """Wait, and notice nothing: unlike a real server, which would see the relay leave."""
        await asyncio.sleep(seconds)

    @property
    def is_gone(self) -> bool:
        """Whether the relay has closed."""
        return self._connection.is_gone

    @property
    def is_paused(self) -> bool:
        """Whether a send waits because the relay does not read."""
        return self._connection.is_paused

    @property
    def sent_bytes(self) -> int:
        """Bytes handed to the socket on this connection so far."""
        return self._connection.sent_bytes


class Connection(asyncio.Protocol):
    """One accepted connection: reads requests one after the other and runs a script for each."""

    def __init__(self, upstream: "ScriptedUpstream") -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._request: Request | None = None
        self._body = bytearray()
        self._remaining: int | None = None
        self._is_chunked = False
        self._is_running = False
        self._is_answered = False
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.transport: asyncio.Transport
        self.inbox = bytearray()
        self.request_count = 0
        self.sent_bytes = 0
        self.is_paused = False
        self.is_gone = False
        self.opened_at = self._loop.time()
        self.closed_at: float | None = None
        self.closed_how: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._upstream.note_open(self)

    def data_received(self, data: bytes) -> None:
        self.inbox += data
        self._read()
        self._wake()

    def eof_received(self) -> bool:
        self.note_closed("fin")
        self.is_gone = True
        self._wake()
        is_tls = self.transport.get_extra_info("sslcontext") is not None
        return self._is_running and not is_tls

    def connection_lost(self, exc: Exception | None) -> None:
        self.note_closed("fin" if exc is None else "rst")
        self.is_gone = True
        self._wake()
        self._upstream.note_lost(self)

    def pause_writing(self) -> None:
        self.is_paused = True
        self._wake()

    def resume_writing(self) -> None:
        self.is_paused = False
        self._wake()

    def note_closed(self, how: str) -> None:
        """Keep the first end that was seen, and when."""
        if self.closed_how is None:
            self.closed_how = how
            self.closed_at = self._loop.time()
            self._upstream.wake()

    async def changed(self) -> None:
        """Wait for the next thing that happens on this connection."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _read(self) -> None:
        if self._request is None and not self._is_running:
            self._read_head()
        if self._request is not None:
            self._read_body(self._request)

    def _read_head(self) -> None:
        end = self.inbox.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.inbox[: end + 4])
        del self.inbox[: end + 4]
        first, *lines = head[:-4].split(b"\r\n")
        method, _, rest = first.partition(b" ")
        target, _, version = rest.rpartition(b" ")
        headers = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
        request = Request(
            method=method,
            target=target,
            version=version,
            headers=headers,
            head=head,
            connection=self,
            arrived_at=self._loop.time(),
            number_on_connection=self.request_count,
        )
        self.request_count += 1
        self._request = request
        self._is_answered = False
        self._body = bytearray()
        self._is_chunked = (request.header("transfer-encoding") or b"").lower() == b"chunked"
        self._remaining = None if self._is_chunked else int(request.header("content-length") or 0)
        self._upstream.note_request(request)
        script = self._upstream.early_script(request)
        if script is not None:
            self._run(script, request)

    def _read_body(self, request: Request) -> None:
        is_whole = self._take_chunks(request) if self._is_chunked else self._take_length()
        if not is_whole:
            return
        request.body = bytes(self._body)
        request.body_complete_at = self._loop.time()
        self._request = None
        self._upstream.wake()
        if not self._is_answered:
            self._run(self._upstream.script(request), request)

    def _take_length(self) -> bool:
        assert self._remaining is not None
        part = self.inbox[: self._remaining]
        del self.inbox[: len(part)]
        self._body += part
        self._remaining -= len(part)
        return self._remaining == 0

    def _take_chunks(self, request: Request) -> bool:
        while True:
            if self._remaining is None:
                end = self.inbox.find(b"\r\n")
                if end < 0:
                    return False
                self._remaining = int(bytes(self.inbox[:end]).partition(b";")[0], 16)
                del self.inbox[: end + 2]
            if len(self.inbox) < self._remaining + 2:
                return False
            size = self._remaining
            self._body += self.inbox[:size]
            del self.inbox[: size + 2]
            self._remaining = None
            if size == 0:
                return True
            request.chunk_count += 1

    def _run(self, script: Script, request: Request) -> None:
        self._is_running = self._is_answered = True
        self._upstream.start(self._answer(script, request))

    async def _answer(self, script: Script, request: Request) -> None:
        try:
            await script(Peer(self, request))
        except PeerGone:
            self._upstream.gone_count += 1
        except BaseException:
            self.transport.abort()
            raise
        self._is_running = False
        if self.is_gone:
            self.transport.close()
        elif not self.transport.is_closing():
            self._read()


class ScriptedUpstream:
    """The listener, its scripts, and a record of everything that reached it."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1") -> None:
        self._tls = tls
        self._host = host
        self._server: asyncio.Server
        self._default: Script | None = None
        self._routes: dict[str, tuple[Script, bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._event = asyncio.Event()
        self._open: set[Connection] = set()
        self.port = 0
        self.requests: list[Request] = []
        """Every request whose head was complete, in order."""
        self.connection_count = 0
        """Connections ever accepted."""
        self.gone_count = 0
        """Scripts that ended because the relay had closed."""
        self.failures: list[BaseException] = []
        """Exceptions that escaped from scripts: raised when the upstream stops."""

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else self._host}:{self.port}"

    @property
    def url(self) -> str:
        """A base URL for the configuration of an upstream."""
        return f"{self.origin}/v1"

    @property
    def open_count(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), self._host, 0, backlog=2048, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.transport.abort()
        async with asyncio.timeout(5):
            while self._open:
                await self.changed()
        if self.failures and exc[0] is None:
            raise self.failures[0]

    def answers(self, script: Script) -> None:
        """Answer by `script` whatever no route is for."""
        self._default = script

    def route(self, name: str, script: Script, *, early: bool = False) -> None:
        """Answer requests for a model, or for a path when `name` begins with a slash.

        An `early` script starts at the head of the request and awaits `peer.body()` when it wants to; it needs a path.
        """
        assert not early or name.startswith("/"), "the model is not known before the body"
        self._routes[name] = (script, early)

    def early_script(self, request: Request) -> Script | None:
        """Return the script that is to start before the body is in, if there is one."""
        script, early = self._routes.get(request.path, (None, False))
        return script if early else None

    def script(self, request: Request) -> Script:
        """Choose: by model, by path, the default; without any, a 599 that no test can take for an answer."""
        for name in (request.model, request.path):
            if name is not None and name in self._routes:
                return self._routes[name][0]
        return self._default or respond(599, [("Content-Type", "text/plain")], b"the test set no script for this request")

    def of(self, model: str) -> list[Request]:
        """Return the requests for a model, or for a path when `model` begins with a slash."""
        return [request for request in self.requests if model in (request.model, request.path)]

    async def wait_for(self, model: str, count: int = 1, *, within: float = 15.0) -> list[Request]:
        """Wait until `count` whole requests for a model or path have come; raises TimeoutError."""
        async with asyncio.timeout(within):
            while len(found := [request for request in self.of(model) if request.body_complete_at is not None]) < count:
                await self.changed()
        return found

    async def wait_closed(self, request: Request, *, within: float = 15.0) -> str:
        """Wait until the connection of a request is over; return how; raises TimeoutError."""
        async with asyncio.timeout(within):
            while request.closed_how is None:
                await self.changed()
        return request.closed_how

    async def wait_open_count(self, count: int, *, within: float = 15.0) -> None:
        """Wait until exactly `count` connections are open; raises TimeoutError."""
        async with asyncio.timeout(within):
            while self.open_count != count:
                await self.changed()

    async def changed(self) -> None:
        """Wait for the next connection, request or end."""
        await self._event.wait()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self._event.set()
        self._event = asyncio.Event()

    def note_open(self, connection: Connection) -> None:
        """Count an accepted connection."""
        self.connection_count += 1
        self._open.add(connection)
        self.wake()

    def note_lost(self, connection: Connection) -> None:
        """Count a connection that is over."""
        self._open.discard(connection)
        self.wake()

    def note_request(self, request: Request) -> None:
        """Record a request whose head is in."""
        self.requests.append(request)
        self.wake()

    def start(self, answer: Coroutine[None, None, None]) -> None:
        """Run one answer; what escapes from it is kept for the end of the test."""
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)
