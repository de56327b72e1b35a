"""One try at one target: what the upstream says goes in, what the client sees comes out.

`Attempting` is told what the upstream does (`head`, `relay.feed`, `end`) synchronously from the connection's
`data_received`, and it writes to the client synchronously; the coroutine that runs it only sleeps on `done`.

Deadlines are one timer per attempt that looks at the marks when it fires and re-arms itself for what is left, so that
a chunk touches no timer.
"""

import asyncio
import codecs
from collections.abc import Callable
from math import inf
from time import monotonic

from relay.config.tree import Timeouts
from relay.errors import (
    Draining,
    Malformation,
    MalformedResponse,
    Phase,
    RelayError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    error_answer,
)
from relay.exchange import Attempt, Exchange, Operation, Outcome, ResponseHead, State, UpstreamRequest
from relay.forward.answering import as_told, break_event, choose_relay, is_replaced, is_unusable, outcome_with, read_refusal, refusal_event
from relay.forward.ports import Call, Sink, Upload, Upstreams
from relay.forward.tunnel import FromClient
from relay.forward.waiting import drain, send
from relay.policy.bounds import in_time, next_bound, time_left
from relay.policy.routing import Choice
from relay.stream import DONE_GRACE_SECONDS, HOLD_SECONDS, BodyEnd, BodyRelay, EventRelay, HoldBudget, OpaqueRelay, broken


