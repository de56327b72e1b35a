"""A scripted upstream as cheap as Python allows: raw protocols on uvloop that stream on a timetable.

Run as `python -m bench.upstream FOLDER`. Writes `ca.pem` into FOLDER, prints one JSON line with its two ports (plain
and TLS), and serves until its standard input ends.

The head and a role-only event go out in one write, the first content event follows at once in a write of its own,
every further one in one HTTP chunk and one write; the finish event, `[DONE]` and the last chunk in one write. The
timetables of streams that are opened one after another are spread evenly over the interval (steps of the golden
ratio), so that every run, whatever proxy it goes through, has the same bursts.
"""

import asyncio
import gc
import json
import re
import ssl
import sys
from functools import lru_cache
from pathlib import Path
from time import monotonic_ns
from typing import cast

import trustme
import uvloop

from bench.script import (
    CLOCK_DIGITS,
    LOSERS_FILE,
    MARK,
    REFUSE_EVERY,
    REFUSE_PREFIX,
    STALL_AFTER,
    STALL_EVERY,
    STALL_PREFIX,
    STALL_SECONDS,
    Script,
    parse_name,
)

_MODEL = re.compile(rb'"model"\s*:\s*"([^"]*)"')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb"\r\nx-client-request-id: *(\d+)", re.IGNORECASE)
_MODEL_WITHIN = 4096
"""The load generator writes `model` first; no need to search a whole megabyte for it."""

_CHUNK_HEAD = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":[{"index":0,"delta":{'
)
_CHUNK_TAIL = b'},"finish_reason":null}],"usage":null}\n\n'
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n"
)
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "bench",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "A short answer. " * 20}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 180, "completion_tokens": 80, "total_tokens": 260},
    }
).encode()
_JSON_RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_bench\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_ANSWER),
    _ANSWER,
)


_REFUSAL_BODY = b'{"error":{"message":"busy","type":"server_error","code":null}}'
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_REFUSAL_BODY),
    _REFUSAL_BODY,
)


def _framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


