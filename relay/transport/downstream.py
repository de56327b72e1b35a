"""From a parsed HTTP request to an exchange: what HTTP itself asks to be refused, the relay's own pages, the rest to the gateway.

Routing looks at the raw request target and at nothing else: never at `Host` (A8), never at a reconstructed URL.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final, Protocol

from relay.config.tree import Server
from relay.errors import ClientError, error_answer
from relay.exchange import Headers, header, header_values
from relay.gateway import Gateway
from relay.transport.listener import Incoming, Sent
from relay.transport.sink import ClientSink
from relay.transport.upload import BodyReader, StreamedUpload

_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=\-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_JSON: Final = (b"content-type", b"application/json")
_EXPOSED: Final = (
    b"x-request-id, x-relay-request-id, x-relay-route, x-relay-upstream, x-relay-attempts, x-relay-error, retry-after, retry-after-ms"
    b", x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests"
    b", x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)

Page = Callable[[Headers], Awaitable[tuple[int, bytes, bytes]]]
"""A page of the relay's own: request headers -> status, content type, body."""


class Admin(Protocol):
    """Answers what is below /admin/, on a listener that only this machine reaches."""

    async def answer(self, arrival: "HttpArrival", sink: ClientSink) -> None:
        """Answer one request."""


class HttpArrival:
    """One request whose head has come."""

    __slots__ = (
        "_reader",
        "client_ip",
        "content_length",
        "fault",
        "has_body",
        "headers",
        "is_http11",
        "is_websocket",
        "method",
        "path",
        "query",
    )

    def __init__(self, incoming: Incoming, client_ip: str, max_header: int) -> None:
        message = incoming.message
        self.method: str = message.method
        target: str = message.path
        path, mark, query = target.partition("?")
        self.path = path
        self.query: str | None = query if mark else None
        self.headers: Headers = message.raw_headers
        self.client_ip = client_ip
        self.is_http11 = message.version == (1, 1)
        self.has_body = not incoming.payload.is_eof() or not incoming.payload.at_eof()
        self.content_length: int | None = None
        self.is_websocket = False
        self.fault: ClientError | None = None
        """Why the request is refused whatever it asks for."""
        asks_first = False
        try:
            asks_first = self._check(message, target, max_header)
        except ClientError as error:
            self.fault = error
        self._reader = BodyReader(incoming.payload, incoming.protocol, asks_first=asks_first)

    def _check(self, message: Any, target: str, max_header: int) -> bool:
        """Refuse what is ambiguous as HTTP; return whether the client waits for 100 Continue."""
        headers = self.headers
        if message.version not in ((1, 0), (1, 1)) or not target.startswith("/"):
            raise ClientError("bad_request")
        if self.method in ("CONNECT", "TRACE"):
            raise ClientError("method_not_allowed")
        names: dict[bytes, bytes] = {}
        size = 0
        hosts = 0
        for key, value in headers:
            name = key.lower()
            names[name] = value
            hosts += name == b"host"
            size += len(key) + len(value) + 4
        if size > max_header:
            raise ClientError("headers_too_large")
        host = names.get(b"host")
        if host is None or _HOST.fullmatch(host) is None or hosts != 1:
            raise ClientError("bad_host")
        coding = names.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or not self.is_http11):
            raise ClientError("bad_transfer_encoding")
        length = names.get(b"content-length")
        if length is not None:
            self.content_length = int(length)
        if b"upgrade" in names:
            self._check_upgrade(names)
        expect = names.get(b"expect")
        if expect is not None and expect.lower() != b"100-continue":
            raise ClientError("expectation_failed")
        return expect is not None and self.is_http11

    def _check_upgrade(self, names: dict[bytes, bytes]) -> None:
        is_realtime = self.method == "GET" and self.path == "/v1/realtime" and names[b"upgrade"].lower() == b"websocket"
        if not is_realtime or self.content_length or b"transfer-encoding" in names:
            raise ClientError("bad_upgrade")
        self.is_websocket = True

    async def read(self, limit: int, seconds: float) -> bytes:
        """Read the whole body within `seconds`. Raises ClientError."""
        self._reader.deadline_at = monotonic() + seconds
        if self.content_length is not None and self.content_length > limit:
            raise ClientError("request_too_large")
        return await self._reader.whole(limit)

    async def read_part(self, limit: int, seconds: float) -> tuple[bytes, bool]:
        """Read at most about `limit` bytes within `seconds`; also tell whether that was all. Raises ClientError."""
        self._reader.deadline_at = monotonic() + seconds
        return await self._reader.part(limit)

    def upload(self, first: bytes) -> StreamedUpload:
        """Return what streams `first` and the rest of the body."""
        return StreamedUpload(self._reader, first, is_chunked=self.content_length is None)


