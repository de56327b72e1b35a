"""The addresses the relay listens on: bound before anything else is made, so that a port that is taken says so at once."""

import asyncio
import errno
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from relay.config.tree import Config, Server
from relay.transport.downstream import Downstream
from relay.transport.listener import Incoming, RelayServer, Sent

BACKLOG: Final = 2048
SEND_BUFFER: Final = 256 * 2**10
"""Kernel's share of what waits for a slow client; the default lets megabytes pile up."""


def listen(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Return a listening socket, one of several when the address `is_shared`. Raises OSError with the address as its file name."""
    sock = _bind(host, port, is_shared=is_shared)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.setblocking(False)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _named(error, host, port) from None
    return sock


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that holds an address for others to listen on, without listening itself. Raises OSError as `listen` does."""
    # A shared bind alone would succeed beside another relay that shares the address; this one fails then.
    with _bind(host, port, is_shared=False) as probe:
        return _bind(host, probe.getsockname()[1], is_shared=True)


def _bind(host: str, port: int, *, is_shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise _named(error, host, port) from None
    return sock


def _named(error: OSError, host: str, port: int) -> OSError:
    """Return `error` with the address as its file name; a name that does not resolve keeps its kind, whose numbers are its own."""
    kind = socket.gaierror if isinstance(error, socket.gaierror) else OSError
    named = kind(error.errno, error.strerror)
    named.filename = f"{host}:{port}"
    return named


async def serve(
    sock: socket.socket, downstream: Downstream, limit: int, on_failure: Callable[[object], None]
) -> tuple[RelayServer, asyncio.Server]:
    """Serve a listening socket, at most `limit` connections at once."""
    server = RelayServer(_handler(downstream), max_connections=limit, on_failure=on_failure)
    return server, await asyncio.get_running_loop().create_server(server, sock=sock, backlog=BACKLOG)


def _handler(downstream: Downstream) -> Callable[[Incoming], Awaitable[Sent]]:
    async def handle(incoming: Incoming) -> Sent:
        return await downstream.handle(incoming)

    return handle


def url_of(sock: socket.socket) -> str:
    """Return the http URL of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def max_connections(server: Server, workers: int = 1) -> int:
    """Return how many clients may be connected to this process, one of `workers`.

    What the configuration says is dealt out among them; else it is half of the process's descriptors, since each client
    may need one to an upstream.
    """
    if server.max_connections is not None:
        return max(server.max_connections // workers, 1)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft // 2, 16)


def listen_message(config: Config, error: OSError) -> str:
    """Tell a person what to do when an address cannot be had."""
    is_main = error.filename == f"{config.server.host}:{config.server.port}"
    other = "relay serve --listen 127.0.0.1:8081" if is_main else "`metrics: {listen: ...}` in the configuration"
    match error:
        case socket.gaierror():
            advice = "The name stands for no address of the kind; say the address itself"
        case OSError(errno=errno.EADDRINUSE):
            advice = "Another program is using the port; see `ss -ltnp`, or choose another one"
        case OSError(errno=errno.EADDRNOTAVAIL):
            advice = "This machine does not have that address; 0.0.0.0 is all that it has, 127.0.0.1 reaches itself alone"
        case OSError(errno=errno.EACCES | errno.EPERM):
            advice = "Ports below 1024 are the system's; choose another one"
        case _:
            advice = "Choose another address"
    what = error.filename or "a loopback port for the demo upstream"
    return f"relay: cannot listen on {what}: {error.strerror}\n{advice}: {other}\n"
