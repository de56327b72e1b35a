"""The load generator: raw keep-alive connections that count events and time every one of them.

Run as `python -m bench.load SPEC` with SPEC a JSON object of the fields of `Spec`. It speaks lines of JSON: it prints
`{"ready": true}` when every connection has its first event or answer, then obeys lines on standard input: `reset`
forgets the samples, `mark` prints the counters so far, `stop` (or the end of input) prints the report and ends. The
counters of two marks bound a window exactly, whatever the warm-up before it did.

Three patterns: `hold` opens one stream per connection and keeps it; `closed` asks again as soon as an answer ends;
`open` starts streams at random moments of a fixed mean rate, whatever the earlier ones do.
"""

import asyncio
import gc
import json
import random
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from time import monotonic_ns, process_time_ns
from typing import cast

import uvloop

from bench.script import CLOCK_DIGITS, MARK, parse_name

_AFTER_MARK = len(MARK) + CLOCK_DIGITS
_KEPT = 20
"""Bytes kept across a cut: enough for `[DONE]` up to the last chunk's end, too few to find a counted mark again."""
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_ERRORS_SHOWN = 5
_ERRORS_BORNE = 200
"""After so many failures a run is worthless: stop asking, let the report say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to ask for, and how often."""

    port: int
    key: str
    model: str
    pattern: str
    connections: int
    rate: float = 0.0
    """Streams per second of the `open` pattern."""
    ramp_seconds: float = 0.5
    body_bytes: int = 1000
    is_numbered: bool = False
    """Whether each request has a number of its own, in a header that proxies pass on."""
    seed: int = 1


def request_bytes(spec: Spec) -> bytes:
    """Return one whole request: head with the key, and a chat body of about `body_bytes` with `model` first."""
    text = 'Please tell me, in a few words and "without" haste, what a relay does.\n' * 14
    messages = [{"role": "system", "content": "You are brief."}]
    frame = {"model": spec.model, "stream": parse_name(spec.model) is not None, "messages": messages, "temperature": 0.7}
    room = spec.body_bytes - len(json.dumps(frame))
    while room > 0:
        message = {"role": "user", "content": text[: max(1, min(len(text), room - 40))]}
        messages.append(message)
        room -= len(json.dumps(message)) + 2
    body = json.dumps(frame).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{spec.port}\r\nauthorization: Bearer {spec.key}\r\n"
        "accept: application/json\r\nuser-agent: OpenAI/Python 2.0.0\r\nx-stainless-lang: python\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Tally:
    """Counters and samples of a run."""

    __slots__ = ("delays", "errors", "events", "fallback_ttfts", "requests", "shown", "ttfts")

    def __init__(self) -> None:
        self.events = self.requests = self.errors = 0
        self.shown: list[str] = []
        self.forget()

    def forget(self) -> None:
        """Drop the samples, keep the counters."""
        self.delays, self.ttfts, self.fallback_ttfts = array("q"), array("q"), array("q")

    def fail(self, why: str) -> None:
        """Count a failure and keep its words if it is among the first."""
        self.errors += 1
        if len(self.shown) < _ERRORS_SHOWN:
            self.shown.append(why)

    def counters(self) -> dict[str, object]:
        """Return the counters at this moment."""
        return {"events": self.events, "requests": self.requests, "errors": self.errors, "cpu_ns": process_time_ns()}


