"""How right the relay's clocks are: streams whose every step is known, beside what the relay's log says of them.

The upstream is a script in the bench's own process that notes when it really sent each step; the relay's log line has the same
instants as the relay saw them. A reading is how far the two are apart, per clock.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench.proxies import KEY

_CHUNK: Final = (
    '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":%s,"finish_reason":null}]}'
)


def _event(delta: str) -> bytes:
    data = f"data: {_CHUNK % delta}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_DONE: Final = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_STEPS: Final = (
    (0.04, "head", _HEAD),
    (0.08, "first_event", _event('{"role":"assistant","content":""}')),
    (0.12, "first_reasoning", _event('{"reasoning_content":"hm"}')),
    (0.16, "", _event('{"content":"a"}')),
    (0.24, "last_content", _event('{"content":"b"}')),
    (0.30, "terminal", _DONE),
)
"""When each step is sent, the clock that shows it, and its bytes; reasoning is the first content."""
STREAMS: Final = 60
_AT_ONCE: Final = 4


@asynccontextmanager
async def scripted(sent: dict[str, dict[str, float]]) -> AsyncIterator[int]:
    """Serve the script; yields the port. `sent` gets when each stream's steps went out, by its model's name: seconds after its request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                body = await reader.readexactly(int(length.partition(b":")[2]))
                came_at = clock()
                steps = sent[json.loads(body)["model"]] = {}
                for at, name, data in _STEPS:
                    await asyncio.sleep(max(came_at + at - clock(), 0.0))
                    steps[name] = clock() - came_at
                    writer.write(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def ask_all(port: int) -> None:
    """Ask the relay at `port` for every stream, a few at a time."""
    numbers = iter(range(STREAMS))

    async def ask() -> None:
        for number in numbers:
            body = json.dumps({"model": f"clock-{number}", "stream": True, "messages": []}).encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
            writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            writer.write(body)
            await reader.read(-1)
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(ask())


def differences(sent: dict[str, dict[str, float]], lines: list[dict[str, Any]]) -> list[float]:
    """Return by how many milliseconds each clock of each stream is off; `sent` has the steps of each, by its model's name."""
    found = []
    for line in lines:
        clocks, steps = line["clocks_ms"], sent[line["model"]]
        told = {**steps, "first_content": steps["first_reasoning"], "first_content_written": steps["first_reasoning"]}
        found += [abs(clocks[name] - clocks["sent"] - 1000 * at) for name, at in told.items() if name]
        found.append(abs(line["gaps_ms"]["upstream"] - 1000 * (steps["terminal"] - steps["first_reasoning"])))
    return found


async def read_log(file: Path, count: int) -> list[dict[str, Any]]:
    """Return the `count` request lines of a relay's log once they are there; raises TimeoutError."""
    async with asyncio.timeout(10):
        while True:
            lines = [json.loads(line) for line in file.read_text().splitlines() if '"event":"request"' in line]
            if len(lines) >= count:
                return lines
            await asyncio.sleep(0.1)
