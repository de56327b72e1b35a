"""The server's half of a connection: aiohttp's request handler with our bounds, our errors and our back-pressure.

aiohttp parses requests strictly (with its C parser). Overridden are the seams that a relay needs: requests are served in the
connection's own task, writing pauses and resumes go to the sink, a lost client is told at once, parse errors answer a fixed
text instead of an echo, and a connection that never sends a request is closed. `tests/transport/test_seams.py` fails when a
new aiohttp moves one of them.

One task per connection, not one more per request: before Python 3.12 a new task waits for the loop's next turn before its
first step, and takes another turn to hand its end back. That is a tenth of what a small request costs in all.
"""

import asyncio
import contextlib
import logging
import select
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from relay.errors import ClientError, error_answer
from relay.transport.sink import ClientSink, Tap

FIRST_REQUEST_SECONDS: Final = 15.0
IDLE_SECONDS: Final = 75.0
"""Longer than the idle time of the usual load balancers, so that they close first."""
LINGER_SECONDS: Final = 1.0
PROBE_SECONDS: Final = 0.1
"""Between two looks at a client that is not being read from: it must be noticed within 250 ms of leaving."""
WRITE_BUFFER: Final = 64 * 2**10
MAX_HEADERS: Final = 100
MAX_LINE: Final = 8190
_HUNG_UP: Final = select.POLLRDHUP if sys.platform == "linux" else 0
"""Errors and hang-ups are always reported; a FIN alone only where the system knows this flag (Linux)."""


class Sent:
    """What a handler returns to aiohttp when the answer was written already."""

    __slots__ = ("keep_alive",)

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: object) -> None:
        """Do nothing: the head was sent."""

    async def write_eof(self) -> None:
        """Do nothing: the body has ended."""


class Incoming:
    """One parsed request as aiohttp hands it over: the raw message, its body, its connection."""

    __slots__ = ("message", "payload", "protocol")

    def __init__(self, message: Any, payload: Any, protocol: "RelayHandler") -> None:
        self.message = message
        self.payload = payload
        self.protocol = protocol

    def _finish(self) -> None:
        """aiohttp says that the handler is done."""

    def _cancel(self, exc: BaseException) -> None:
        """aiohttp says that the client is gone: whoever reads the body is told."""
        self.payload.set_exception(exc)

    def spoil(self) -> None:
        """Tell whoever reads the body that it stopped being HTTP."""
        if not self.payload.is_eof():
            self.payload.set_exception(ClientError("bad_request"))


