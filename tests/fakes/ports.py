"""Ports that nothing answers on: free, refusing, and swallowing."""

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from typing import Final

FIRST: Final = 20_000
"""Below what systems give to outgoing connections (Linux from 32768), so that no connection takes a port between choice and use."""
BLOCK: Final = 250
"""Ports of one test process: processes that run side by side have neighbouring ids, and so blocks of their own."""
BLOCKS: Final = 48

_offsets = itertools.count()


def free_port() -> int:
    """Return a port that nothing listens on at this moment, and that no test process beside this one is given."""
    block = FIRST + os.getpid() % BLOCKS * BLOCK
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
