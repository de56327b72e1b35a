"""Ports that nothing answers on: free, refusing, and swallowing."""

import contextlib
import fcntl
import functools
import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FIRST: Final = 20_000
"""Below what systems give to outgoing connections (Linux from 32768), so that no connection takes a port between choice and use."""
BLOCK: Final = 200
"""Ports of one test process: it takes the first block that no other process on this machine has."""
BLOCKS: Final = 60

_offsets = itertools.count()


@functools.cache
def _own_block(pid: int) -> int:
    """Lock a block for as long as this process lives, and return its first port."""
    for number in range(BLOCKS):
        try:
            file = os.open(Path(tempfile.gettempdir()) / f"relay-test-ports-{number}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            continue  # another user's
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            return FIRST + number * BLOCK
    raise OSError("every block of ports is taken")


def free_port() -> int:
    """Return a port that nothing listens on at this moment, and that no other test process is given."""
    block = _own_block(os.getpid())
    for _ in range(BLOCK):
        port = block + next(_offsets) % BLOCK
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port from {block} to {block + BLOCK - 1}")


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """Hold a port that refuses every connection: bound, so that nobody else takes it, but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def swallowing_port() -> Iterator[int]:
    """Hold a port on which connecting never ends: a listener whose queue is full drops every further SYN."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # what a connect that has begun says
                filler.connect(address)
        yield address[1]
