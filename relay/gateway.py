"""The reception of one request: who calls, what is asked for, where it may go; then `forward`, and one summary.

Every path through `Gateway.serve` ends with exactly one outcome and one observation, made in one `finally` that
waits for nothing.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic, time
from typing import Protocol
from urllib.parse import unquote

from relay.catalog import Catalog
from relay.config.tree import Config, Key, Upstream
from relay.dialects.openai import check_path, makes_object, object_id, operation_of
from relay.errors import ClientError, Draining, ErrorAnswer, InternalError, Overloaded, RelayError, error_answer
from relay.exchange import (
    JSON_OPERATIONS,
    ClientRequest,
    Exchange,
    Headers,
    JsonBody,
    Operation,
    Outcome,
    State,
    Summary,
    UpstreamRequest,
    header,
    summarize,
)
from relay.forward import Forwarder
from relay.policy.keys import Guesses, find_key
from relay.policy.owners import Owners
from relay.policy.routing import Choice, RoutePlan, Router
from relay.policy.targets import Targets
from relay.ports import Sink, Upload
from relay.providers.openai import OpenAIProvider
from relay.wire.body import parse_body, peek_model
from relay.wire.query import query_value

PEEK_BYTES = 2**20
"""Largest JSON body of an opaque path that is read before it is sent, to find its model."""


class Client(Sink, Protocol):
    """A sink that can also answer by itself."""

    bytes_out: int
    backpressure_seconds: float
    has_stalled: bool
    """Whether the client was cut because it had stopped reading."""
    is_closed: bool
    """Whether the client's connection is gone."""
    write_seconds: float
    """How long a client may take nothing before it is cut."""

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer of our own."""


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


class Observer(Protocol):
    """Who is told what happens to exchanges: metrics and log."""

    def began(self) -> None:
        """An exchange has begun."""

    def routed(self, exchange: Exchange) -> None:
        """Its route is known."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """It is over: called exactly once."""

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """A bug of ours ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one configuration means: swapped whole by a reload, kept by the exchanges that began with it."""

    config: Config
    router: Router
    providers: dict[str, OpenAIProvider]
    catalog: Catalog

    total_seconds: float
    """The longest that any route lets a request take: what a body may take before its route is known."""


class Gateway:
    """Serves the requests under /v1."""

    __slots__ = (
        "_chance",
        "_credential",
        "_forwarder",
        "_guesses",
        "_make_id",
        "_observer",
        "_owners",
        "_targets",
        "is_draining",
        "snapshot",
    )

    def __init__(
        self,
        snapshot: Snapshot,
        forwarder: Forwarder,
        observer: Observer,
        *,
        targets: Targets,
        credential: Callable[[Upstream], bytes | None],
        make_id: Callable[[], str],
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        """Order targets by what is known of `targets`; `chance` gives numbers in [0, 1)."""
        self.snapshot = snapshot
        self.is_draining = False
        """Whether new work is refused."""
        self._forwarder = forwarder
        self._observer = observer
        self._targets = targets
        self._chance = chance
        self._credential = credential
        self._make_id = make_id
        self._guesses = Guesses()
        self._owners = Owners()

    async def serve(self, arrival: Arrival, client: Client) -> None:
        """Answer one request. Raises CancelledError when the client leaves, nothing else."""
        self._observer.began()
        begun_at = monotonic()
        key: Key | None = None
        exchange: Exchange | None = None
        try:
            if self.is_draining:
                raise Draining
            snapshot = self.snapshot
            operation = self._look(arrival)
            key = self._authenticate(snapshot, arrival)
            request, upload = await self._receive(arrival, snapshot, operation, key)
            exchange = Exchange(request=request)
            await self._serve(exchange, snapshot, arrival, client, upload)
        except RelayError as error:
            exchange = exchange or self._unread(arrival, key, begun_at)
            self._refuse(exchange, client, error)
        except asyncio.CancelledError:
            exchange = exchange or self._unread(arrival, key, begun_at)
            if exchange.outcome is None:
                exchange.outcome = _outcome_of_leaving(client)
            raise
        except Exception as error:  # the last line: a bug ends one exchange, never the process
            exchange = exchange or self._unread(arrival, key, begun_at)
            self._observer.crashed(exchange, error)
            exchange.outcome = None
            self._refuse(exchange, client, InternalError())
        finally:
            self._finish(exchange or self._unread(arrival, key, begun_at), client)

    async def _serve(self, exchange: Exchange, snapshot: Snapshot, arrival: Arrival, client: Client, upload: Upload | None) -> None:
        request = exchange.request
        if request.operation is Operation.MODELS:
            await self._list_models(exchange, snapshot, client)
            return
        plan = self._plan(snapshot, request)
        exchange.route = plan.route
        self._observer.routed(exchange)
        client.write_seconds = plan.route.timeouts.write

        def encode(choice: Choice) -> UpstreamRequest:
            upstream = choice.target.upstream
            return snapshot.providers[upstream.name].encode(
                request,
                choice.model,
                None if upstream.is_passthrough else self._credential(upstream),
                upload_length=arrival.content_length,
                is_upload=upload is not None,
            )

        await self._forwarder.run(exchange, plan, client, encode, upload)

    # The request

    def _look(self, arrival: Arrival) -> Operation:
        """Tell what is asked for. Raises ClientError for what is refused whoever asks."""
        if arrival.fault is not None:
            raise arrival.fault
        check_path(arrival.path)
        operation = operation_of(arrival.method, arrival.path)
        return Operation.OTHER if operation is Operation.REALTIME and not arrival.is_websocket else operation

    async def _receive(
        self, arrival: Arrival, snapshot: Snapshot, operation: Operation, key: Key | None
    ) -> tuple[ClientRequest, Upload | None]:
        """Read what has to be known before routing. Raises ClientError."""
        if operation is Operation.MODELS:
            return self._request(arrival, operation, key), None
        if operation not in JSON_OPERATIONS:
            return await self._opaque(arrival, operation, key, snapshot.total_seconds)
        if header(arrival.headers, b"content-encoding") not in (None, b"identity"):
            raise ClientError("unsupported_encoding")
        body = parse_body(await arrival.read(snapshot.config.server.max_body, snapshot.total_seconds))
        return self._request(arrival, operation, key, body=body, model=body.model), None

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
    ) -> ClientRequest:
        return ClientRequest(
            id=self._make_id(),
            method=arrival.method,
            path=arrival.path,
            query=arrival.query,
            headers=arrival.headers,
            operation=operation,
            received_at=monotonic(),
            client_ip=arrival.client_ip,
            body=body,
            opaque_body=opaque,
            model=model,
            key=key,
            is_stream=body is not None and body.stream,
        )

    def _unread(self, arrival: Arrival, key: Key | None, begun_at: float) -> Exchange:
        """Return the record of a request that was refused, or whose client left, before it was read."""
        request = self._request(arrival, operation_of(arrival.method, arrival.path), key)
        return Exchange(request=replace(request, received_at=begun_at))

    def _authenticate(self, snapshot: Snapshot, arrival: Arrival) -> Key | None:
        try:
            return find_key(snapshot.config.keys, arrival.headers, time())
        except ClientError as error:
            wait = self._guesses.failed(arrival.client_ip, monotonic()) if error.code == "invalid_api_key" else 0.0
            if wait and not _is_loopback(arrival.client_ip):
                raise ClientError("too_many_failures", headers={"retry-after": str(int(wait) + 1)}) from None
            raise

    # Where it goes

    def _plan(self, snapshot: Snapshot, request: ClientRequest) -> RoutePlan:
        object_name = object_id(request.path)
        if object_name is None and request.body is not None:
            object_name = request.body.previous_response_id
        if object_name is None:
            return self._free_plan(snapshot, request)
        return self._pinned(snapshot, request, object_name)

    def _free_plan(self, snapshot: Snapshot, request: ClientRequest) -> RoutePlan:
        """Plan for a request that any target of its route may answer."""
        return snapshot.router.plan(
            request.model,
            request.key,
            takes_default=request.body is not None,
            order=lambda route: self._targets.order(route, request, monotonic(), self._chance()),
        )

    def _pinned(self, snapshot: Snapshot, request: ClientRequest, object_name: str) -> RoutePlan:
        """Plan for an object that lives at one upstream; to another key it does not exist."""
        owner = self._owners.find(object_name)
        if owner is None:
            if len(snapshot.config.upstreams) > 1:
                raise ClientError("unknown_id")
            return self._free_plan(snapshot, request)
        if owner.key != (None if request.key is None else request.key.name):
            raise ClientError("unknown_id")
        if request.body is not None:
            return snapshot.router.plan(request.model, request.key, pinned=owner.upstream)
        return snapshot.router.pinned(owner.route, owner.upstream, request.key)

    async def _list_models(self, exchange: Exchange, snapshot: Snapshot, client: Client) -> None:
        request = exchange.request
        # A name with a slash comes as `%2F` from the SDKs, and plain from people.
        wanted = unquote(request.path[len("/v1/models/") :]) if request.path != "/v1/models" else None
        body = await snapshot.catalog.answer(request.key, wanted)
        exchange.status = 200
        exchange.outcome = Outcome.COMPLETE
        client.answer(200, [(b"content-type", b"application/json"), *_own_headers(exchange)], body)

    # The end

    def _refuse(self, exchange: Exchange, client: Client, error: RelayError) -> None:
        answer = error_answer(error)
        exchange.error_code = answer.code
        if exchange.outcome is None:
            exchange.outcome = _outcome_of(error, answer)
        if exchange.state is State.COMMITTED:
            # Nothing may follow the head of an answer but that answer: cut.
            client.cut(b"")
            return
        exchange.status = answer.status
        lines = [(b"content-type", b"application/json"), (b"x-relay-error", answer.code.encode("ascii")), *_own_headers(exchange)]
        told = {**(answer.headers or {}), **exchange.advice}
        lines += [(name.encode("ascii"), value.encode("ascii")) for name, value in told.items()]
        client.answer(answer.status, lines, answer.body())

    def _finish(self, exchange: Exchange, client: Client) -> None:
        exchange.bytes_out = client.bytes_out
        exchange.backpressure_seconds = client.backpressure_seconds
        if exchange.state is not State.ENDED:
            exchange.move(State.ENDED)
        self._remember(exchange)
        self._observer.ended(exchange, summarize(exchange, monotonic()))

    def _remember(self, exchange: Exchange) -> None:
        """Remember who made the object that this answer told of."""
        if not exchange.attempts or exchange.route is None:
            return
        request = exchange.request
        made = exchange.attempts[-1].meter.response_id
        is_stored = request.operation is Operation.RESPONSES or (request.body is not None and request.body.store)
        if made is not None and (is_stored or (request.method == "POST" and makes_object(request.path))):
            upstream = exchange.attempts[-1].target.upstream.name
            self._owners.record(made, upstream=upstream, route=exchange.route.name, key=request.key)


def _own_headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    request_id = exchange.request.id.encode("ascii")
    return [(b"x-relay-request-id", request_id), (b"x-request-id", request_id)]


def _outcome_of(error: RelayError, answer: ErrorAnswer) -> Outcome:
    match error:
        case ClientError(code="request_timeout"):
            return Outcome.CLIENT_STALLED
        case ClientError():
            return Outcome.UNAUTHORIZED if answer.status in (401, 403) or error.code == "too_many_failures" else Outcome.INVALID_REQUEST
        case Draining() | Overloaded():
            return Outcome.OVERLOADED
        case InternalError():
            return Outcome.INTERNAL_ERROR
        case _:
            return Outcome.UPSTREAM_FAILED


def _outcome_of_leaving(client: Client) -> Outcome:
    if client.has_stalled:
        return Outcome.CLIENT_STALLED
    # With the client still there it was the shutdown that cancelled: the request had not come far enough to be cut.
    return Outcome.CLIENT_GONE if client.is_closed else Outcome.OVERLOADED


def _is_plain_json(headers: Headers) -> bool:
    media_type = (header(headers, b"content-type") or b"").split(b";", 1)[0].strip().lower()
    return media_type == b"application/json" and header(headers, b"content-encoding") in (None, b"identity")


def _is_loopback(address: str) -> bool:
    return address in ("127.0.0.1", "::1")