_OPENING = _STREAM_HEAD + _framed(_CHUNK_HEAD + b'"role":"assistant","content":""' + _CHUNK_TAIL)
_FINISH = _CHUNK_HEAD + _CHUNK_TAIL.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
_ENDING = _framed(_FINISH) + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@lru_cache(maxsize=64)
def event_parts(event_bytes: int) -> tuple[bytes, bytes]:
    """Return what stands before and after the clock in one framed content event of `event_bytes` bytes."""
    before, after = _CHUNK_HEAD + MARK, b'"' + _CHUNK_TAIL
    filler = b" word" * (event_bytes // 5)
    after = filler[: max(0, event_bytes - len(before) - CLOCK_DIGITS - len(after))] + after
    size = len(before) + CLOCK_DIGITS + len(after)
    return b"%x\r\n%b" % (size, before), after + b"\r\n"


class Timetables:
    """Hands out the phases of streams, evenly spread."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def next_due(self, now: float, interval: float) -> float:
        """Return when the second event of the next stream is due: its own slot of the interval, after `now`."""
        self._count += 1
        slot = (self._count * 0.6180339887 % 1.0) * interval
        return now + (slot - now) % interval


class Faults:
    """Which requests for the models with faults meet them, and what became of those that were left waiting."""

    __slots__ = ("_losers", "_refusable", "_stallable", "stalled")

    def __init__(self, losers: Path) -> None:
        self._losers = losers
        self._refusable = self._stallable = 0
        self.stalled: dict[bytes, Peer] = {}
        """The connections that are left waiting, by the number of the request."""

    def refuses(self) -> bool:
        """Tell whether the next request of its kind is refused."""
        self._refusable += 1
        return self._refusable % REFUSE_EVERY == 0

    def stalls(self, peer: "Peer", number: bytes) -> bool:
        """Tell whether the next request of its kind, on `peer`, is left waiting."""
        self._stallable += 1
        if self._stallable <= STALL_AFTER or self._stallable % STALL_EVERY:
            return False
        peer.waiting, peer.beaten_at = number, None
        self.stalled[number] = peer
        return True

    def backed_up(self, number: bytes) -> None:
        """Take note that a request was answered: if the same one is left waiting elsewhere, it was its backup."""
        if number in self.stalled:
            self.stalled[number].beaten_at = monotonic_ns()

    def left(self, peer: "Peer") -> None:
        """Take note that a connection is over."""
        self.stalled.pop(peer.waiting, None)
        if peer.beaten_at is not None:
            with self._losers.open("a") as file:
                file.write(f"{(monotonic_ns() - peer.beaten_at) / 1e6:.3f}\n")


class Peer(asyncio.Protocol):
    """One connection: reads whole requests, answers each by the script in its model name."""

    __slots__ = (
        "_after",
        "_before",
        "_buffer",
        "_due",
        "_faults",
        "_interval",
        "_left",
        "_loop",
        "_need",
        "_tables",
        "_timer",
        "_transport",
        "beaten_at",
        "waiting",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, tables: Timetables, faults: Faults) -> None:
        self._loop = loop
        self._tables = tables
        self._faults = faults
        self.waiting = b""
        """The number of the request that is left waiting here."""
        self.beaten_at: int | None = None
        """When the backup of the request that waits here was answered."""
        self._buffer = bytearray()
        self._need = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop registers no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the stream, if one runs."""
        if self._timer is not None:
            self._timer.cancel()
        self._faults.left(self)

    def data_received(self, data: bytes) -> None:
        """Collect one request (Content-Length only) and answer it."""
        self._buffer += data
        if not self._need:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._buffer, 0, end)
            self._need = end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) >= self._need:
            model = _MODEL.search(self._buffer, 0, _MODEL_WITHIN)
            name = model[1].decode() if model else ""
            number = self._number(name)
            del self._buffer[: self._need]  # not before the match was read: it looks into this very buffer
            self._need = 0
            self._meet(name, number)

    def _number(self, name: str) -> bytes:
        """Return what tells the backup of a request, where that matters."""
        if not (self._faults.stalled or name.startswith(STALL_PREFIX)):
            return b""
        found = _NUMBER.search(self._buffer, 0, _MODEL_WITHIN)
        return found[1] if found else b""

    def _meet(self, name: str, number: bytes) -> None:
        """Answer, unless the model's name asks for a fault and it is this request's turn."""
        script = parse_name(name)
        if name.startswith(REFUSE_PREFIX) and self._faults.refuses():
            self._transport.write(_REFUSAL)
        elif name.startswith(STALL_PREFIX):
            if self._faults.stalls(self, number):
                self._timer = self._loop.call_later(STALL_SECONDS, self._answer, script)
            else:
                self._answer(script)
        else:
            self._answer(script)
            self._faults.backed_up(number)

    def _answer(self, script: Script | None) -> None:
        if script is None:
            self._transport.write(_JSON_RESPONSE)
            return
        self._before, self._after = event_parts(script.event_bytes)
        self._interval = script.interval_us / 1e6
        self._left = script.events
        self._due = self._tables.next_due(self._loop.time(), self._interval) - self._interval
        self._transport.write(_OPENING)
        self._tick()

    def _tick(self) -> None:
        self._due += self._interval
        if not self._left:
            self._transport.write(_ENDING)
            return
        self._left -= 1
        self._transport.write(b"%b%0*d%b" % (self._before, CLOCK_DIGITS, monotonic_ns(), self._after))
        self._timer = self._loop.call_at(self._due, self._tick)


async def serve(folder: Path) -> None:
    """Listen on two loopback ports, tell them, and serve until standard input ends."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    loop, tables, faults = asyncio.get_running_loop(), Timetables(), Faults(folder / LOSERS_FILE)
    plain = await loop.create_server(lambda: Peer(loop, tables, faults), "127.0.0.1", 0, backlog=4096)
    secure = await loop.create_server(lambda: Peer(loop, tables, faults), "127.0.0.1", 0, backlog=4096, ssl=context)
    # Collecting the start-up objects again and again would be pauses in everybody's figures.
    gc.freeze()
    print(json.dumps({"plain": plain.sockets[0].getsockname()[1], "secure": secure.sockets[0].getsockname()[1]}), flush=True)
    gone = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), gone.set)
    await gone.wait()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
