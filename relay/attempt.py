"""One try at one target: what the upstream says goes in, what the client sees comes out.

`Attempting` is told what the upstream does (`head`, `relay.feed`, `end`) synchronously from the connection's
`data_received`, and it writes to the client synchronously; the coroutine that runs it only sleeps on `done`.

Deadlines are one timer per attempt that looks at the marks when it fires and re-arms itself for what is left, so that
a chunk touches no timer.
"""

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from relay.answering import choose_relay, is_replaced, is_unusable, read_refusal
from relay.config.tree import Timeouts
from relay.errors import (
    ConnectFailed,
    ConnectFault,
    Draining,
    Malformation,
    MalformedResponse,
    Phase,
    RelayError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    encode_error,
    upstream_message,
)
from relay.exchange import Attempt, Exchange, Operation, Outcome, ResponseHead, State, UpstreamRequest
from relay.policy.bounds import next_bound
from relay.policy.routing import Choice
from relay.policy.verdicts import judge
from relay.ports import Call, Sink, Upload, Upstreams
from relay.stream import DONE_GRACE_SECONDS, HOLD_SECONDS, BodyEnd, BodyRelay, EventRelay, HoldBudget, OpaqueRelay, WholeRelay, broken
from relay.wire.openai import error_event


class Attempting:
    """One attempt: what the upstream says goes in, what the client sees comes out."""

    __slots__ = (
        "_budget",
        "_call",
        "_choice",
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
        "done",
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
        self._choice = choice
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
        self.was_reused = False
        """Whether the connection had served another request before."""
        self.is_uploading = False
        self.relay: BodyRelay | None = None
        self.switch: Callable[[ResponseHead, bytes], None] | None = (
            self._switch if exchange.request.operation is Operation.REALTIME else None
        )
        self.write = sink.write

    # What the attempt loop does with it

    async def run(self, upstreams: Upstreams, request: UpstreamRequest, upload: Upload | None, *, is_fresh: bool) -> RelayError | None:
        """Make the attempt; return None when the answer is over, else why nothing reached the client."""
        bound = self._time_left(monotonic())
        if bound[1] <= 0:
            return UpstreamTimeout(bound[0])
        try:
            try:
                self._call = await upstreams.begin(request, self, min(self._timeouts.connect, bound[1]), is_fresh=is_fresh)
            except UpstreamError as error:
                if self.done.done():
                    return self.done.result()
                is_ours = bound[1] < self._timeouts.connect and isinstance(error, ConnectFailed) and error.fault is ConnectFault.TIMEOUT
                return UpstreamTimeout(bound[0]) if is_ours else error
            self.attempt.sent_at = monotonic()
            self.was_reused = self._call.is_reused
            self._sink.follow(self._call)
            self._watch()
            if upload is not None:
                await self._upload(upload, self._call)
            return await self.done
        finally:
            self._close()

    async def _upload(self, upload: Upload, call: Call) -> None:
        """Send the body until it is all there or the answer is over, whichever is first."""
        self.is_uploading = True
        task = self._loop.create_task(upload.run(call))
        waits: set[asyncio.Future[Any]] = {task, self.done}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not self.done.done():
                task.result()
        finally:
            if not task.cancel() and not task.cancelled():
                # The answer, or the client's leaving, came first: what became of the upload does not matter any more.
                task.exception()
            self.is_uploading = False
            self.attempt.sent_at = monotonic()

    def cut(self, outcome: Outcome, code: str) -> None:
        """End the attempt for a reason of the relay's own, such as shutdown."""
        if self._exchange.state is State.COMMITTED and self.relay is not None:
            self.relay.cut(outcome, code)
        else:
            self._settle(Draining())

    def _close(self) -> None:
        for timer in (self._watchdog, self._hold, self._grace):
            if timer is not None:
                timer.cancel()
        self._sink.follow(None)
        if self._call is not None:
            self._call.close(self)
        if isinstance(self.relay, WholeRelay):
            self.relay.abandon()
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
        self.relay = choose_relay(self, self.attempt.meter, self._budget, self._exchange.request, head, self._choice.target.upstream)
        if isinstance(self.relay, OpaqueRelay):
            self.relay.begin()

    def end(self, how: BodyEnd, *, anything: bool) -> None:
        """Take the end of the upstream's bytes."""
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
        self._sink.switch(exchange, head, rest, self._from_client)
        self.write = self._sink.write

    def _from_client(self, data: bytes) -> None:
        call = self._call
        if call is None:
            return
        call.write(data)
        if call.is_full:
            self._sink.set_reading(on=False)
            call.on_writable = self._read_client

    def _read_client(self) -> None:
        self._sink.set_reading(on=True)

    # What the relay asks for

    def hold(self) -> None:
        """Release the relay when the hold has lasted long enough."""
        self._hold = self._loop.call_later(HOLD_SECONDS, self._guard, self._release)

    def _release(self) -> None:
        assert self.relay is not None
        self.relay.release()

    def open(self, first: bytes) -> bool:
        """Commit: the client's response begins. False when the attempt was given up before."""
        if self.done.done():
            return False
        exchange = self._exchange
        head = self.attempt.head
        assert head is not None
        if self._refusal is None:
            if self._on_answer is not None:
                self._on_answer(monotonic())
        else:
            self._refusal = read_refusal(head, first)
            if self._may_fall_back(self._refusal) or is_replaced(self._refusal, self._choice):
                self.failed(self._refusal)
                return False
        self._sink.open(exchange, head, first)
        exchange.move(State.COMMITTED)
        exchange.committed_at = monotonic()
        exchange.status = head.status
        self.write = self._sink.write
        return True

    def content_written(self) -> None:
        """Take the client's time to first token."""
        self._exchange.first_content_written_at = monotonic()

    def terminal(self) -> None:
        """Wait only a little for the upstream to end what it has finished."""
        self._grace = self._loop.call_later(DONE_GRACE_SECONDS, self._guard, self._finish_after_terminal)

    def _finish_after_terminal(self) -> None:
        assert self.relay is not None
        self.relay.finish(BodyEnd.OPEN)

    def failed(self, error: UpstreamError) -> None:
        """Give the attempt up: nothing of it reached the client."""
        if self._refusal is not None and is_replaced(self._refusal, self._choice):
            # Whatever became of its body, the refusal is what there is to know.
            error = self._refusal
        self._settle(error)

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None:
        """End the client's answer and say how it went."""
        exchange = self._exchange
        exchange.outcome = self._outcome(outcome)
        exchange.error_code = code
        # The connection may serve another request by now: the client's back-pressure must not reach it.
        self._sink.follow(None)
        if is_clean:
            self._sink.finish()
        else:
            self._sink.cut(self._error_event(code) if can_append and code is not None else b"")
        self._settle(None)

    def _settle(self, result: RelayError | None) -> None:
        """Let the attempt loop go on, and hear nothing more: further bytes may be there before it wakes."""
        if not self.done.done():
            self.done.set_result(result)
        self.write = _drop
        if self._call is not None:
            self._call.close(self)

    def _outcome(self, outcome: Outcome) -> Outcome:
        if self._refusal is None or outcome is not Outcome.COMPLETE:
            return outcome
        # A refusal that would have fallen back, had the route or the budget had more, is no fault of the caller's.
        return Outcome.UPSTREAM_FAILED if judge(self._refusal, self._choice).fall_back else Outcome.REJECTED

    def _error_event(self, code: str) -> bytes:
        envelope = encode_error(upstream_message(code), type="upstream_error", code=code)
        return error_event(self._exchange.request.operation, envelope)

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
        if self._exchange.state is State.COMMITTED and self.relay is not None:
            self.relay.cut(Outcome.UPSTREAM_STALLED, phase.value)
        else:
            had_its_time = now - self.attempt.started_at >= self._timeouts.total / 2
            self.failed(UpstreamTimeout(phase, had_its_time=had_its_time))

    def _time_left(self, now: float) -> tuple[Phase, float]:
        """Return what bounds the whole exchange first, and the seconds until then."""
        total_at = self._exchange.request.received_at + self._timeouts.total
        return (Phase.CALLER, self._deadline_at - now) if self._deadline_at < total_at else (Phase.TOTAL, total_at - now)

    def _bound(self, now: float) -> tuple[Phase, float]:
        full_since = self._call.full_since if self._call is not None else None
        return next_bound(
            self._exchange,
            self.attempt,
            self._timeouts,
            now,
            deadline_at=self._deadline_at,
            is_holding=isinstance(self.relay, EventRelay),
            is_open=self._sink.is_paused,
            upload_since=(now if full_since is None else full_since) if self.is_uploading else None,
        )


def _drop(data: bytes) -> None:
    """Take bytes that came too late."""
