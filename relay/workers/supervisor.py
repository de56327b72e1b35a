"""The supervisor: holds the address, keeps the workers running, speaks for all of them. It never touches a stream.

Ready means that at least one worker listens: the others' share of the connections goes to it. A worker that dies is started
again, after ever longer waits while it keeps dying; when that is hopeless the others drain and the relay ends as a failure. A reload
is read and checked once here, built by every worker, and put in force only when all could build it.
"""

import asyncio
import contextlib
import os
import pickle
import shutil
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any, Final

import msgspec

from relay.app.admin import Admin
from relay.app.desk import Order
from relay.app.listening import listen, max_connections, reserve, serve, url_of
from relay.app.reloading import Read, Reloads, fixed_changes
from relay.config.addresses import is_loopback
from relay.config.tree import Config
from relay.errors import ClientError, Overloaded
from relay.exchange import Headers, header
from relay.policy.owners import Owner, Owners
from relay.telemetry.libraries import LibraryLog
from relay.telemetry.logs import LogWriter, make_logger
from relay.telemetry.registry import Registry
from relay.transport.downstream import Downstream, Page
from relay.workers.channel import Channel
from relay.workers.child import Child
from relay.workers.messages import (
    Adopt,
    AskOwner,
    AskPage,
    Begin,
    Collect,
    Counted,
    Drain,
    Hurry,
    Made,
    Message,
    Prepare,
    Prepared,
    Ready,
    Report,
    Unknown,
)
from relay.workers.messages import Page as PageAnswer
from relay.workers.orders import Orders
from relay.workers.sums import Sums

COLLECT_SECONDS: Final = 5.0
"""Between two looks at what workers counted: what one that is killed had counted since the last look is lost."""
ANSWER_SECONDS: Final = 2.0
PREPARE_SECONDS: Final = 30.0
SECOND_LOOK_SECONDS: Final = 0.025
"""Far longer than a message between two processes takes, and hardly noticed by who asks for what does not exist."""
GRACE_SECONDS: Final = 5.0
"""What a worker gets beyond its own bounds before it is killed."""
_JSON: Final = b"application/json"
_SHARED_BYTES: Final = 2**30
"""Free memory for files without which limits are counted on a disk: a container mostly has 64 MiB, which is 300 keys."""


class StartFailed(Exception):
    """A worker ended before all were ready for the first time."""


