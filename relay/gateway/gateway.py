"""One request from its reception to its one end: received, planned, admitted, forwarded, summed up.

Every path through `Gateway.serve` ends with exactly one outcome and one observation, made in one `finally` that
waits for nothing.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Protocol
from urllib.parse import unquote

from relay.config.tree import Key, Secret, Upstream
from relay.errors import LIMIT_CODES, ClientError, Draining, ErrorAnswer, InternalError, Overloaded, RelayError, error_answer
from relay.exchange import Exchange, Lateness, Operation, Outcome, Span, State, Summary, UpstreamRequest, summarize
from relay.forward import Forwarder
from relay.forward.ports import Limiter, Sink, Upload
from relay.gateway.admission import Admission
from relay.gateway.planning import Planner, Siblings, Snapshot
from relay.gateway.reception import Arrival, Reception
from relay.policy.routing import Choice
from relay.policy.targets import Targets
from relay.wire.openai import error_event
from relay.wire.tracing import span_id


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

    pauses: list[Span]
    """When it took nothing, the short times left out."""

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer of our own."""

    def account(self) -> None:
        """Bring the two numbers above up to date with a pause that still lasts."""


class Observer(Protocol):
    """Who is told what happens to exchanges: metrics and log."""

    def began(self) -> None:
        """An exchange has begun."""

    def routed(self, exchange: Exchange) -> None:
        """Its route is known."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """It is over: called exactly once."""

    def violated(self, identity: str) -> None:
        """An accounting identity of this name does not hold."""

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """A bug of ours ended it."""


class Gateway:
    """Serves the requests under /v1."""

    __slots__ = (
        "_admission",
        "_chance",
        "_credential",
        "_forwarder",
        "_lateness",
        "_observer",
        "_planner",
        "_reception",
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
        limiter: Limiter,
        credential: Callable[[Upstream, Secret | None], bytes | None],
        make_id: Callable[[], str],
        chance: Callable[[], float] = lambda: 0.5,
        lateness: Lateness = lambda start, end: 0.0,
        sample: float = 0.0,
        siblings: Siblings | None = None,
    ) -> None:
        """Order targets by what is known of `targets`; `chance` gives numbers in [0, 1), `lateness` tells how late the loop was,
        `sample` which share of traces that begin here is recorded.

        `siblings` are the other processes of this relay, if there are any.
        """
        self.snapshot = snapshot
        self.is_draining = False
        """Whether new work is refused."""
        self._forwarder = forwarder
        self._admission = Admission(limiter)
        self._observer = observer
        self._chance = chance
        self._credential = credential
        self._lateness = lateness
        self._reception = Reception(make_id, sample=sample)
        self._planner = Planner(targets, chance, siblings)

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
            operation = self._reception.look(arrival)
            key = self._reception.authenticate(snapshot.config, arrival)
            request, upload = await self._reception.receive(arrival, snapshot.config, operation, key, snapshot.total_seconds)
            exchange = Exchange(request=request)
            await self._serve(exchange, snapshot, arrival, client, upload)
        except RelayError as error:
            exchange = exchange or self._reception.unread(arrival, key, begun_at)
            self._refuse(exchange, client, error)
        except asyncio.CancelledError:
            exchange = exchange or self._reception.unread(arrival, key, begun_at)
            if exchange.outcome is None:
                exchange.outcome = _outcome_of_leaving(client)
            raise
        except Exception as error:  # the last line: a bug ends one exchange, never the process
            exchange = exchange or self._reception.unread(arrival, key, begun_at)
            self._observer.crashed(exchange, error)
            exchange.outcome = None
            self._refuse(exchange, client, InternalError())
        finally:
            self._finish(exchange or self._reception.unread(arrival, key, begun_at), client)

    async def _serve(self, exchange: Exchange, snapshot: Snapshot, arrival: Arrival, client: Client, upload: Upload | None) -> None:
        request = exchange.request
        if request.operation is Operation.MODELS:
            await self._list_models(exchange, snapshot, client)
            return
        plan = await self._planner.plan(snapshot, request)
        exchange.route = plan.route
        self._observer.routed(exchange)
        client.write_seconds = plan.route.timeouts.write

        def encode(choice: Choice, secret: Secret | None) -> UpstreamRequest:
            upstream = choice.target.upstream
            return snapshot.providers[upstream.name].encode(
                request,
                choice.model,
                None if upstream.is_passthrough else self._credential(upstream, secret),
                upload_length=arrival.content_length,
                is_upload=upload is not None,
                span=span_id(self._chance()),
                asks_usage=exchange.adds_usage,
                answer_bound=exchange.answer_bound,
            )

        prices = snapshot.config.prices
        ticket = await self._admission.admit(exchange, plan, prices)
        exchange.admitted_at = monotonic()
        try:
            await self._forwarder.run(exchange, plan, client, encode, upload)
        finally:
            for identity in self._admission.settle(exchange, ticket, prices):
                self._observer.violated(identity)

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
        if exchange.is_begun_early:
            # Heartbeats have begun the answer: what would have been its status goes into it.
            if isinstance(error, Draining):
                exchange.outcome = Outcome.DRAINED
            client.cut(error_event(exchange.request.operation, answer.body()))
            return
        if exchange.state is State.COMMITTED:
            # Nothing may follow the head of an answer but that answer: cut.
            client.cut(b"")
            return
        exchange.status = answer.status
        lines = [(b"content-type", b"application/json"), (b"x-relay-error", answer.code.encode("ascii")), *_own_headers(exchange)]
        told = {**(answer.headers or {}), **exchange.advice}
        lines += [(name.encode("ascii"), value.encode("ascii")) for name, value in told.items()]
        client.answer(answer.status, lines, answer.body(exchange.attempts_told()))

    def _finish(self, exchange: Exchange, client: Client) -> None:
        client.account()
        exchange.bytes_out = client.bytes_out
        exchange.backpressure_seconds = client.backpressure_seconds
        exchange.pauses = client.pauses
        if exchange.state is not State.ENDED:
            exchange.move(State.ENDED)
        self._planner.remember(exchange)
        self._observer.ended(exchange, summarize(exchange, monotonic(), self._lateness))


def _own_headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    request_id = exchange.request.id.encode("ascii")
    return [(b"x-relay-request-id", request_id), (b"x-request-id", request_id), *exchange.limit_headers]


def _outcome_of(error: RelayError, answer: ErrorAnswer) -> Outcome:
    match error:
        case ClientError(code="request_timeout"):
            return Outcome.CLIENT_STALLED
        case ClientError():
            if error.code in LIMIT_CODES:
                return Outcome.RATE_LIMITED
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