class Downstream:
    """Answers the requests of one listener."""

    __slots__ = ("_admin", "_gateway", "_pages", "_server", "_trusted")

    def __init__(self, gateway: Gateway | None, server: Server, pages: dict[str, Page], *, admin: Admin | None = None) -> None:
        """Send /v1 to `gateway`, None for a listener that only tells about the relay.

        `pages` are the relay's own paths; `admin` has those below /admin/, where there is one.
        """
        self._admin = admin
        self._gateway = gateway
        self._server = server
        self._pages = pages
        self._trusted = tuple(ipaddress.ip_network(entry, strict=False) for entry in server.trusted_proxies)

    async def handle(self, incoming: Incoming) -> Sent:
        """Answer one request."""
        protocol = incoming.protocol
        if protocol.transport is None:
            return Sent(keep_alive=False)
        arrival = HttpArrival(incoming, self._client_ip(incoming), self._server.max_header)
        cors = self._cors(arrival.headers) if self._server.cors_origins else ()
        sink = ClientSink(
            protocol,
            is_head=arrival.method == "HEAD",
            has_chunks=arrival.is_http11,
            keep_alive=not incoming.message.should_close and arrival.fault is None and not self._is_last,
            write_seconds=30.0,
            cors=cors,
            is_request_whole=incoming.payload.is_eof,
        )
        previous, protocol.sink = protocol.sink, sink
        if previous is not None and previous.is_paused:
            # A pipelined request: its answer queues up behind one that the client has not taken yet.
            previous.resume()
            sink.pause()
        try:
            await self._answer(arrival, sink, is_preflight=bool(cors) and arrival.method == "OPTIONS")
        finally:
            sink.release()
        is_read = incoming.payload.is_eof()
        return Sent(keep_alive=sink.keep_alive and is_read and not sink.is_closed and not self._is_last)

    @property
    def _is_last(self) -> bool:
        """Whether this request is the last of its connection, because no more are taken."""
        return self._gateway is not None and self._gateway.is_draining

    async def _answer(self, arrival: HttpArrival, sink: ClientSink, *, is_preflight: bool) -> None:
        if is_preflight and header(arrival.headers, b"access-control-request-method") is not None:
            sink.answer(204, _preflight(arrival.headers), b"")
        elif self._gateway is not None and (arrival.path.startswith("/v1/") or arrival.path == "/v1"):
            await self._gateway.serve(arrival, sink)
        elif self._admin is not None and arrival.path.startswith("/admin/"):
            await self._admin.answer(arrival, sink)
        elif arrival.fault is not None:
            _refuse(sink, arrival.fault)
        elif (page := self._pages.get(arrival.path)) is not None and arrival.method in ("GET", "HEAD"):
            status, content_type, body = await page(arrival.headers)
            sink.answer(status, [(b"content-type", content_type), (b"cache-control", b"no-store")], body)
        else:
            _refuse(sink, ClientError("not_found" if page is None else "method_not_allowed"))

    def _client_ip(self, incoming: Incoming) -> str:
        peer = incoming.protocol.peername
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self._trusted or not self._is_trusted(address):
            return address
        for line in reversed(header_values(incoming.message.raw_headers, b"x-forwarded-for")):
            for hop in reversed(line.decode("latin-1").split(",")):
                if not self._is_trusted(hop.strip()):
                    return hop.strip()[:64]
        return address

    def _is_trusted(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._trusted)

    def _cors(self, headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
        origin = header(headers, b"origin")
        if origin is None or origin.decode("latin-1") not in self._server.cors_origins:
            return ((b"vary", b"Origin"),)
        return ((b"access-control-allow-origin", origin), (b"access-control-expose-headers", _EXPOSED), (b"vary", b"Origin"))


def _preflight(headers: Headers) -> list[tuple[bytes, bytes]]:
    asked = header(headers, b"access-control-request-headers") or b"authorization, content-type"
    return [
        (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
        (b"access-control-allow-headers", asked),
        (b"access-control-max-age", b"600"),
    ]


def _refuse(sink: ClientSink, error: ClientError) -> None:
    answer = error_answer(error)
    sink.answer(answer.status, [_JSON, (b"x-relay-error", answer.code.encode("ascii"))], answer.body())
