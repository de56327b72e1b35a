"""The relay's own pages: what a person, a load balancer and a Prometheus ask for."""

import asyncio
from collections.abc import Callable
from typing import Final

from relay.app.crew import Crew
from relay.exchange import Headers, header
from relay.telemetry.exposition import PAUSE_SECONDS
from relay.telemetry.metrics import Metrics
from relay.transport.downstream import Page

_JSON: Final = b"application/json"


class Pages:
    """Answers by path."""

    __slots__ = ("_are_limits_degraded", "_crew", "_is_stopping", "_metrics")

    def __init__(
        self, metrics: Metrics, is_stopping: Callable[[], bool], are_limits_degraded: Callable[[], bool], crew: Crew | None
    ) -> None:
        """Answer for one process, or, with a `crew`, for all of it where a page speaks for all."""
        self._crew = crew
        self._metrics = metrics
        self._is_stopping = is_stopping
        self._are_limits_degraded = are_limits_degraded

    def by_path(self, *, has_metrics: bool) -> dict[str, Page]:
        """Return the pages of one listener."""
        pages: dict[str, Page] = {"/": self._root, "/healthz": self._health, "/readyz": self._ready}
        if has_metrics:
            pages["/metrics"] = self._scrape
        return pages

    async def _root(self, headers: Headers) -> tuple[int, bytes, bytes]:
        return 200, b"text/plain; charset=utf-8", b"relay: point an OpenAI SDK's base_url at /v1 of this address.\n"

    async def _health(self, headers: Headers) -> tuple[int, bytes, bytes]:
        return 200, _JSON, b'{"status":"ok"}'

    async def _ready(self, headers: Headers) -> tuple[int, bytes, bytes]:
        if self._crew is not None:
            return await self._crew.page("/readyz", "")
        if self._is_stopping():
            return 503, _JSON, b'{"status":"draining"}'
        if self._are_limits_degraded():
            return 200, _JSON, b'{"status":"degraded","limits":"degraded"}'
        return 200, _JSON, b'{"status":"ready"}'

    async def _scrape(self, headers: Headers) -> tuple[int, bytes, bytes]:
        accept = (header(headers, b"accept") or b"").decode("latin-1")
        if self._crew is not None:
            return await self._crew.page("/metrics", accept)
        content_type, slices = self._metrics.render(accept)
        page = []
        for piece in slices:
            page.append(piece)
            await asyncio.sleep(PAUSE_SECONDS)  # streams go on between two slices
        return 200, content_type, b"".join(page)
