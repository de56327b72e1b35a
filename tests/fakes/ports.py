"""Ports that nothing answers on: free, refusing, and swallowing."""

import contextlib
import socket
from collections.abc import Iterator


def free_port() -> int:
    """Return a port that nothing listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


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
