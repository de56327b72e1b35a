"""A way to a Redis server that can fail in the ways servers and networks do, switched while connections are open."""

import asyncio
import contextlib
import re
from enum import Enum
from typing import Self

DELAY_SECONDS = 5.0


class Fault(Enum):
    """What happens to those who come, and to those who are there."""

    NONE = "none"
    REFUSED = "refused"
    RESET = "reset"
    BLACK_HOLE = "black_hole"
    SLOW = "slow"
    LOADING = "loading"
    READONLY = "readonly"
    OOM = "oom"
    GARBAGE = "garbage"
    WRONG = "wrong"


ANSWERS = {
    Fault.LOADING: b"-LOADING Redis is loading the dataset in memory\r\n",
    Fault.READONLY: b"-READONLY You can't write against a read only replica.\r\n",
    Fault.OOM: b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    Fault.GARBAGE: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    Fault.WRONG: b"$9\r\n1 2 3 4 5\r\n",
}


class RedisFront:
    """Listens on a port of its own and passes on to a Redis server, unless a fault is set."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self.fault = Fault.NONE
        self.pace = 0.0
        """Seconds before each answer, while others wait behind it."""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its address for a configuration."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    async def set(self, fault: Fault) -> None:
        """Let `fault` happen from now on."""
        if self.fault is Fault.REFUSED:
            await self._listen()
        self.fault = fault
        if fault is Fault.REFUSED:
            await self._close()
        elif fault is Fault.RESET:
            self._drop()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _drop(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # by `_close`
            await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        behind: asyncio.StreamWriter | None = None
        try:
            if self.fault is Fault.RESET:
                writer.transport.abort()
                return
            answers, behind = await asyncio.open_connection("127.0.0.1", self._behind)
            async with asyncio.TaskGroup() as group:
                back = group.create_task(self._copy(answers, writer))
                await self._take(reader, writer, behind)
                back.cancel()
        except* OSError:
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            for each in (writer, behind):
                if each is not None:
                    each.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behind: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self.fault in ANSWERS:
                writer.write(ANSWERS[self.fault])
                continue
            if self.fault is Fault.SLOW:
                await asyncio.sleep(DELAY_SECONDS)
            if self.fault is not Fault.BLACK_HOLE:
                behind.write(data)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not self.pace:
                    writer.write(data)
                    continue
                for answer in re.findall(rb"[+:-][^\r]*\r\n|\$\d+\r\n[^\r]*\r\n", data):
                    await asyncio.sleep(self.pace)
                    writer.write(answer)
