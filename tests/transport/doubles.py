"""Stand-ins for what transports, pools and exchanges are to the machines under test: no sockets, everything written down."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from relay.config.tree import Key, Route, Target, Timeouts, Upstream
from relay.exchange import Attempt, ClientRequest, Exchange, Framing, Headers, Operation, ResponseHead, State, UpstreamRequest
from relay.stream import BodyEnd

UPSTREAM = Upstream(name="mine", base_url="http://127.0.0.1:9000/v1")


class FakeTransport(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_reading = True
        self.is_closed = False
        self.is_aborted = False
        self.buffered = 0
        self.sock = FakeSocket()

    def write(self, data: Any) -> None:
        assert not self.is_closing(), "written to a closed transport"
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed or self.is_aborted

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sock if name == "socket" else default


class FakeSocket:
    """Takes note of the options that are set."""

    family = socket.AF_UNIX
    """Not TCP, so that nobody sets TCP's options."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int, bytes]] = []

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        self.options.append((level, name, value))

    def fileno(self) -> int:
        return -1


class FakeHome:
    """A pool that only remembers."""

    def __init__(self) -> None:
        self.kept: list[object] = []
        self.forgotten: list[object] = []

    def put_back(self, connection: object) -> None:
        self.kept.append(connection)

    def forget(self, connection: object) -> None:
        self.forgotten.append(connection)


class RecordingFeed:
    """Takes body bytes."""

    def __init__(self, log: list[Any]) -> None:
        self._log = log
        self.body = b""

    def feed(self, data: bytes, now: float) -> None:
        assert data, "an empty piece was handed on"
        self.body += data
        self._log.append(("body", data))


class RecordingReceiver:
    """Writes down what an upstream's connection says; each thing must come in order and the end once."""

    def __init__(self, *, takes_switch: bool = False) -> None:
        self.log: list[Any] = []
        self.heads: list[ResponseHead] = []
        self.crashes: list[Exception] = []
        self.ends: list[tuple[BodyEnd, bool]] = []
        self.relay: RecordingFeed | None = None
        self.switched: list[tuple[ResponseHead, bytes]] = []
        self.switch: Callable[[ResponseHead, bytes], None] | None = self._switch if takes_switch else None
        self.on_head: Callable[[], None] = lambda: None

    def head(self, head: ResponseHead) -> None:
        assert not self.heads and not self.ends
        self.heads.append(head)
        self.log.append("head")
        self.relay = RecordingFeed(self.log)
        self.on_head()

    def _switch(self, head: ResponseHead, rest: bytes) -> None:
        assert not self.heads and not self.ends
        self.switched.append((head, rest))
        self.relay = RecordingFeed(self.log)

    def end(self, how: BodyEnd, *, anything: bool) -> None:
        assert not self.ends, "told of its end twice"
        self.ends.append((how, anything))
        self.log.append(("end", how))

    def crash(self, error: Exception) -> None:
        self.crashes.append(error)

    @property
    def body(self) -> bytes:
        return b"" if self.relay is None else self.relay.body

    @property
    def how(self) -> BodyEnd | None:
        return self.ends[0][0] if self.ends else None


def request_for(method: str = "GET", *, body: bytes = b"", is_upload: bool = False) -> UpstreamRequest:
    """A request on its way up."""
    return UpstreamRequest(
        upstream=UPSTREAM, method=method, head=b"%b / HTTP/1.1\r\n\r\n" % method.encode(), body=body, is_upload=is_upload
    )


def exchange_for(*, method: str = "POST", route: str = "fast", headers: Headers = ()) -> Exchange:
    """An exchange with one attempt under way."""
    target = Target(upstream=UPSTREAM, model="m")
    request = ClientRequest(
        id="0123abcd",
        method=method,
        path="/v1/chat/completions",
        query=None,
        headers=headers,
        operation=Operation.CHAT,
        received_at=0.0,
        client_ip="127.0.0.1",
        key=Key(name="alice"),
    )
    exchange = Exchange(request=request, route=Route(name=route, targets=(target,), timeouts=Timeouts()))
    exchange.attempts.append(Attempt(target=target, started_at=0.0))
    exchange.state = State.COMMITTED
    return exchange


def head_of(
    status: int = 200,
    *headers: tuple[bytes, bytes],
    framing: Framing = Framing.CHUNKED,
    length: int | None = None,
    content_type: bytes = b"application/json",
) -> ResponseHead:
    """An upstream's response head."""
    return ResponseHead(
        status=status,
        headers=headers,
        framing=framing,
        content_length=length,
        content_type=content_type,
        is_encoded=False,
        received_at=0.0,
    )
