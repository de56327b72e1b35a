"""A small GET to an upstream over the same pools and parser as everything else, for the list of models."""

import asyncio
from collections.abc import Callable
from typing import Final

from relay.config.tree import Upstream
from relay.errors import ConnectFailed
from relay.exchange import ClientRequest, Operation, ResponseHead
from relay.providers.openai import OpenAIProvider
from relay.stream import BodyEnd
from relay.transport.upstream import UpstreamPools

MAX_BYTES: Final = 8 * 2**20


class Collector:
    """A receiver that keeps the body of a 200."""

    __slots__ = ("_pieces", "_size", "_status", "done", "relay", "switch")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._status = 0
        self.done: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
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
        """Give the body, or None for anything but a whole 200."""
        is_good = self._status == 200 and how in (BodyEnd.WHOLE, BodyEnd.OPEN) and self._size <= MAX_BYTES
        if not self.done.done():
            self.done.set_result(b"".join(self._pieces) if is_good else None)

    def crash(self, error: Exception) -> None:
        """Let the caller see the bug."""
        if not self.done.done():
            self.done.set_exception(error)


async def fetch(pools: UpstreamPools, upstream: Upstream, path: str, credential: Callable[[Upstream], bytes | None]) -> bytes | None:
    """Return the body of a 200 from `path` (such as /v1/models) of `upstream`, None for anything else."""
    request = ClientRequest(
        id="", method="GET", path=path, query=None, headers=(), operation=Operation.MODELS, received_at=0.0, client_ip=""
    )
    key = None if upstream.is_passthrough else credential(upstream)
    encoded = OpenAIProvider(upstream).encode(request, None, key, upload_length=None, is_upload=False)
    collector = Collector()
    try:
        connection = await pools.begin(encoded, collector, upstream.timeouts.connect, is_fresh=False)
    except ConnectFailed:
        return None
    try:
        return await collector.done
    finally:
        connection.close(collector)
