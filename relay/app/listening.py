"""The addresses the relay listens on: bound before anything else is made, so that a port that is taken says so at once."""

import resource
import socket
from typing import Final

from relay.config.tree import Config, Server

BACKLOG: Final = 2048
SEND_BUFFER: Final = 256 * 2**10
"""Kernel's share of what waits for a slow client; the default lets megabytes pile up."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError with the address as its file name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
    return sock


def url_of(sock: socket.socket) -> str:
    """Return the http URL of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def max_connections(server: Server) -> int:
    """Return how many clients may be connected: half of the descriptors, since each may need one to an upstream."""
    if server.max_connections is not None:
        return server.max_connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft // 2, 16)


def listen_message(config: Config, error: OSError) -> str:
    """Tell a person what to do when an address cannot be had."""
    is_main = error.filename == f"{config.server.host}:{config.server.port}"
    other = "relay serve --listen 127.0.0.1:8081" if is_main else "`metrics: {listen: ...}` in the configuration"
    return (
        f"relay: cannot listen on {error.filename or 'a loopback port for the demo upstream'}: {error.strerror}\n"
        f"Another program may be using the port; see `ss -ltnp`, or choose another one: {other}\n"
    )