class Supervisor:
    """The process above the workers."""

    def __init__(self, config: Config, count: int, *, reload: Read | None) -> None:
        self._config = config
        self._bound = config
        self.generation = 0
        self.has_given_up = False
        """Whether it ends because a worker died over and over."""
        self._writer = LogWriter(sys.stderr.buffer, is_shared=True)
        self._log = make_logger(self._writer, is_terminal=sys.stderr.isatty())
        self._libraries = LibraryLog(self._log)
        self._children = [Child(index, self, self._log) for index in range(count)]
        self._owners = Owners()
        """Which upstream made which object, for all workers: an id has one owner whoever of them hears of it."""
        self._orders = Orders(self._children, lambda: self._config, self._log)
        self._sums = Sums(config, self._pids)
        self._reloads = Reloads(reload, self._change, self._refused, self._log)
        self._stopping = asyncio.Event()
        self._failed = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._collecting: asyncio.Task[None] | None = None
        self._regularly: asyncio.Task[None] | None = None
        self._updates: set[asyncio.Task[None]] = set()
        self._held: socket.socket | None = None
        self._listeners: list[Any] = []
        self._directory = ""

    # Life

    async def start(self) -> str:
        """Start everything; return the address to use. Raises OSError when an address cannot be had, and StartFailed."""
        self._libraries.open()
        server = self._config.server
        self._held = reserve(server.host, server.port)
        self._config = self._placed(self._config)
        metrics = self._config.metrics
        if metrics.host is not None:
            admin = Admin(self._orders.carry_out) if is_loopback(metrics.host) else None
            downstream = Downstream(None, server, self._pages(), admin=admin)
            listener = await serve(listen(metrics.host, metrics.port), downstream, max_connections(server), self._on_failure)
            self._listeners.append(listener)
        self._directory = _make_directory()
        self._sums.loaded(is_good=True, unix_time=time())
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(child.keep()) for child in self._children]
        self._regularly = loop.create_task(self._collect_regularly())
        await self._all_ready()
        self._tell_about(self._config)
        return url_of(self._held)

    async def _all_ready(self) -> None:
        for child in self._children:
            waits = [asyncio.ensure_future(event.wait()) for event in (child.was_ready, self._failed, self._stopping)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self._failed.is_set() and not self.is_stopping:
            raise StartFailed

    def _placed(self, config: Config) -> Config:
        """Return `config` listening where this relay listens: a port 0 has become a real one, and a reload moves nothing."""
        assert self._held is not None
        port = self._held.getsockname()[1]
        server, metrics = self._bound.server, self._bound.metrics
        return replace(
            config,
            server=replace(config.server, host=server.host, port=port),
            metrics=replace(config.metrics, host=metrics.host, port=metrics.port),
        )

    def stop(self) -> None:
        """Begin to drain; a second call ends everything at once."""
        bound = self._config.server.drain + GRACE_SECONDS
        message: Message = Drain()
        if self._stopping.is_set():
            message, bound = Hurry(), GRACE_SECONDS
        self._stopping.set()
        for child in self._children:
            child.tell(message)
            child.stop_waiting()
        asyncio.get_running_loop().call_later(bound, self._kill_all)

    def _kill_all(self) -> None:
        for child in self._children:
            child.kill()

    async def run(self) -> None:
        """Serve until told to stop and all workers have ended."""
        await asyncio.gather(*self._keepers)

    async def close(self) -> None:
        """End what is left, and release everything."""
        self._stopping.set()
        for child in self._children:
            child.stop_waiting()
        self._kill_all()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._reloads.cancel()
        for task in (self._regularly, *self._updates):
            if task is not None:
                task.cancel()
        for server, listener in self._listeners:
            listener.close()
            await server.shutdown(1.0)
        if self._held is not None:
            self._held.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._libraries.close()
        self._writer.close()

    def _on_failure(self, error: object) -> None:
        self._log.error("connection_failure", error=type(error).__name__)

    # What the children ask of their chief

    @property
    def is_stopping(self) -> bool:
        """Whether workers that end are wanted no more."""
        return self._stopping.is_set()

    def begin(self, index: int) -> Begin:
        """Return the first message for the worker with this index."""
        config = pickle.dumps(self._config)
        return Begin(index, len(self._children), self.generation, config, self._directory, self._orders.rests)

    def told(self, message: Message) -> None:
        """Take what a worker tells all."""
        if isinstance(message, Made):
            self._owners.made(message.object_id, Owner(upstream=message.upstream, route=message.route, key=message.key))

    async def asked(self, message: Message) -> Message:
        """Answer a worker's question."""
        match message:
            case AskPage(path="/metrics"):
                return PageAnswer(*await self._metrics(message.accept))
            case AskPage(path="/readyz"):
                return PageAnswer(*self._ready())
            case Order():
                return await self._report(message)
            case AskOwner():
                return await self._owner(message.object_id)
            case _:
                return Unknown()

    async def _report(self, order: Order) -> Message:
        try:
            return Report(msgspec.json.encode(await self._orders.carry_out(order)))
        except ClientError as error:
            return Report(b"", error.code)
        except Overloaded:
            return Unknown()

    async def _owner(self, object_id: str) -> Message:
        owner = self._owners.find(object_id)
        if owner is None:
            # The worker that saw it made may say so only now: its client had the answer before we have its word.
            await asyncio.sleep(SECOND_LOOK_SECONDS)
            owner = self._owners.find(object_id)
        return Unknown() if owner is None else Made(object_id, owner.upstream, owner.route, owner.key)

    def ended(self, child: Child, reason: str) -> None:
        """Take leave of a worker's process."""
        pieces, child.counted = child.counted or (), None
        self._sums.ended(reason, pieces)
        if not child.was_ready.is_set():
            self._failed.set()

    def overtaken(self, child: Child) -> None:
        """Have a worker change over that began with a configuration that is not in force any more."""
        task = asyncio.get_running_loop().create_task(self._bring_up_to_date(child))
        self._updates.add(task)
        task.add_done_callback(self._updates.discard)

    async def _bring_up_to_date(self, child: Child) -> None:
        channel, generation = child.channel, self.generation
        if channel is None:
            return
        is_prepared = is_adopted = False
        with contextlib.suppress(TimeoutError, ConnectionError):
            prepared = await channel.ask(Prepare(generation, pickle.dumps(self._config)), PREPARE_SECONDS)
            is_prepared = isinstance(prepared, Prepared) and prepared.error is None
            is_adopted = is_prepared and isinstance(await channel.ask(Adopt(generation), ANSWER_SECONDS), Ready)
        if child.channel is not channel:
            return
        if is_adopted:
            child.serves(generation)
        else:
            child.replace()

    def give_up(self) -> None:
        """Drain the workers that live, and end as a failure."""
        self.has_given_up = True
        self.stop()

    # Reload

    def reload(self) -> None:
        """Have all workers take a new configuration, or none."""
        self._reloads.ask()

    async def _change(self, read: Config) -> None:
        config = replace(self._placed(read), state_dir=self._bound.state_dir, redis=self._bound.redis, usage=self._bound.usage)
        crew = [(child, child.channel) for child in self._children if child.is_ready and child.channel is not None]
        prepare = Prepare(self.generation + 1, pickle.dumps(config))
        answers = await asyncio.gather(*(channel.ask(prepare, PREPARE_SECONDS) for _, channel in crew), return_exceptions=True)
        for (child, _), answer in zip(crew, answers, strict=True):
            match answer:
                case Prepared(error=str(error)):
                    raise ValueError(error)
                case TimeoutError():
                    raise ValueError(f"worker {child.index} did not answer within {PREPARE_SECONDS:.0f} s")
                case _:  # it is prepared, or died: what takes its place begins with whatever is in force then
                    continue
        self.generation += 1
        self._config = config
        await self._adopt(crew)
        self._sums.know(config)
        self._sums.loaded(is_good=True, unix_time=time())
        self._tell_about(read)
        self._log.info("reload", result="ok", routes=len(config.routes), upstreams=len(config.upstreams))

    async def _adopt(self, crew: list[tuple[Child, Channel]]) -> None:
        """Have the prepared workers change over; any other one that runs began with the old configuration, and follows."""
        for child in self._children:
            if child.is_ready and (child, child.channel) not in crew:
                self.overtaken(child)
        adopt = Adopt(self.generation)
        answers = await asyncio.gather(*(channel.ask(adopt, ANSWER_SECONDS) for _, channel in crew), return_exceptions=True)
        for (child, channel), answer in zip(crew, answers, strict=True):
            if not isinstance(answer, Ready) and child.channel is channel:
                child.replace()

    def _refused(self) -> None:
        self._sums.loaded(is_good=False, unix_time=time())

    def _tell_about(self, config: Config) -> None:
        for warning in config.warnings:
            self._log.warning("configuration", message=warning)
        fixed = fixed_changes(config, self._bound)
        if fixed and config is not self._config:
            self._log.warning("reload", message=f"{', '.join(fixed)} cannot change while the relay runs; restart it")

    # Pages

    def _pages(self) -> dict[str, Page]:
        async def root(headers: Headers) -> tuple[int, bytes, bytes]:
            return 200, b"text/plain; charset=utf-8", b"relay: /metrics, /readyz and /healthz of all workers.\n"

        async def health(headers: Headers) -> tuple[int, bytes, bytes]:
            return 200, _JSON, b'{"status":"ok"}'

        async def ready(headers: Headers) -> tuple[int, bytes, bytes]:
            return self._ready()

        async def metrics(headers: Headers) -> tuple[int, bytes, bytes]:
            return await self._metrics((header(headers, b"accept") or b"").decode("latin-1"))

        return {"/": root, "/healthz": health, "/readyz": ready, "/metrics": metrics}

    def _ready(self) -> tuple[int, bytes, bytes]:
        ready, total = sum(child.is_ready for child in self._children), len(self._children)
        limits = '"limits":"degraded",' if any(child.are_limits_degraded for child in self._children) else ""
        is_well = ready == total and not limits
        status = "draining" if self._stopping.is_set() else "starting" if ready == 0 else "ready" if is_well else "degraded"
        text = f'{{"status":"{status}",{limits}"workers":{{"ready":{ready},"total":{total}}}}}'
        return 200 if status in ("ready", "degraded") else 503, _JSON, text.encode("ascii")

    async def _metrics(self, accept: str) -> tuple[int, bytes, bytes]:
        await self._collect()
        return await self._sums.render(self._total(), accept)

    def _total(self) -> Registry:
        ready = sum(child.is_ready for child in self._children)
        living = [child.counted for child in self._children if child.counted is not None]
        return self._sums.total(living, ready, len(self._children) - ready)

    async def _collect(self) -> None:
        """Ask every worker what it counted, once for all who want to know at the same time."""
        if self._collecting is None:
            self._collecting = asyncio.get_running_loop().create_task(self._collect_now())
        await asyncio.shield(self._collecting)

    async def _collect_now(self) -> None:
        try:
            forgets = self._sums.may_forget
            await asyncio.gather(*(self._collect_from(child, forgets=forgets) for child in self._children))
            if forgets:
                self._sums.forget(child.counted for child in self._children if child.counted is not None)
        finally:
            self._collecting = None

    async def _collect_from(self, child: Child, *, forgets: bool) -> None:
        channel = child.channel
        if channel is None or not child.answers:  # one that starts has counted nothing, and would have everybody wait
            return
        try:
            answer = await channel.ask(Collect(forgets), ANSWER_SECONDS)
        except (TimeoutError, ConnectionError):
            return  # what it said last stands
        if isinstance(answer, Counted) and child.channel is channel:
            child.counted = answer.pieces
            if answer.is_leaving:
                self._sums.leaving()

    async def _collect_regularly(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_SECONDS)
            await self._collect()

    def _pids(self) -> dict[str, int]:
        pids = {str(child.index): child.pid for child in self._children if child.pid is not None}
        return {**pids, "supervisor": os.getpid()}


def _make_directory() -> str:
    """Make a folder of this relay's own, in memory where the system has a place for that."""
    shared = Path("/dev/shm")  # noqa: S108  # mkdtemp makes a folder for this user alone
    has_room = os.access(shared, os.W_OK) and (room := os.statvfs(shared)).f_bavail * room.f_frsize >= _SHARED_BYTES
    return tempfile.mkdtemp(prefix=f"relay-{os.getpid()}-", dir=shared if has_room else None)