class Attempting:
    """One attempt."""

    __slots__ = (
        "_budget",
        "_call",
        "_deadline_at",
        "_exchange",
        "_grace",
        "_hold",
        "_loop",
        "_may_fall_back",
        "_on_answer",
        "_refusal",
        "_sink",
        "_timeouts",
        "_watchdog",
        "attempt",
        "choice",
        "claim",
        "done",
        "given_up",
        "is_beaten",
        "is_open",
        "is_uploading",
        "relay",
        "switch",
        "was_reused",
        "write",
    )

    def __init__(
        self,
        exchange: Exchange,
        choice: Choice,
        sink: Sink,
        timeouts: Timeouts,
        budget: HoldBudget,
        *,
        may_fall_back: Callable[[UpstreamRefused], bool],
        deadline_at: float = inf,
        on_answer: Callable[[float], None] | None = None,
    ) -> None:
        """Try `choice`; `deadline_at` is when the caller gives up.

        `may_fall_back` is asked about a refusal that would be passed on, `on_answer` is told when a good answer begins.
        """
        self._loop = asyncio.get_running_loop()
        self._exchange = exchange
        self.choice = choice
        self._sink = sink
        self._timeouts = timeouts
        self._budget = budget
        self._may_fall_back = may_fall_back
        self._deadline_at = deadline_at
        self._on_answer = on_answer
        self._call: Call | None = None
        self._refusal: UpstreamRefused | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._hold: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self.attempt = Attempt(target=choice.target, started_at=monotonic())
        self.done: asyncio.Future[RelayError | None] = self._loop.create_future()
        """None: the answer reached the client and is over; an error: nothing reached the client."""
        self.claim: Callable[[Attempting], None] | None = None
        """Called just before this attempt's answer begins to reach the client."""
        self.given_up: tuple[ResponseHead, bytes] | None = None
        """The whole refusal that was not passed on because another attempt was to follow."""
        self.is_open = False
        """Whether the client's answer is this attempt's."""
        self.is_beaten = False
        """Whether it was given up because another attempt of the exchange has answered."""
        self.was_reused = False
        """Whether the connection had served another request before."""
        self.is_uploading = False
        self.relay: BodyRelay | None = None
        is_tunnel = exchange.request.operation is Operation.REALTIME
        self.switch: Callable[[ResponseHead, bytes], None] | None = self._switch if is_tunnel else None
        self.write = sink.write

    # What the attempt loop does with it

    async def run(self, upstreams: Upstreams, request: UpstreamRequest, upload: Upload | None, *, is_fresh: bool) -> RelayError | None:
        """Make the attempt; return None when the answer is over, else why nothing reached the client."""
        self.attempt.span = request.span
        phase, left = time_left(self._exchange, self._timeouts, monotonic(), self._deadline_at)
        if left <= 0:
            return UpstreamTimeout(phase)
        try:
            try:
                self._call = await upstreams.begin(request, self, min(self._timeouts.connect, left), is_fresh=is_fresh)
            except UpstreamError as error:
                return self.done.result() if self.done.done() else in_time(error, phase, is_cut_short=left < self._timeouts.connect)
            self.attempt.sent_at = monotonic()
            self.was_reused = self._call.is_reused
            self._watch()
            if upload is not None:
                await self._upload(upload, self._call)
            try:
                return await self.done
            except asyncio.CancelledError:
                await self._read_alone()
                raise
        finally:
            self._close()

    async def _upload(self, upload: Upload, call: Call) -> None:
        self.is_uploading = True
        try:
            await send(upload, call, self.done)
        finally:
            self.is_uploading = False
            self.attempt.sent_at = monotonic()

    async def _read_alone(self) -> None:
        """Read on when the client has left, as far as the route wants it: its end tells what an answer used."""
        exchange, meter = self._exchange, self.attempt.meter
        bounds = None if exchange.route is None or not isinstance(self.relay, EventRelay) else exchange.route.on_disconnect
        if bounds is None or not (self.is_open and self._sink.is_closed) or meter.terminal_at is not None or self.write is _drop:
            return
        exchange.is_drained = True
        # The one before was cancelled with its waiter.
        self.done = self._loop.create_future()
        self._sink.follow(None)
        if self._call is not None:
            self._call.resume()
        await drain(self.done, meter, bounds)

    @property
    def is_alone(self) -> bool:
        """Tell whether the client has left and the answer is read to its end without it."""
        return self._exchange.is_drained

    def cut(self, outcome: Outcome, code: str) -> None:
        """End the attempt for a reason of the relay's own, such as shutdown."""
        if self.is_open and self.relay is not None:
            self.relay.cut(outcome, code)
        else:
            self._settle(Draining())

    def beat(self) -> None:
        """Give up at once, connection and all: another attempt of the exchange has answered."""
        self.is_beaten = True
        self._settle(None)

    @property
    def is_between_events(self) -> bool:
        """Tell whether a comment may be put into the answer here."""
        return isinstance(self.relay, EventRelay) and self.relay.at_boundary

    def _close(self) -> None:
        for timer in (self._watchdog, self._hold, self._grace):
            if timer is not None:
                timer.cancel()
        if self.is_open:
            self._sink.follow(None)
        if self._call is not None:
            self._call.close(self)
        if self.relay is not None:
            self.relay.dispose()
            self.relay = None
        if self.done.done() and not self.done.cancelled():
            # Seen, even when the client's leaving came before we could look: nobody else will ask.
            self.done.exception()

    # What the upstream's connection says

    def head(self, head: ResponseHead) -> None:
        """Take the response head and choose how its body is relayed."""
        self.attempt.head = head
        if not 200 <= head.status <= 599:
            self.failed(MalformedResponse(Malformation.PROTOCOL))
            return
        if head.status >= 300 and head.status != 304:
            self._refusal = read_refusal(head, b"")
            if head.status < 400:
                self.failed(self._refusal)
                return
        elif is_unusable(head, self._exchange.request):
            self.failed(MalformedResponse(Malformation.BAD_RESPONSE))
            return
        self.relay = choose_relay(self, self._exchange, self.attempt, self._budget, head)
        if isinstance(self.relay, OpaqueRelay):
            self.relay.begin()

    def end(self, how: BodyEnd, *, anything: bool) -> None:
        """Take the end of the upstream's bytes."""
        self.attempt.body_ended_at = monotonic()
        if self.relay is not None:
            self.relay.finish(how)
        elif not self.done.done():
            self.failed(broken(how if how is not BodyEnd.OPEN else BodyEnd.CUT, anything=anything) or MalformedResponse(Malformation.EMPTY))

    def crash(self, error: Exception) -> None:
        """Give up for a bug of ours: whoever runs the attempt gets it raised."""
        if self.done.done():
            raise error
        self.done.set_exception(error)

    def _switch(self, head: ResponseHead, rest: bytes) -> None:
        """Join client and upstream: both have left HTTP."""
        exchange = self._exchange
        self.attempt.head = head
        self.relay = OpaqueRelay(self, self.attempt.meter, is_open_proof=True)
        if self._on_answer is not None:
            self._on_answer(monotonic())
        exchange.move(State.COMMITTED)
        exchange.status = head.status
        self._begin()
        self._sink.switch(exchange, head, rest, FromClient(self._sink, lambda: self._call).take)
        self.write = self._sink.write

    # What the relay asks for

    def hold(self) -> None:
        """Release the relay when the hold has lasted long enough."""
        self._hold = self._loop.call_later(HOLD_SECONDS, self._guard, self._release)

    def _release(self) -> None:
        if self.relay is not None:
            self.relay.release()

    def open(self, first: bytes) -> bool:
        """Commit: the client's response begins. False when the attempt was given up before."""
        if self.done.done():
            return False
        exchange = self._exchange
        head = self.attempt.head
        assert head is not None
        if self._refusal is not None:
            self._refusal = read_refusal(head, first)
            is_ours = is_replaced(self._refusal, self.choice)
            if self._may_fall_back(self._refusal) or is_ours:
                if not is_ours and self.attempt.body_ended_at is not None:
                    self.given_up = (head, first)
                self.failed(self._refusal)
                return False
        if exchange.is_begun_early:
            return self._continue(first)
        if self.claim is not None:
            self.claim(self)
        if self._refusal is None and self._on_answer is not None:
            self._on_answer(monotonic())
        self._sink.open(exchange, head, first)
        exchange.move(State.COMMITTED)
        exchange.status = head.status
        self._begin()
        return True

    def _begin(self) -> None:
        self.is_open = True
        self.write = self._sink.write
        self._sink.follow(self._call)

    def _continue(self, first: bytes) -> bool:
        """Go on with an answer that heartbeats have begun: only events can stand in it."""
        if self._refusal is None and not isinstance(self.relay, EventRelay):
            self.failed(MalformedResponse(Malformation.BAD_RESPONSE))
            return False
        if self.claim is not None:
            self.claim(self)
        self._exchange.is_begun_early = False
        if self._refusal is not None:
            self._refuse_in_stream(self._refusal, first)
            return False
        if self._on_answer is not None:
            self._on_answer(monotonic())
        self._begin()
        # A byte order mark is one only at the head of a stream, and that is past.
        first = first.removeprefix(codecs.BOM_UTF8)
        if first:
            self.write(first)
        return True

    def _refuse_in_stream(self, refusal: UpstreamRefused, body: bytes) -> None:
        """Pass a refusal on as an error event."""
        exchange = self._exchange
        exchange.outcome = outcome_with(Outcome.COMPLETE, refusal, self.choice)
        exchange.error_code = error_answer(refusal).code
        self._sink.cut(refusal_event(exchange.request.operation, refusal, body))
        self._settle(None)

    def content_written(self) -> None:
        """Take the client's time to first token."""
        self._exchange.first_content_written_at = monotonic()

    def terminal(self) -> None:
        """Wait only a little for the upstream to end what it has finished."""
        self._grace = self._loop.call_later(DONE_GRACE_SECONDS, self._guard, self._finish_after_terminal)

    def _finish_after_terminal(self) -> None:
        if self.relay is not None:
            self.relay.finish(BodyEnd.OPEN)

    def failed(self, error: UpstreamError) -> None:
        """Give the attempt up: nothing of it reached the client."""
        self._settle(as_told(error, self._refusal, self.choice))

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None:
        """End the client's answer and say how it went."""
        exchange = self._exchange
        if self.is_alone:
            self._settle(None)
            return
        exchange.outcome = outcome_with(outcome, self._refusal, self.choice)
        exchange.error_code = code
        # The connection may serve another request by now: the client's back-pressure must not reach it.
        self._sink.follow(None)
        if is_clean:
            self._sink.finish()
        else:
            self._sink.cut(break_event(exchange.request.operation, code) if can_append and code is not None else b"")
        self._settle(None)

    def _settle(self, result: RelayError | None) -> None:
        """Let the attempt loop go on, and hear nothing more: further bytes may be there before it wakes."""
        if not self.done.done():
            self.done.set_result(result)
        self.write = _drop
        if self._call is not None:
            self._call.close(self)

    # Time

    def _guard(self, step: Callable[[], None]) -> None:
        """Run a timer's step; a bug in it must not leave the exchange waiting for ever."""
        try:
            step()
        except Exception as error:
            self.crash(error)

    def _watch(self) -> None:
        now = monotonic()
        phase, due = self._bound(now)
        if now < due:
            # Looked at this often, no stall is found late, whichever bound holds by then.
            wait = min(due - now, self._timeouts.between_tokens)
            self._watchdog = self._loop.call_later(wait, self._guard, self._watch)
            return
        if self.is_open and self.relay is not None:
            self.relay.cut(Outcome.UPSTREAM_STALLED, phase.value)
        else:
            had_its_time = now - self.attempt.started_at >= self._timeouts.total / 2
            self.failed(UpstreamTimeout(phase, had_its_time=had_its_time))

    def _bound(self, now: float) -> tuple[Phase, float]:
        full_since = self._call.full_since if self._call is not None else None
        return next_bound(
            self._exchange,
            self.attempt,
            self._timeouts,
            now,
            is_begun=self.is_open,
            deadline_at=self._deadline_at,
            is_holding=isinstance(self.relay, EventRelay),
            is_open=self._sink.is_paused,
            upload_since=(now if full_since is None else full_since) if self.is_uploading else None,
        )


def _drop(data: bytes) -> None:
    """Take bytes that came too late."""
