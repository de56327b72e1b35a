"""The pools of connections to the upstreams.

An own pool over `Connection` instead of an HTTP client: a client library costs more per request than everything else
the relay does (about 70 us against 20), and wakes a task per chunk. Idle connections are used last in, first out, and
are dropped before the usual server's keep-alive time runs out.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from relay.config.tree import Upstream
from relay.exchange import UpstreamRequest
from relay.forward.ports import Receiver
from relay.transport.connection import Connection
from relay.transport.dial import Dialer

IDLE_SECONDS: Final = 15.0
MAX_IDLE: Final = 512

OnConnect = Callable[[str, float], None]


class Pool:
    """The connections to one upstream."""

    __slots__ = ("_dialer", "_idle", "_is_retired", "_on_connect", "_open", "_sweep", "upstream")

    def __init__(self, upstream: Upstream, contexts: dict[str | None, ssl.SSLContext], on_connect: OnConnect | None = None) -> None:
        """Connect to `upstream`; `contexts` are the TLS contexts of all pools, by CA file."""
        self._on_connect = on_connect
        self.upstream = upstream
        self._dialer = Dialer(upstream, contexts)
        self._idle: deque[Connection] = deque()
        self._is_retired = False
        self._open: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    def take(self) -> Connection | None:
        """Return an idle connection, or None."""
        oldest = monotonic() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and connection.idle_since > oldest:
                return connection
            connection.discard()
        return None

    async def dial(self, seconds: float) -> Connection:
        """Open a connection. Raises ConnectFailed."""
        begun_at = monotonic()
        connection = await self._dialer.dial(self, seconds)
        if self._on_connect is not None:
            self._on_connect(self.upstream.name, monotonic() - begun_at)
        self._open.add(connection)
        return connection

    async def warm_up(self, seconds: float) -> None:
        """Open one connection ahead of need, so that the first stream does not pay for DNS and TLS. Raises ConnectFailed."""
        connection = await self.dial(seconds)
        # It idles like one that has served, and may be as stale when its time comes.
        connection.served = 1
        connection.idle_since = monotonic()
        self.put_back(connection)

    def put_back(self, connection: Connection) -> None:
        """Keep a connection that can serve another request."""
        if self._is_retired or len(self._idle) >= MAX_IDLE:
            connection.discard()
            return
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._drop_old)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is gone."""
        self._open.discard(connection)

    def _drop_old(self) -> None:
        self._sweep = None
        oldest = monotonic() - IDLE_SECONDS
        while self._idle and (not self._idle[0].is_usable or self._idle[0].idle_since <= oldest):
            self._idle.popleft().discard()
        if self._idle:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._drop_old)

    def count(self) -> tuple[int, int]:
        """Return how many connections are idle, and how many are open in all."""
        return len(self._idle), len(self._open)

    def close_idle(self) -> None:
        """Close the connections that serve nobody, for good: the others end with their calls."""
        self._is_retired = True
        while self._idle:
            self._idle.pop().discard()

    def close(self) -> None:
        """Close every connection."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._idle.clear()
        for connection in list(self._open):
            connection.discard()


class UpstreamPools:
    """The pools of all upstreams: `forward.Upstreams` over sockets."""

    __slots__ = ("_contexts", "_on_connect", "_pools")

    def __init__(self, on_connect: OnConnect | None = None) -> None:
        """Tell `on_connect` of each connection that was opened: the upstream's name, and the seconds it took."""
        self._on_connect = on_connect
        self._pools: dict[str, Pool] = {}
        self._contexts: dict[str | None, ssl.SSLContext] = {}

    def pool(self, upstream: Upstream) -> Pool:
        """Return the pool of `upstream`, made on first use, and anew when a reload changed the upstream."""
        pool = self._pools.get(upstream.name)
        if pool is not None and pool.upstream is upstream:
            return pool
        if pool is not None:
            pool.close_idle()
        pool = self._pools[upstream.name] = Pool(upstream, self._contexts, self._on_connect)
        return pool

    async def begin(self, request: UpstreamRequest, receiver: Receiver, connect_seconds: float, *, is_fresh: bool) -> Connection:
        """Send `request` on an idle connection, or on a new one. Raises ConnectFailed: nothing was sent."""
        pool = self.pool(request.upstream)
        connection = None if is_fresh or request.is_upload else pool.take()
        if connection is None:
            connection = await pool.dial(connect_seconds)
        connection.start(request, receiver)
        return connection

    def forget_trust(self) -> None:
        """Read CA files again for connections of pools made from now on: a reload may have come because one has changed."""
        self._contexts.clear()

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return how many connections are idle and open, by upstream."""
        return {name: pool.count() for name, pool in self._pools.items()}

    def close(self) -> None:
        """Close every connection of every pool."""
        for pool in self._pools.values():
            pool.close()
