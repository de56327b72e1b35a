"""A worker: a whole relay that listens beside its siblings and does what its supervisor says."""

import asyncio
import pickle
import shutil
import signal
import socket
import sys
from time import monotonic
from typing import Any, Final

import msgspec

from relay.app.application import App
from relay.app.desk import Order
from relay.app.listening import listen_message
from relay.app.process import loop_factory, settle_memory
from relay.config.tree import Config
from relay.errors import ClientError, Overloaded
from relay.gateway.planning import Snapshot
from relay.policy.owners import Owner
from relay.stores import RedisUnusable, StateFileUnusable
from relay.workers.channel import Channel
from relay.workers.messages import (
    HEAD_BYTES,
    Adopt,
    AskOwner,
    AskPage,
    Begin,
    Collect,
    Counted,
    Drain,
    Frames,
    Hurry,
    LimitsChanged,
    Made,
    Message,
    Page,
    Prepare,
    Prepared,
    Ready,
    Report,
    Unknown,
)

BEGIN_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 5.0


def main(index: int, descriptor: int) -> int:
    """Serve as worker `index` until the supervisor at the other end of `descriptor` says otherwise. Returns an exit code."""
    # A terminal's ^C and a service manager's SIGHUP are for the supervisor, which says what to do.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=descriptor)
    begin = _first_message(sock)
    if begin is None or begin.index != index:
        return 1
    config = _config(begin.config)
    with asyncio.Runner(loop_factory=loop_factory(config.server.loop)) as runner:
        return runner.run(Worker(begin, config).serve(sock))


def _first_message(sock: socket.socket) -> Begin | None:
    """Wait for the first message: the event loop is chosen by what it says. None when the supervisor is gone."""
    sock.settimeout(BEGIN_SECONDS)
    frames = Frames()
    head = _read(sock, HEAD_BYTES)
    found = frames.feed(head + _read(sock, int.from_bytes(head, "big")))
    message = found[0].message if found else None
    return message if isinstance(message, Begin) else None


def _read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return bytes(data)


def _config(pickled: bytes) -> Config:
    config = pickle.loads(pickled)  # noqa: S301  # from our own supervisor
    assert isinstance(config, Config)
    return config


class Worker:
    """One of several relays: the `Crew` of its `App`."""

    def __init__(self, begin: Begin, config: Config) -> None:
        self.index = begin.index
        self.total = begin.total
        self.directory = begin.directory
        self._generation = begin.generation
        self._config = config
        self._channel: Channel | None = None
        self._is_orphan = False
        self._prepared: tuple[int, Snapshot] | None = None
        self._rests = begin.rests
        self._app = App(config, reload=None, crew=self)

    async def serve(self, sock: socket.socket) -> int:
        """Serve until told to stop, or until the supervisor is gone."""
        app = self._app
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.drain)
        self._channel = await Channel.open(sock, told=self._told, asked=self._asked, closed=self._lost)
        try:
            try:
                await app.start()
                for name, seconds in self._rests.items():
                    self._report(Order(target=name, seconds=seconds))
            except (RedisUnusable, StateFileUnusable) as error:
                sys.stderr.write(f"relay: {error}\n")
                return 1
            except OSError as error:
                sys.stderr.write(listen_message(self._config, error))
                return 1
            settle_memory()
            self._channel.tell(Ready(self._generation))
            await app.run()
            self._channel.tell(await self._counted())
            return 0
        finally:
            await app.close()
            if self._is_orphan:  # nobody else is left to do it; siblings that still run have it open already
                shutil.rmtree(self.directory, ignore_errors=True)
            self._channel.close()

    def _lost(self) -> None:
        self._is_orphan = True
        self._app.drain()

    def _told(self, message: Message) -> None:
        match message:
            case Drain():
                self._app.drain()
            case Hurry():
                self._app.hurry()
            case Order():
                self._report(message)
            case _:
                return

    async def _asked(self, message: Message) -> Message:
        match message:
            case Collect():
                return await self._counted(forgets=message.forgets)
            case Order():
                return self._report(message)
            case Prepare():
                return await self._prepare(message)
            case Adopt() if self._prepared is not None and self._prepared[0] == message.generation:
                self._app.adopt(self._prepared[1])
                self._prepared = None
                return Ready(message.generation)
            case _:
                return Unknown()

    def _report(self, order: Order) -> Report:
        try:
            return Report(msgspec.json.encode(self._app.desk.carry_out(order, monotonic())))
        except ClientError as error:
            return Report(b"", error.code)

    async def _prepare(self, message: Prepare) -> Prepared:
        try:
            self._prepared = (message.generation, await self._app.prepare(_config(message.config)))
        except Exception as error:  # whatever is wrong with it, nobody gets this configuration
            return Prepared(str(error) or type(error).__name__)
        return Prepared(None)

    async def _counted(self, *, forgets: bool = False) -> Counted:
        pieces = []
        for piece in self._app.dump(forgets=forgets):
            pieces.append(piece)
            await asyncio.sleep(0)  # streams go on between two pieces
        return Counted(pieces, self._app.is_leaving)

    # Crew

    def made(self, object_id: str, owner: Owner) -> None:
        """Have the supervisor remember who made `object_id`."""
        assert self._channel is not None
        self._channel.tell(Made(object_id, owner.upstream, owner.route, owner.key))

    async def owner(self, object_id: str) -> Owner | None:
        """Ask the supervisor who made `object_id`; nobody knows when it does not answer."""
        assert self._channel is not None
        try:
            answer = await self._channel.ask(AskOwner(object_id), ANSWER_SECONDS)
        except (TimeoutError, ConnectionError):
            return None
        return Owner(upstream=answer.upstream, route=answer.route, key=answer.key) if isinstance(answer, Made) else None

    def limits_changed(self, *, are_degraded: bool) -> None:
        """Tell the supervisor, which speaks for all."""
        assert self._channel is not None
        self._channel.tell(LimitsChanged(are_degraded))

    async def page(self, path: str, accept: str) -> tuple[int, bytes, bytes]:
        """Return what the supervisor answers for all; a 503 when it cannot."""
        assert self._channel is not None
        try:
            answer = await self._channel.ask(AskPage(path, accept), ANSWER_SECONDS)
        except (TimeoutError, ConnectionError):
            return 503, b"application/json", b'{"status":"unknown"}'
        assert isinstance(answer, Page)
        return answer.status, answer.content_type, answer.body

    async def carry_out(self, order: Order) -> dict[str, Any]:
        """Have the supervisor tell all workers. Raises ClientError, and Overloaded when it does not answer."""
        assert self._channel is not None
        try:
            answer = await self._channel.ask(order, ANSWER_SECONDS)
        except (TimeoutError, ConnectionError):
            raise Overloaded from None
        if not isinstance(answer, Report):  # no worker answers it
            raise Overloaded
        if answer.error is not None:
            raise ClientError(answer.error)
        report: dict[str, Any] = msgspec.json.decode(answer.body)
        return report
