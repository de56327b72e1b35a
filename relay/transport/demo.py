"""The demo upstream on a loopback socket: the script of `relay.demo`, at its pace, with faults that really happen on the connection.

It listens on a port of its own in the relay's process, so that the relay reaches it through the ordinary way to any upstream.
"""

import asyncio
import time
import uuid
from typing import Final

from aiohttp import web

from relay.demo import Ending, Reply, reply

MAX_BODY: Final = 32 * 2**20
MAX_ANSWERS: Final = 1000
"""Answers at the same time; past that, 503."""
BODY_SECONDS: Final = 30.0
WRITE_SECONDS: Final = 300.0
"""How long a reader may take nothing before it is cut: longer than the relay's own patience with its client."""
STALL_SECONDS: Final = 3600.0
"""How long a stall lasts at most when nobody leaves."""
SHUTDOWN_SECONDS: Final = 0.5


class DemoServer:
    """One listener on 127.0.0.1; `start` and `stop` once each."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self._answers = 0

    @property
    def answer_count(self) -> int:
        """Answers being sent now."""
        return self._answers

    async def start(self) -> str:
        """Listen on a free loopback port and return the base URL; raises OSError."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        # handler_cancellation: a reader that leaves stops the generation at once, in silence too.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        self._runner = runner
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}/v1"

    async def stop(self) -> None:
        """Close the listener and every connection. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self._answers >= MAX_ANSWERS:
            return web.json_response(
                {"error": {"message": "The demo upstream is busy.", "type": "server_error", "code": "busy"}}, status=503
            )
        self._answers += 1
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
            method = "GET" if request.method == "HEAD" else request.method
            return await _send(request, reply(method, request.rel_url.raw_path, body, now=int(time.time()), id=uuid.uuid4().hex))
        except TimeoutError:
            return _cut(request, web.Response(status=408))
        finally:
            self._answers -= 1


async def _send(request: web.Request, made: Reply) -> web.StreamResponse:
    response = web.StreamResponse(status=made.status, headers=dict(made.headers))
    response.content_length = made.length
    try:
        await _write(request, response, made)
        if made.ending is Ending.STALL:
            await asyncio.sleep(STALL_SECONDS)
    except (ConnectionError, TimeoutError):
        return _cut(request, response)  # the reader is gone or takes nothing
    return response if made.ending is Ending.CLEAN else _cut(request, response)


async def _write(request: web.Request, response: web.StreamResponse, made: Reply) -> None:
    """Write every step when it is due, measured from the first, so that a slow step does not delay all that follow."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    for step in made.steps:
        due += step.after
        await asyncio.sleep(max(0.0, due - loop.time()))
        async with asyncio.timeout(WRITE_SECONDS):
            if not response.prepared:
                await response.prepare(request)
            if request.method != "HEAD":
                await response.write(step.data)


def _cut(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Close after what was written: without the transport aiohttp cannot add the terminal chunk."""
    if request.transport is not None:
        request.transport.close()
    return response
