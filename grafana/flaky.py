"""An upstream with faults, so that a board shows what it is for: outages, throttling, cuts, floods, dead connections.

What it does to a request depends on how many came before and on the time: nothing here is random. Only the standard library.
"""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

PERIOD_SECONDS: Final = 150.0
OUTAGE_SECONDS: Final = 25.0
"""At the start of every period; long enough for its target to rest and to be probed."""
FLOOD_EVENTS: Final = 400
FLOOD_TEXT: Final = "x" * 16_000
ANSWERS_OF_CONNECTION: Final = 2
"""After so many a kept connection dies with the next request."""
ANSWER: Final = "This answer comes from a made-up upstream that fails now and then, so that there is something to see."
UNREADABLE: Final = b"data: {not json\n\n"
TOKEN_SECONDS: Final = 0.02


class FlakyUpstream(ThreadingHTTPServer):
    """Serves chat completions on a thread per connection; below /steady/ without outages, and at length."""

    daemon_threads = True

    def __init__(self, host: str, port: int, *, period: float = PERIOD_SECONDS, outage: float = OUTAGE_SECONDS) -> None:
        super().__init__((host, port), _Handler)
        self.period = period
        self.outage = outage
        self.began_at = time.monotonic()
        self._count = 0
        self._lock = threading.Lock()

    @property
    def is_out(self) -> bool:
        """Tell whether it is in one of its outages; the first comes after a third of a period."""
        return (time.monotonic() - self.began_at + self.period * 2 / 3) % self.period < self.outage

    def next_number(self) -> int:
        """Count a request."""
        with self._lock:
            self._count += 1
            return self._count

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that the relay closed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FlakyUpstream
    _answered = 0

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        """Answer a chat completion, in one way or another."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        number = self.server.next_number()
        if self._answered == ANSWERS_OF_CONNECTION:
            self.close_connection = True  # as if it had died while it was idle
        elif self.path.startswith("/steady/"):
            self._stream([_delta(FLOOD_TEXT), UNREADABLE, *[_delta(FLOOD_TEXT)] * FLOOD_EVENTS], pause=0)
        elif self.server.is_out:
            self._json(503, {"error": {"message": "in an outage", "type": "server_error", "code": None}})
        elif number % 23 == 0:
            self._json(429, {"error": {"message": "too fast", "type": "rate_limit_error", "code": None}}, retry_after="1")
        else:
            events = [_delta(word + " ") for word in ANSWER.split()]
            if number % 5 == 2:
                events.insert(2, UNREADABLE)
            self._stream(events, pause=TOKEN_SECONDS * (1 + number % 3), is_cut=number % 29 == 0)
        self._answered += 1

    def _json(self, status: int, value: object, *, retry_after: str | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: list[bytes], *, pause: float, is_cut: bool = False) -> None:
        left = 1000 - int(time.monotonic() - self.server.began_at) * 20 % 1000
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("x-ratelimit-limit-requests", "1000")
        self.send_header("x-ratelimit-remaining-requests", str(left))
        self.end_headers()
        for number, event in enumerate(events):
            time.sleep(pause)
            if is_cut and number == len(events) // 2:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._chunk(event)
        self._chunk(
            _chunk([], usage={"prompt_tokens": 400, "completion_tokens": len(events), "prompt_tokens_details": {"cached_tokens": 256}})
        )
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def _delta(text: str) -> bytes:
    return _chunk([{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def _chunk(choices: list[object], usage: dict[str, object] | None = None) -> bytes:
    value = {"id": "chatcmpl-flaky", "object": "chat.completion.chunk", "created": 1, "model": "flaky", "choices": choices}
    return b"data: " + json.dumps(value if usage is None else {**value, "usage": usage}).encode() + b"\n\n"
