"""A small GET to an upstream over the same pools and parser as everything else: for the list of models, and for health checks."""

import asyncio
from collections.abc import Callable
from typing import Final

from relay.config.tree import HealthCheck, Upstream
from relay.errors import ConnectFailed
from relay.exchange import ClientRequest, Operation, ResponseHead
from relay.providers.openai import OpenAIProvider
from relay.stream import BodyEnd
from relay.transport.upstream import UpstreamPools

MAX_BYTES: Final = 8 * 2**20

Credential = Callable[[Upstream], bytes | None]
Answer = tuple[int, bytes]
"""Status and body of a whole answer."""


class Collector:
    """A receiver that keeps an answer, up to a bound."""

    __slots__ = ("_pieces", "_size", "_status", "done", "relay", "switch")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._status = 0
        self.done: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self.relay = self
        self.switch: Callable[[ResponseHead, bytes], None] | None = None

    def head(self, head: ResponseHead) -> None:
        """Keep the status."""
        self._status = head.status

    def feed(self, data: bytes, now: float) -> None:
        """Keep body bytes, up to the bound."""
        self._size += len(data)
        if self._size <= MAX_BYTES:
            self._pieces.append(data)

    def end(self, how: BodyEnd, *, anything: bool) -> None:
        """Give the answer, or None for one that is not whole or too large."""
        is_whole = self._status != 0 and how in (BodyEnd.WHOLE, BodyEnd.OPEN) and self._size <= MAX_BYTES
        if not self.done.done():
            self.done.set_result((self._status, b"".join(self._pieces)) if is_whole else None)

    def crash(self, error: Exception) -> None:
        """Let the caller see the bug."""
        if not self.done.done():
            self.done.set_exception(error)


async def fetch(pools: UpstreamPools, upstream: Upstream, path: str, credential: Credential) -> bytes | None:
    """Return the body of a 200 from `path` (such as /v1/models) of `upstream`, None for anything else."""
    answer = await _get(pools, upstream, path, None, credential, upstream.timeouts.connect)
    return answer[1] if answer is not None and answer[0] == 200 else None


async def ask_health(pools: UpstreamPools, upstream: Upstream, check: HealthCheck, credential: Credential) -> int | None:
    """Return the status of the answer to a health check, None when no whole one came in its time."""
    path, mark, query = check.path.partition("?")
    try:
        async with asyncio.timeout(check.timeout):
            answer = await _get(pools, upstream, f"/v1{path}", query if mark else None, credential, check.timeout)
    except TimeoutError:
        return None
    return None if answer is None else answer[0]


async def _get(
    pools: UpstreamPools, upstream: Upstream, path: str, query: str | None, credential: Credential, connect_seconds: float
) -> Answer | None:
    request = ClientRequest(
        id="", method="GET", path=path, query=query, headers=(), operation=Operation.MODELS, received_at=0.0, client_ip=""
    )
    key = None if upstream.is_passthrough else credential(upstream)
    encoded = OpenAIProvider(upstream).encode(request, None, key, upload_length=None, is_upload=False)
    collector = Collector()
    try:
        connection = await pools.begin(encoded, collector, connect_seconds, is_fresh=False)
    except ConnectFailed:
        return None
    try:
        return await collector.done
    finally:
        connection.close(collector)
