"""Child processes of the bench: pinned, ended with the bench whatever becomes of it, and spoken to in lines of JSON."""

import asyncio
import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_PR_SET_PDEATHSIG = 1
_STREAM_LIMIT = 2**20


def raise_file_limit() -> None:
    """Allow as many open files as the hard limit does: every open stream costs a proxy two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    """Return a loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _prepare(cores: frozenset[int] | None) -> Callable[[], None]:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def run_in_child() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if cores is not None:
            os.sched_setaffinity(0, cores)

    return run_in_child


class Child:
    """One process of the bench."""

    def __init__(self, process: asyncio.subprocess.Process, complaints: Path) -> None:
        self._process = process
        self._complaints = complaints

    @classmethod
    async def start(cls, argv: Sequence[str], *, cores: frozenset[int] | None, complaints: Path) -> "Child":
        """Start `argv` in the project's root, on `cores`, its standard error going to the file `complaints`."""
        environ = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        with complaints.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=sink,
                cwd=ROOT,
                env=environ,
                limit=_STREAM_LIMIT,
                preexec_fn=_prepare(cores),
            )
        return cls(process, complaints)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Tell whether the process still runs."""
        return self._process.returncode is None

    def last_words(self) -> str:
        """Return the last lines of what the process wrote to standard error, as one."""
        lines = self._complaints.read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-3:])[:500] or "it said nothing"

    def say(self, word: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")

    async def hear(self, *, within: float) -> dict[str, Any]:
        """Return the next line as JSON; raises RuntimeError with the process's last words when there is none in time."""
        assert self._process.stdout is not None
        line = b""
        with suppress(TimeoutError):  # told below, with what the process said
            async with asyncio.timeout(within):
                line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"no answer within {within:g} s: {self.last_words()}")
        record: dict[str, Any] = json.loads(line)
        return record

    async def stop(self) -> None:
        """End the process: politely, then after 3 s by force."""
        if not self.is_alive:
            return
        with suppress(ProcessLookupError):  # it may have ended just now
            os.kill(self.pid, signal.SIGTERM)  # Popen's own terminate() would reap behind asyncio's back
        try:
            async with asyncio.timeout(3):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
