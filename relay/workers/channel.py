"""One end of the socket pair between supervisor and worker: messages told, questions asked and answered.

Nothing is kept for a peer that does not read: past a bound, what is told is dropped, and questions fail at once.
"""

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Final, cast

from relay.workers.messages import Envelope, Frames, Message, frame

MAX_WAITING: Final = 8 * 2**20
"""Bytes that may wait for a peer that is slow to read; more than one configuration and one dump."""

Told = Callable[[Message], None]
Asked = Callable[[Message], Awaitable[Message]]


class Channel(asyncio.Protocol):
    """Messages in order; each question gets its answer or an error."""

    def __init__(self, told: Told, asked: Asked, closed: Callable[[], None]) -> None:
        """Call `told` for each message, `asked` for each question, `closed` once when the peer is gone."""
        self._told = told
        self._asked = asked
        self._closed = closed
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, sock: socket.socket, *, told: Told, asked: Asked, closed: Callable[[], None]) -> "Channel":
        """Take over one end of a socket pair."""
        sock.setblocking(False)
        _, channel = await asyncio.get_running_loop().create_connection(lambda: cls(told, asked, closed), sock=sock)
        return channel

    def tell(self, message: Message) -> bool:
        """Send a message that needs no answer; False when the peer is gone or far behind."""
        return self._send(Envelope(0, False, message))

    async def ask(self, message: Message, seconds: float) -> Message:
        """Send a question and return its answer. Raises TimeoutError, and ConnectionError when the peer is gone or far behind."""
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if not self._send(Envelope(number, False, message)):
                raise ConnectionError("the other process does not listen")
            async with asyncio.timeout(seconds):
                return await answer
        finally:
            del self._waiting[number]

    def close(self) -> None:
        """Close after what was sent has left."""
        if self._transport is not None:
            self._transport.close()

    def _send(self, envelope: Envelope) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > MAX_WAITING:
            return False
        transport.write(frame(envelope))
        return True

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand on what is whole; a peer that sends nonsense is cut."""
        try:
            envelopes = self._frames.feed(data)
        except ValueError:
            assert self._transport is not None
            self._transport.abort()
            return
        for envelope in envelopes:
            self._take(envelope)

    def _take(self, envelope: Envelope) -> None:
        if envelope.is_answer:
            waiting = self._waiting.get(envelope.question)
            if waiting is not None and not waiting.done():
                waiting.set_result(envelope.message)
        elif envelope.question:
            task = asyncio.get_running_loop().create_task(self._answer(envelope))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._told(envelope.message)

    async def _answer(self, envelope: Envelope) -> None:
        self._send(Envelope(envelope.question, True, await self._asked(envelope.message)))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Fail every question, then tell."""
        self._transport = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError("the other process is gone"))
        for task in self._tasks:
            task.cancel()
        self._closed()
