"""The reception of a request: who calls, what is asked for, and what of the body has to be known before it goes anywhere."""

from collections.abc import Callable
from time import monotonic, time
from typing import Protocol

import msgspec

from relay.config.tree import Config, Key
from relay.dialects.openai import check_path, operation_of
from relay.errors import ClientError
from relay.exchange import JSON_OPERATIONS, ClientRequest, Exchange, Headers, JsonBody, Operation, header
from relay.forward.ports import Upload
from relay.policy.keys import Guesses, find_key
from relay.wire.body import parse_body, peek_model
from relay.wire.query import query_value
from relay.wire.tracing import read_trace

PEEK_BYTES = 2**20
"""Largest JSON body of an opaque path that is read before it is sent, to find its model."""


class Arrival(Protocol):
    """A request whose head has come; its body may still be on the way."""

    method: str
    path: str
    query: str | None
    headers: Headers
    client_ip: str
    is_http11: bool
    content_length: int | None
    """None when there is no body, or only its end will tell."""
    has_body: bool
    is_websocket: bool
    fault: ClientError | None
    """Why the request is refused whatever it asks for."""

    async def read(self, limit: int, seconds: float) -> bytes:
        """Read the whole body within `seconds`. Raises ClientError: request_too_large, request_timeout, amplified_body."""

    async def read_part(self, limit: int, seconds: float) -> tuple[bytes, bool]:
        """Read at most about `limit` bytes within `seconds`; also tell whether that was all. Raises ClientError."""

    def upload(self, first: bytes) -> Upload:
        """Return what streams `first` and the rest of the body."""


class Reception:
    """Turns arrivals into requests."""

    __slots__ = ("_guesses", "_make_id", "_sample")

    def __init__(self, make_id: Callable[[], str], *, sample: float = 0.0) -> None:
        """Give requests ids of `make_id`; of the traces that begin here a share of `sample` is recorded."""
        self._sample = sample
        self._guesses = Guesses()
        self._make_id = make_id

    def look(self, arrival: Arrival) -> Operation:
        """Tell what is asked for. Raises ClientError for what is refused whoever asks."""
        if arrival.fault is not None:
            raise arrival.fault
        check_path(arrival.path)
        operation = operation_of(arrival.method, arrival.path)
        return Operation.OTHER if operation is Operation.REALTIME and not arrival.is_websocket else operation

    async def receive(
        self, arrival: Arrival, config: Config, operation: Operation, key: Key | None, seconds: float
    ) -> tuple[ClientRequest, Upload | None]:
        """Read what has to be known before routing, within `seconds`. Raises ClientError."""
        if operation is Operation.MODELS:
            return self._request(arrival, operation, key), None
        if operation not in JSON_OPERATIONS:
            return await self._opaque(arrival, operation, key, seconds)
        if header(arrival.headers, b"content-encoding") not in (None, b"identity"):
            raise ClientError("unsupported_encoding")
        raw = await arrival.read(config.server.max_body, seconds)
        received_at = monotonic()
        body = parse_body(raw)
        return self._request(arrival, operation, key, body=body, model=body.model, received_at=received_at), None

    async def _opaque(self, arrival: Arrival, operation: Operation, key: Key | None, seconds: float) -> tuple[ClientRequest, Upload | None]:
        """Look for the model of a body that is not ours to read, without holding more than a peek of it."""
        # A key that may not use everything must not choose its route by a name that the body then contradicts.
        is_free = key is None or key.routes is None or not arrival.has_body
        model = query_value(arrival.query, "model") if is_free else None
        first, is_whole = b"", not arrival.has_body
        length = arrival.content_length
        if arrival.has_body and _is_plain_json(arrival.headers) and (length is None or length <= PEEK_BYTES):
            first, is_whole = await arrival.read_part(PEEK_BYTES, seconds)
            if is_whole:
                model = peek_model(first) or model
        whole = first if is_whole and arrival.has_body else None
        request = self._request(arrival, operation, key, opaque=whole, model=model)
        return request, None if is_whole else arrival.upload(first)

    def _request(
        self,
        arrival: Arrival,
        operation: Operation,
        key: Key | None,
        *,
        body: JsonBody | None = None,
        opaque: bytes | None = None,
        model: str | None = None,
        received_at: float | None = None,
    ) -> ClientRequest:
        request_id = self._make_id()
        return ClientRequest(
            id=request_id,
            method=arrival.method,
            path=arrival.path,
            query=arrival.query,
            headers=arrival.headers,
            operation=operation,
            received_at=monotonic() if received_at is None else received_at,
            client_ip=arrival.client_ip,
            body=body,
            opaque_body=opaque,
            model=model,
            key=key,
            is_stream=body is not None and body.stream,
            trace=read_trace(arrival.headers, request_id, sample=self._sample),
        )

    def unread(self, arrival: Arrival, key: Key | None, begun_at: float) -> Exchange:
        """Return the record of a request that was refused, or whose client left, before it was read."""
        request = self._request(arrival, operation_of(arrival.method, arrival.path), key)
        return Exchange(request=msgspec.structs.replace(request, received_at=begun_at))

    def authenticate(self, config: Config, arrival: Arrival) -> Key | None:
        """Find the caller's key. Raises ClientError: too_many_failures besides those of `find_key`."""
        try:
            return find_key(config.keys, arrival.headers, time(), is_required=config.asks_for_key)
        except ClientError as error:
            wait = self._guesses.failed(arrival.client_ip, monotonic()) if error.code == "invalid_api_key" else 0.0
            if wait and not _is_loopback(arrival.client_ip):
                raise ClientError("too_many_failures", headers={"retry-after": str(int(wait) + 1)}) from None
            raise


def _is_plain_json(headers: Headers) -> bool:
    media_type = (header(headers, b"content-type") or b"").split(b";", 1)[0].strip().lower()
    return media_type == b"application/json" and header(headers, b"content-encoding") in (None, b"identity")


def _is_loopback(address: str) -> bool:
    return address in ("127.0.0.1", "::1")
