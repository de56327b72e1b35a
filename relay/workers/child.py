"""One worker as the supervisor sees it: started, spoken to, started again when it dies.

A worker is a new interpreter, not a fork of the supervisor: nothing of the supervisor's loop or threads is copied into it.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
from time import monotonic
from typing import Any, Final, Protocol

from relay.config.apart import python_command
from relay.workers.channel import Channel
from relay.workers.messages import Begin, Counted, Drain, LimitsChanged, Message, Ready
from relay.workers.restarts import GIVE_UP_DEATHS, GIVE_UP_SECONDS, Restarts

START_SECONDS: Final = 30.0
"""Until a worker listens: a second on a small machine, many on one that is starting everything else as well."""
HOPELESS: Final = (
    f"this worker has died {GIVE_UP_DEATHS} times within {GIVE_UP_SECONDS:.0f} s, or before it was ready: the relay drains and ends"
)


class Chief(Protocol):
    """The supervisor, as its workers' keepers see it."""

    @property
    def generation(self) -> int:
        """The number of the configuration in force."""

    @property
    def is_stopping(self) -> bool:
        """Whether workers that end are wanted no more."""

    def begin(self, index: int) -> Begin:
        """Return the first message for the worker with this index."""

    async def asked(self, message: Message) -> Message:
        """Answer a worker's question."""

    def told(self, message: Message) -> None:
        """Take what a worker tells all."""

    def ended(self, child: "Child", reason: str) -> None:
        """Take leave of a worker's process: `reason` is exit, error or killed."""

    def overtaken(self, child: "Child") -> None:
        """Have a worker change over that began with a configuration that is not in force any more."""

    def give_up(self) -> None:
        """End the relay as a failure: a worker dies over and over."""


class Child:
    """The place of one worker, and the process that fills it."""

    def __init__(self, index: int, chief: Chief, log: Any) -> None:
        self.index = index
        self.is_ready = False
        self.answers = False
        """Whether the living process has come so far that it answers questions."""
        self.are_limits_degraded = False
        """Of the living process."""
        self.counted: list[bytes] | None = None
        """What the living process said last of what it counted."""
        self.channel: Channel | None = None
        self._chief = chief
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._restarts = Restarts()
        self._is_replaced = False
        """Whether the living process was told to end."""
        self._wake = asyncio.Event()
        """Something happened: it is ready, or it is gone, or everything stops."""
        self.was_ready = asyncio.Event()
        """It has been ready once."""

    @property
    def pid(self) -> int | None:
        """The process id while there is a process."""
        return None if self._process is None else self._process.pid

    async def keep(self) -> None:
        """Have a process run, until the chief stops and it has ended; tell the chief when that is hopeless."""
        while not self._chief.is_stopping:
            began_at = monotonic()
            try:
                reason, code, was_ready = await self._live()
            except OSError as error:  # no memory, no process, no descriptor: the same wait as after a death
                reason, code, was_ready = "error", error.errno or -1, False
            if self._chief.is_stopping:
                break
            now = monotonic()
            wait = self._restarts.wait_seconds(now - began_at, random.random())  # noqa: S311  # spreads restarts, guards nothing
            is_unwanted = reason != "exit" and not self._is_replaced
            if is_unwanted and self._restarts.is_hopeless(now, was_ready=was_ready):
                self._log.error("worker_ended", worker=self.index, reason=reason, code=code)
                self._log.error("gave_up", worker=self.index, message=HOPELESS)
                self._chief.give_up()
                break
            self._log.error("worker_ended", worker=self.index, reason=reason, code=code, restart_ms=round(wait * 1000))
            await self._sleep(wait)

    async def _live(self) -> tuple[str, int, bool]:
        self._is_replaced = False
        ours, theirs = socket.socketpair()
        gone = asyncio.Event()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *python_command("relay.workers"),
                str(self.index),
                str(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.channel = channel = await Channel.open(ours, told=self._told, asked=self._chief.asked, closed=gone.set)
        channel.tell(self._chief.begin(self.index))
        if self._chief.is_stopping:  # since it was started
            channel.tell(Drain())
        # A process that cannot even start must not hold its place for ever.
        starting = asyncio.get_running_loop().call_later(START_SECONDS, self._expect_ready)
        code = await self._process.wait()
        starting.cancel()
        await gone.wait()  # what it said last has arrived then
        was_ready = self.answers
        self.is_ready = self.answers = self.are_limits_degraded = False
        self.channel = self._process = None
        reason = "killed" if code < 0 else "error" if code else "exit"
        self._chief.ended(self, reason)
        return reason, code, was_ready

    def _told(self, message: Message) -> None:
        self.answers = self.answers or isinstance(message, Ready)
        match message:
            case Ready():
                self.serves(message.generation)
            case Counted():
                self.counted = message.pieces
            case LimitsChanged():
                self.are_limits_degraded = message.are_degraded
            case other:
                self._chief.told(other)

    def serves(self, generation: int) -> None:
        """Take note that the process serves the configuration with this number."""
        if generation != self._chief.generation:  # a reload overtook its start
            self._chief.overtaken(self)
        elif not self.is_ready:
            self.is_ready = True
            self.was_ready.set()
            self._log.info("worker_ready", worker=self.index, pid=self.pid)

    def _expect_ready(self) -> None:
        if not self.is_ready:
            self.kill()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def tell(self, message: Message) -> None:
        """Tell the process something, if there is one."""
        if self.channel is not None:
            self.channel.tell(message)

    def stop_waiting(self) -> None:
        """Leave off waiting for the time of a restart."""
        self._wake.set()

    def replace(self) -> None:
        """End the process politely; another one takes its place."""
        self.is_ready = False
        self._is_replaced = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended in this moment
                # Not `send_signal`: that looks after the process first, and what it died of is then lost to who waits for it.
                os.kill(self._process.pid, number)