def quantiles(samples: Sequence[int]) -> dict[str, float]:
    """Return the count, p50, p90 and p99 (milliseconds) of nanosecond samples; without quantiles when there are none."""
    ordered = sorted(samples)
    if not ordered:
        return {"count": 0}
    marks = {f"p{part}_ms": ordered[min(len(ordered) - 1, len(ordered) * part // 100)] / 1e6 for part in (50, 90, 99)}
    return {"count": len(ordered), **marks}


class Caller(asyncio.Protocol):
    """One connection: asks, reads the answer to its end, and tells the generator."""

    __slots__ = (
        "_asked_at",
        "_carry",
        "_expected",
        "_generator",
        "_head",
        "_is_fallback",
        "_left",
        "_seen",
        "_tally",
        "_transport",
        "is_busy",
    )

    def __init__(self, generator: "Generator") -> None:
        self._generator = generator
        self._tally = generator.tally
        self._expected = generator.expected
        self._head: bytes | None = b""
        self._is_fallback = False
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop registers no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection that goes away within an answer is a failure."""
        if self.is_busy and not self._generator.is_stopping:
            self._tally.fail(f"connection lost after {self._seen} events: {exc!r}")
        self.is_busy = False
        self._generator.on_lost(self)

    def ask(self) -> None:
        """Send one request."""
        self.is_busy = True
        self._head, self._carry, self._left, self._seen = b"", b"", 0, 0
        self._asked_at = monotonic_ns()
        self._transport.write(self._generator.next_request())

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Find the events in what came, and the end of the answer."""
        now = monotonic_ns()
        if self._head is not None:
            data = self._read_head(self._head + data)
            if self._head is not None:
                return
        buffer = self._carry + data
        at = buffer.find(MARK)
        while at >= 0 and at + _AFTER_MARK <= len(buffer):
            self._on_event(now, int(buffer[at + len(MARK) : at + _AFTER_MARK]))
            at = buffer.find(MARK, at + _AFTER_MARK)
        self._carry = buffer[at:] if at >= 0 else buffer[-_KEPT:]
        if self._left:
            self._left -= len(data)
            if not self._left:
                self._on_end(is_whole=True)
        elif buffer.endswith(_LAST_CHUNK):
            self._on_end(is_whole=not self._expected or b"[DONE]" in buffer)

    def _read_head(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._head = data
            return b""
        head, self._head = data[:end].lower(), None
        if not head.startswith(b"http/1.1 200 "):
            self._tally.fail(f"{data[:300]!r}")
            self.is_busy = False
            self._transport.close()
        self._is_fallback = b"\r\nx-relay-attempts: 2\r\n" in head
        _, _, length = head.partition(b"\r\ncontent-length:")
        self._left = int(length.partition(b"\r\n")[0]) if length else 0
        return data[end + 4 :]

    def _on_event(self, now: int, sent_at: int) -> None:
        tally = self._tally
        tally.events += 1
        tally.delays.append(now - sent_at)
        if not self._seen:
            (tally.fallback_ttfts if self._is_fallback else tally.ttfts).append(now - self._asked_at)
            self._generator.on_first(self)
        self._seen += 1

    def _on_end(self, *, is_whole: bool) -> None:
        self.is_busy = False
        self._tally.requests += 1
        if not is_whole or self._seen != self._expected:
            self._tally.fail(f"answer ended with {self._seen} of {self._expected} events, whole: {is_whole}")
        if not self._expected:
            self._generator.on_first(self)
        self._generator.on_end(self)


class Generator:
    """Drives the connections by one pattern."""

    def __init__(self, spec: Spec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self._request = request_bytes(spec)
        self._number = 0
        script = parse_name(spec.model)
        self.expected = script.events if script else 0
        self.tally = Tally()
        self.is_stopping = False
        self._loop = loop
        self._chance = random.Random(spec.seed)
        self._waiting_for: set[Caller] = set()
        self._idle: list[Caller] = []
        self._callers: set[Caller] = set()
        self._ready = asyncio.Event()

    def next_request(self) -> bytes:
        """Return the bytes of one request."""
        if not self.spec.is_numbered:
            return self._request
        self._number += 1
        return self._request.replace(b"\r\n", b"\r\nx-client-request-id: %d\r\n" % self._number, 1)

    async def start(self) -> None:
        """Open the connections over the ramp and wait until each has its first event or answer."""
        pause = self.spec.ramp_seconds / self.spec.connections
        for _ in range(self.spec.connections):
            caller = await self._connect()
            self._waiting_for.add(caller)
            caller.ask()
            await asyncio.sleep(pause)
        async with asyncio.timeout(20):
            while self._waiting_for and self.tally.errors < _ERRORS_BORNE:
                self._ready.clear()
                await self._ready.wait()
            while self.spec.pattern == "open" and len(self._idle) < len(self._callers):
                await asyncio.sleep(0.02)  # the ramp's own streams are still running
        if self.spec.pattern == "open":
            self._start_next()

    async def _connect(self) -> Caller:
        _, caller = await self._loop.create_connection(lambda: Caller(self), "127.0.0.1", self.spec.port)
        self._callers.add(caller)
        return caller

    def _start_next(self) -> None:
        if self.is_stopping:
            return
        if self._idle:
            self._idle.pop().ask()
        else:
            self.tally.fail("no idle connection for a stream that was due")
        self._loop.call_later(self._chance.expovariate(self.spec.rate), self._start_next)

    def on_first(self, caller: Caller) -> None:
        """Note the first event or answer of a connection."""
        if self._waiting_for:
            self._waiting_for.discard(caller)
            self._ready.set()

    def on_end(self, caller: Caller) -> None:
        """Ask again, or keep the connection for the next stream that is due."""
        if self.is_stopping or self.tally.errors >= _ERRORS_BORNE:
            return
        if self.spec.pattern == "closed":
            caller.ask()
        else:
            self._idle.append(caller)

    def on_lost(self, caller: Caller) -> None:
        """Forget a connection; another takes its place unless a stream was held on it."""
        self._callers.discard(caller)
        self.on_first(caller)
        if caller in self._idle:
            self._idle.remove(caller)
        if not self.is_stopping and self.spec.pattern != "hold" and self.tally.errors < _ERRORS_BORNE:
            self._replacement = self._loop.create_task(self._replace())

    async def _replace(self) -> None:
        await asyncio.sleep(0.01)
        try:
            caller = await self._connect()
        except OSError as why:
            self.tally.fail(f"cannot connect: {why!r}")
            return
        self.on_end(caller)

    def stop(self) -> dict[str, object]:
        """Close everything and return the report."""
        self.is_stopping = True
        for caller in list(self._callers):
            caller.close()
        tally = self.tally
        of_all, of_fallbacks = quantiles([*tally.ttfts, *tally.fallback_ttfts]), quantiles(tally.fallback_ttfts)
        return {
            **tally.counters(),
            "ttft": of_all,
            "ttft_first": quantiles(tally.ttfts),
            "ttft_fallback": of_fallbacks,
            "delay": quantiles(tally.delays),
            "first_errors": tally.shown,
        }


def _say(record: dict[str, object]) -> None:
    print(json.dumps(record), flush=True)


async def run(spec: Spec) -> None:
    """Start the load, obey standard input, report."""
    loop = asyncio.get_running_loop()
    generator = Generator(spec, loop)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    gc.freeze()
    # Nothing here lives in cycles, and a collection would be a pause in the samples.
    gc.disable()
    await generator.start()
    _say({"ready": True, **generator.tally.counters()})
    while (word := (await lines.readline()).strip()) not in (b"", b"stop"):
        if word == b"reset":
            generator.tally.forget()
        _say(generator.tally.counters())
    _say(generator.stop())
    await asyncio.sleep(0.05)  # lets the closes go out


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    uvloop.run(run(Spec(**{name.name: given[name.name] for name in fields(Spec) if name.name in given})))
