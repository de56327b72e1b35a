"""Opening connections to an upstream: names, addresses, proxies, TLS.

The address that was connected to is checked, not the name: link-local addresses (cloud metadata) are never called, and
a public-looking name that leads to a private address is refused unless the upstream says `allow_private` (A27).
"""

import asyncio
import ipaddress
import socket
import ssl
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

import aiohappyeyeballs

from relay.config.tree import Upstream
from relay.errors import ConnectFailed, ConnectFault
from relay.transport.connection import Connection, Home
from relay.transport.tls import TlsLink

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]

DNS_SECONDS: Final = 30.0
DNS_STALE_SECONDS: Final = 60.0
"""How long an old answer may serve while the resolver fails."""
PROXY_HEAD: Final = 8192
METADATA: Final = frozenset({"100.100.100.200", "192.0.0.192", "fd00:ec2::254"})
"""Metadata services that are not link-local (Alibaba, Oracle, AWS over IPv6): never called, like those that are."""


class Dialer:
    """Opens connections to one upstream."""

    __slots__ = (
        "_addresses",
        "_ca_file",
        "_context",
        "_contexts",
        "_host",
        "_is_private_allowed",
        "_is_tls",
        "_port",
        "_proxy",
        "_resolved_at",
    )

    def __init__(self, upstream: Upstream, contexts: dict[str | None, ssl.SSLContext]) -> None:
        """Dial `upstream`; `contexts` are shared by all dialers, since each holds every root certificate (by CA file)."""
        parts = urlsplit(upstream.base_url)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._ca_file = upstream.ca_file
        self._contexts = contexts
        self._context: ssl.SSLContext | None = None
        self._proxy = urlsplit(upstream.proxy) if upstream.proxy else None
        self._is_private_allowed = upstream.allow_private or names_private(self._host)
        self._addresses: list[AddressInfo] = []
        self._resolved_at = float("-inf")

    async def dial(self, home: Home, seconds: float) -> Connection:
        """Open a connection within `seconds`. Raises ConnectFailed."""
        connection = Connection(home)
        try:
            if self._is_tls and self._context is None:
                self._context = self._contexts.get(self._ca_file) or _tls_context(self._ca_file)
                self._contexts[self._ca_file] = self._context
            async with asyncio.timeout(seconds):
                await self._open(connection)
        except TimeoutError:
            raise ConnectFailed(ConnectFault.TIMEOUT) from None
        except ssl.SSLError:
            raise ConnectFailed(ConnectFault.TLS) from None
        except OSError:
            raise ConnectFailed(ConnectFault.REFUSED) from None
        return connection

    async def _open(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        sock = await self._connect()
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._proxy is not None:
                await self._ask_proxy(sock)
            if self._context is None:
                await loop.create_connection(lambda: connection, sock=sock)
                return
            link = TlsLink(self._context, self._host, connection)
            await loop.create_connection(lambda: link, sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            await link.ready
        except BaseException:
            link.abort()
            raise

    async def _connect(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        addresses = await self._resolve()
        if len(addresses) == 1:
            # One address needs no race; this is the usual case on a local network.
            family, kind, proto, _, address = addresses[0]
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, address)
            except BaseException:
                sock.close()
                raise
            return sock
        return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=0.25, loop=loop)

    async def _resolve(self) -> list[AddressInfo]:
        now = monotonic()
        if now - self._resolved_at < DNS_SECONDS:
            return self._addresses
        host, port = (self._host, self._port) if self._proxy is None else (self._proxy.hostname, self._proxy.port)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        except (socket.gaierror, UnicodeError):
            if now - self._resolved_at < DNS_SECONDS + DNS_STALE_SECONDS:
                return self._addresses
            raise ConnectFailed(ConnectFault.DNS) from None
        allowed = [
            info for info in found if self._proxy is not None or is_allowed(str(info[4][0]), is_private_allowed=self._is_private_allowed)
        ]
        if not allowed:
            raise ConnectFailed(ConnectFault.FORBIDDEN)
        self._addresses = [(int(family), int(kind), proto, name, address) for family, kind, proto, name, address in allowed]  # type: ignore[misc]  # AF_INET and AF_INET6 only
        self._resolved_at = now
        return self._addresses

    async def _ask_proxy(self, sock: socket.socket) -> None:
        """Ask an HTTP proxy for a tunnel (RFC 9110 section 9.3.6)."""
        loop = asyncio.get_running_loop()
        authority = f"{self._host}:{self._port}".encode("ascii")
        await loop.sock_sendall(sock, b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority))
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = await loop.sock_recv(sock, 1)
            answer += data
            if not data or len(answer) > PROXY_HEAD:
                raise ConnectionRefusedError("the proxy did not answer")
        status = answer.split(b" ", 2)[1:2]
        if status != [b"200"]:
            raise ConnectionRefusedError("the proxy refused the tunnel")


def names_private(host: str) -> bool:
    """Tell whether the configured host itself says that it is local: an address, `localhost`, or a name without a dot."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".svc", ".svc.cluster.local"))
    return True


def is_allowed(address: str, *, is_private_allowed: bool) -> bool:
    """Tell whether an upstream's resolved address may be called."""
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or _nat64(ip) or ip
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or str(ip) in METADATA:
        return False
    return is_private_allowed or (ip.is_global and not ip.is_reserved)


def _nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address inside a well-known NAT64 address (RFC 6052)."""
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in ipaddress.IPv6Network("64:ff9b::/96") else None


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError:  # the file has gone, or is no certificate: nobody can be trusted
        raise ConnectFailed(ConnectFault.TLS) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A renegotiation in mid-answer would make a write wait for a read.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context
