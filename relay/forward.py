"""The attempt loop: offer targets, attempt, commit or fall back.

One rule above all: until `Sink.open` was called every failure may still go to another target; after it, never.
"""

from collections.abc import Callable
from typing import Final, Protocol

from relay.attempt import Attempting
from relay.errors import Phase, RelayError, UpstreamError, error_answer
from relay.exchange import Attempt, AttemptResult, Exchange, Outcome, State, UpstreamRequest
from relay.policy.routing import Choice, RoutePlan
from relay.policy.verdicts import is_stale_connection, judge, status_result
from relay.ports import Sink, Upload, Upstreams
from relay.stream import HoldBudget

MAX_TRIES: Final = 8
"""Targets looked at for one exchange, those that were never reached included."""
MAX_ATTEMPTS: Final = 3
"""Attempts that sent a request byte."""

Encode = Callable[[Choice], UpstreamRequest]


class Forwarder:
    """Runs the attempts of exchanges."""

    __slots__ = ("_budget", "_running", "_upstreams")

    def __init__(self, upstreams: Upstreams, running: "Running", budget: HoldBudget) -> None:
        self._upstreams = upstreams
        self._running = running
        self._budget = budget

    async def run(self, exchange: Exchange, plan: RoutePlan, sink: Sink, encode: Encode, upload: Upload | None) -> None:
        """Try the targets of `plan` until one answers; raises the last error when none did and nothing was sent.

        `encode` turns a choice into what goes onto the wire.
        """
        exchange.move(State.TRYING)
        sent = 0
        was_resent = False
        last: RelayError | None = None
        choice = plan.next()
        is_fresh = False
        for _ in range(MAX_TRIES):
            if choice is None or sent >= MAX_ATTEMPTS:
                break
            may_fall_back = plan.has_more and upload is None and sent + 1 < MAX_ATTEMPTS
            run = Attempting(exchange, choice, sink, plan.route.timeouts, self._budget, may_fall_back=may_fall_back)
            run.attempt.is_resend = is_fresh
            exchange.attempts.append(run.attempt)
            last = await self._try(run, exchange, choice, encode(choice), upload, is_fresh=is_fresh)
            if last is None:
                return
            if not isinstance(last, UpstreamError):
                break
            if not was_resent and upload is None and is_stale_connection(last, was_reused=run.was_reused):
                was_resent = is_fresh = True
                continue
            sent += run.attempt.sent_at is not None
            is_fresh = False
            if not judge(last, is_mapped=choice.is_mapped).fall_back or upload is not None:
                break
            choice = plan.next()
        assert last is not None
        raise last

    async def _try(
        self, run: Attempting, exchange: Exchange, choice: Choice, request: UpstreamRequest, upload: Upload | None, *, is_fresh: bool
    ) -> RelayError | None:
        self._running.begin(run)
        try:
            error = await run.run(self._upstreams, request, upload, is_fresh=is_fresh)
        except BaseException:
            if exchange.outcome is None and run.attempt.meter.terminal_at is not None:
                # The client hung up after the terminator: it has everything.
                exchange.outcome = Outcome.COMPLETE
            # Our own cut of the client's connection cancels as well: by then the outcome says how the attempt ended.
            _mark(run.attempt, exchange, None, choice)
            raise
        finally:
            self._running.end(run)
        _mark(run.attempt, exchange, error, choice)
        return error


class Running(Protocol):
    """Who is told which attempts are under way (metrics, shutdown)."""

    def begin(self, run: Attempting) -> None:
        """Take note of an attempt that starts."""

    def end(self, run: Attempting) -> None:
        """Take note of an attempt that is over."""


def _mark(attempt: Attempt, exchange: Exchange, error: RelayError | None, choice: Choice) -> None:
    if isinstance(error, UpstreamError):
        attempt.result = judge(error, is_mapped=choice.is_mapped).result
        attempt.error_code = error_answer(error).code
        return
    if error is not None:
        attempt.result = AttemptResult.CANCELLED
        return
    attempt.error_code = exchange.error_code
    match exchange.outcome:
        case Outcome.UPSTREAM_CUT:
            attempt.result = AttemptResult.STREAM_BROKEN
        case Outcome.UPSTREAM_STALLED:
            is_total = exchange.error_code == Phase.TOTAL.value
            attempt.result = AttemptResult.TIMEOUT_TOTAL if is_total else AttemptResult.TIMEOUT_IDLE
        case Outcome.UPSTREAM_ERROR:
            attempt.result = AttemptResult.ERROR_EVENT
        case Outcome.REJECTED | Outcome.UPSTREAM_FAILED if attempt.head is not None:
            attempt.result = status_result(attempt.head.status)
        case Outcome.COMPLETE:
            attempt.result = AttemptResult.SUCCESS
        case _:
            attempt.result = AttemptResult.CANCELLED
