"""The attempt loop: offer targets, attempt, commit or fall back.

One rule above all: until `Sink.open` was called every failure may still go to another target; after it, never.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from relay.attempt import Attempting
from relay.config.tree import Secret
from relay.errors import Overloaded, Phase, RelayError, UpstreamError, UpstreamRefused, error_answer
from relay.exchange import Attempt, AttemptResult, Exchange, Outcome, State, UpstreamRequest
from relay.policy.course import Course, Step
from relay.policy.patience import Patience, patience_of
from relay.policy.retries import RetryBudget, is_repeatable
from relay.policy.routing import Choice, RoutePlan
from relay.policy.targets import Targets
from relay.policy.verdicts import judge, status_result
from relay.ports import Sink, Upload, Upstreams
from relay.stream import HoldBudget
from relay.turns import Turns

Encode = Callable[[Choice, Secret | None], UpstreamRequest]


class Forwarder:
    """Runs the attempts of exchanges."""

    __slots__ = ("_budget", "_chance", "_retries", "_running", "_targets", "_turns", "_upstreams")

    def __init__(
        self,
        upstreams: Upstreams,
        running: "Running",
        budget: HoldBudget,
        targets: Targets,
        turns: Turns,
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        """Learn about `targets` from every attempt, and make none without one of the `turns`; `chance` in [0, 1) jitters rests."""
        self._upstreams = upstreams
        self._running = running
        self._budget = budget
        self._targets = targets
        self._turns = turns
        self._chance = chance
        self._retries = RetryBudget()

    async def run(self, exchange: Exchange, plan: RoutePlan, sink: Sink, encode: Encode, upload: Upload | None) -> None:
        """Try the targets of `plan` until one answers; raises the last error when none did and nothing was sent.

        `encode` turns a choice, and the credential to use there, into what goes onto the wire.
        """
        exchange.move(State.TRYING)
        patience = patience_of(exchange.request)
        can_repeat = upload is None and is_repeatable(exchange.request)
        plan.slots = self._turns.slots
        course = Course(plan, self._targets, self._retries, patience, can_repeat=can_repeat, chance=self._chance)
        step: Step | None = course.start(monotonic())
        error: RelayError | None = None
        try:
            while step is not None:
                if step.wait_seconds:
                    # A client that leaves cancels this at once.
                    await asyncio.sleep(step.wait_seconds)
                turn = await self._turns.take(exchange, step.choice.target, patience.deadline_at)
                if turn is None:
                    step = course.crowded(monotonic())
                    if step is None:
                        raise error or Overloaded()
                    continue
                run = self._attempting(exchange, plan, step, course, sink, patience)
                try:
                    error = await self._try(run, exchange, step, encode, upload)
                finally:
                    turn.give()
                if error is None:
                    return
                if isinstance(error, UpstreamError):
                    attempt = run.attempt
                    course.failed(error, monotonic(), was_sent=attempt.sent_at is not None, was_reused=run.was_reused)
                    step = course.go_on()
                if step is None or not isinstance(error, UpstreamError):
                    exchange.advice = course.advice(error_answer(error).status)
                    raise error
        finally:
            course.close()

    def _attempting(self, exchange: Exchange, plan: RoutePlan, step: Step, course: Course, sink: Sink, patience: Patience) -> Attempting:
        def may_fall_back(refusal: UpstreamRefused) -> bool:
            if course.failed(refusal, monotonic()):
                return True
            exchange.advice = course.advice(refusal.status)
            return False

        run = Attempting(
            exchange,
            step.choice,
            sink,
            step.choice.target.timeouts or plan.route.timeouts,
            self._budget,
            may_fall_back=may_fall_back,
            deadline_at=patience.deadline_at,
            on_answer=step.trial.succeeded,
        )
        run.attempt.is_resend = step.is_fresh
        exchange.attempts.append(run.attempt)
        return run

    async def _try(self, run: Attempting, exchange: Exchange, step: Step, encode: Encode, upload: Upload | None) -> RelayError | None:
        target = step.choice.target
        self._running.begin(run)
        self._targets.began(target)
        error: RelayError | None = None
        try:
            error = await run.run(self._upstreams, encode(step.choice, step.trial.credential), upload, is_fresh=step.is_fresh)
        except BaseException:
            if exchange.outcome is None and run.attempt.meter.terminal_at is not None:
                # The client hung up after the terminator: it has everything.
                exchange.outcome = Outcome.COMPLETE
            raise
        finally:
            self._running.end(run)
            self._targets.ended(target)
            # Our own cut of the client's connection cancels as well: by then the outcome says how the attempt ended.
            _mark(run.attempt, exchange, error, step.choice)
            if error is None and exchange.outcome in _BROKEN and exchange.error_code != Phase.TOTAL.value:
                step.trial.broke(monotonic(), self._chance())
        self._learn(run.attempt)
        return error

    def _learn(self, attempt: Attempt) -> None:
        first = attempt.meter.first_content_at
        if first is not None and attempt.sent_at is not None:
            self._targets.answered(attempt.target, first - attempt.sent_at)


_BROKEN: Final = frozenset({Outcome.UPSTREAM_CUT, Outcome.UPSTREAM_STALLED, Outcome.UPSTREAM_ERROR})


class Running(Protocol):
    """Who is told which attempts are under way (metrics, shutdown)."""

    def begin(self, run: Attempting) -> None:
        """Take note of an attempt that starts."""

    def end(self, run: Attempting) -> None:
        """Take note of an attempt that is over."""


def _mark(attempt: Attempt, exchange: Exchange, error: RelayError | None, choice: Choice) -> None:
    if isinstance(error, UpstreamError):
        attempt.result = judge(error, choice).result
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