class RelayHandler(RequestHandler):
    """One client connection."""

    __slots__ = ("_first_request", "_has_place", "_probe", "_server", "sink", "wire_bytes")

    def __init__(self, server: "RelayServer", **settings: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **settings)
        self._server = server
        self._has_place = False
        self._first_request: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self.sink: ClientSink | None = None
        self.wire_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it when there are too many."""
        self._has_place = self._server.take_place()
        assert hasattr(transport, "set_write_buffer_limits")
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        super().connection_made(transport)
        if not self._has_place:
            self.force_close()
            return
        self._first_request = self._loop.call_later(FIRST_REQUEST_SECONDS, self._expect_request)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell the sink at once, then let aiohttp cancel the handler."""
        if self._first_request is not None:
            self._first_request.cancel()
        if self._probe is not None:
            self._probe.cancel()
        if self._has_place:
            self._has_place = False
            self._server.give_place()
        sink = self.sink
        if sink is not None:
            self.sink = None
            sink.lost()
        super().connection_lost(exc)

    async def start(self) -> None:
        """Serve the connection's requests, one after the other, until it is not kept alive."""
        while not self._force_close:
            message, payload = await self._next_message()
            try:
                is_over = await self._serve(message, payload)
            except asyncio.CancelledError:
                self.force_close()
                raise
            except Exception as error:
                self.log_exception(exc_info=error)
                self.force_close()
                return
            if is_over or not self._keepalive or self._close or self._force_close:
                break
            self._wait_for_next()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _next_message(self) -> tuple[Any, Any]:
        """Return the next parsed request, or what was no request, with its body."""
        if not self._messages:
            try:
                self._waiter = self._loop.create_future()
                await self._waiter
            finally:
                self._waiter = None
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return message, payload

    async def _serve(self, message: Any, payload: Any) -> bool:
        """Serve one request and what is left of its body; tell whether the connection is lost."""
        handler = self._request_handler
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        assert handler is not None
        request: Any = Incoming(message, payload, self)
        try:
            answer, is_lost = await self._handle_request(request, None, handler)
        except ConnectionError:
            return True
        if is_lost:
            return True
        self._keepalive = bool(answer.keep_alive)
        if not payload.is_eof():
            await self._linger(payload)
            payload.set_exception(web.PayloadAccessError())
        return False

    async def _linger(self, payload: Any) -> None:
        """Read what is left of a body for a while, so that the client reads its answer before it finds the connection closed."""
        if not self._force_close and self._lingering_time and payload.exception() is None:
            with contextlib.suppress(TimeoutError, ClientError):  # it may stop being HTTP meanwhile
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
        if not payload.is_eof() and not self._force_close:
            self.close()

    def _wait_for_next(self) -> None:
        """Begin the time that a connection may stay idle."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def data_received(self, data: bytes) -> None:
        """Count and parse."""
        self.wire_bytes += len(data)
        super().data_received(data)
        if self._messages and self._current_request is not None and isinstance(self._messages[-1][0], _ErrInfo):
            # aiohttp queues its answer to a malformed chunk behind the request whose reader would wait for more.
            self._current_request.spoil()  # type: ignore[attr-defined]  # an Incoming

    def pause_reading(self) -> None:
        """Stop reading; a client that nobody reads from is not heard leaving, so look whether it has, now and then."""
        super().pause_reading()
        if self._probe is None:
            self._probe = self._loop.call_later(PROBE_SECONDS, self._look)

    def _look(self) -> None:
        self._probe = None
        if self.transport is None or not self._reading_paused:
            return
        if _has_hung_up(self.transport):
            self.transport.abort()
        else:
            self._probe = self._loop.call_later(PROBE_SECONDS, self._look)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read again, if reading was paused: aiohttp calls this at every read, and parses nothing anew each time."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        """Pass the client's back-pressure to the exchange."""
        super().pause_writing()
        if self.sink is not None:
            self.sink.pause()

    def resume_writing(self) -> None:
        """Pass the end of the client's back-pressure to the exchange."""
        super().resume_writing()
        if self.sink is not None:
            self.sink.resume()

    def tap(self, tap: Tap) -> None:
        """Give all further bytes of the client to `tap`: the connection has left HTTP."""
        self.set_parser(tap)  # type: ignore[arg-type]  # a tap has the two methods that aiohttp calls

    def send_continue(self) -> None:
        """Send an interim 100 answer."""
        if self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _expect_request(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None) -> Any:
        """Answer a request that aiohttp could not parse with a fixed text; end the connection after a failure outside of an exchange."""
        if not isinstance(exc, BadHttpMessage):
            # An answer may have begun: a second head inside it would be worse than none.
            self._server.on_failure(exc)
            self.force_close()
            return Sent(keep_alive=False)
        answer = error_answer(ClientError("headers_too_large" if isinstance(exc, LineTooLong) else "bad_request"))
        if self.transport is not None:
            sink = ClientSink(self, is_head=False, has_chunks=True, keep_alive=False, write_seconds=1.0)
            sink.answer(
                answer.status, [(b"content-type", b"application/json"), (b"x-relay-error", answer.code.encode("ascii"))], answer.body()
            )
        return Sent(keep_alive=False)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Report a failure without aiohttp's text, which may quote the request."""
        self._server.on_failure(kwargs.get("exc_info"))


class RelayServer(web.Server):
    """Makes a `RelayHandler` for each connection and counts them."""

    def __init__(
        self,
        handler: Callable[[Incoming], Awaitable[Sent]],
        *,
        max_connections: int,
        on_failure: Callable[[object], None],
    ) -> None:
        super().__init__(handler, handler_cancellation=True)  # type: ignore[arg-type]  # our records in place of aiohttp's
        self.on_failure = on_failure
        self._places = max_connections
        self._settings: dict[str, Any] = {
            "keepalive_timeout": IDLE_SECONDS,
            "lingering_time": LINGER_SECONDS,
            "access_log": None,
            "logger": _silent_logger(),
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_LINE,
            "max_headers": MAX_HEADERS,
            "auto_decompress": False,
        }

    def __call__(self) -> RequestHandler:
        """Make the protocol of a new connection."""
        return RelayHandler(self, **self._settings)

    def retire(self) -> None:
        """Close the connections that serve no request. aiohttp's `pre_shutdown` would also drop the rest of bodies under way."""
        for connection in self.connections:
            if connection._current_request is None:
                connection.close()

    @property
    def has_unsent(self) -> bool:
        """Tell whether bytes of an answer still wait for a client to take them."""
        transports = [connection.transport for connection in self.connections]
        return any(transport is not None and transport.get_write_buffer_size() > 0 for transport in transports)

    def take_place(self) -> bool:
        """Count a connection in; False when there are too many."""
        self._places -= 1
        if self._places < 0:
            self._places += 1
            return False
        return True

    def give_place(self) -> None:
        """Count a connection out."""
        self._places += 1


def _has_hung_up(transport: asyncio.BaseTransport) -> bool:
    """Tell whether a FIN or an RST has come behind what was read."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), _HUNG_UP)
    return bool(poll.poll(0))


def _silent_logger() -> logging.Logger:
    """Return a logger that drops everything: aiohttp logs parts of what a client sent, and nothing of that may reach a log."""
    logger = logging.Logger("relay.aiohttp")
    logger.addHandler(logging.NullHandler())
    return logger
