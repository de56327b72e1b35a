"""Scrapes of a relay under load: one page each second."""

import asyncio


async def each_second(port: int) -> None:
    """Scrape the relay at `port` until cancelled; raises what `read_page` raises."""
    while True:
        await read_page(port)
        await asyncio.sleep(1.0)


async def read_page(port: int) -> bytes:
    """Return the metrics of the relay at `port`; raises OSError, and RuntimeError for what is no page."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        head, _, page = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"/metrics answered {head[:40]!r}")
    return page
