"""The yardstick: a streaming proxy as most people write one with aiohttp, without any feature.

Run as `python -m bench.conventional PORT PLAIN_URL SECURE_URL CA_FILE`. It parses the request to choose the upstream by
model, posts it with the shared session, and copies the body piece by piece. No keys, log, metrics, limits or observer.
"""

import ssl
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from bench.script import SECURE_PREFIX


def build(plain_url: str, secure_url: str, ca_file: str) -> web.Application:
    """Return the application that proxies every POST to one of two upstreams."""
    app = web.Application(client_max_size=64 * 2**20)
    session_key = web.AppKey("session", ClientSession)

    async def session(app: web.Application) -> AsyncIterator[None]:
        connector = TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=ca_file))
        async with ClientSession(connector=connector, timeout=ClientTimeout(total=None)) as app[session_key]:
            yield

    async def relay(request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        base = secure_url if payload["model"].startswith(SECURE_PREFIX) else plain_url
        headers = {"Authorization": "Bearer sk-upstream"}
        async with request.app[session_key].post(base + request.path, json=payload, headers=headers) as answer:
            out = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]})
            await out.prepare(request)
            async for piece in answer.content.iter_any():
                await out.write(piece)
            await out.write_eof()
            return out

    app.cleanup_ctx.append(session)
    app.router.add_post("/{path:.*}", relay)
    return app


if __name__ == "__main__":
    web.run_app(
        build(sys.argv[2], sys.argv[3], sys.argv[4]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )
