"""The attempt loop: offer targets, attempt, commit or fall back.

One rule above all: until `Sink.open` was called every failure may still go to another target; after it, never.
"""

from collections.abc import Callable
from time import monotonic
from typing import Protocol

from relay.attempt import Attempting
from relay.config.tree import Route
from relay.errors import Phase, RelayError, UpstreamError, error_answer
from relay.exchange import Attempt, AttemptResult, Exchange, Outcome, State, UpstreamRequest
from relay.policy.patience import Patience, advice, patience_of
from relay.policy.retries import MAX_ATTEMPTS, MAX_TRIES, RetryBudget, is_repeatable, needs_budget
from relay.policy.routing import Choice, RoutePlan
from relay.policy.targets import Targets, name_of
from relay.policy.verdicts import is_stale_connection, judge, status_result
from relay.ports import Sink, Upload, Upstreams
from relay.stream import HoldBudget
from relay.trial import Onward, Trial

Encode = Callable[[Choice], UpstreamRequest]


class Forwarder:
    """Runs the attempts of exchanges."""

    __slots__ = ("_budget", "_chance", "_retries", "_running", "_targets", "_upstreams")

    def __init__(
        self, upstreams: Upstreams, running: "Running", budget: HoldBudget, targets: Targets, chance: Callable[[], float] = lambda: 0.5
    ) -> None:
        """Learn about `targets` from every attempt; `chance` gives numbers in [0, 1) and jitters their rests."""
        self._upstreams = upstreams
        self._running = running
        self._budget = budget
        self._targets = targets
        self._chance = chance
        self._retries = RetryBudget()

    async def run(self, exchange: Exchange, plan: RoutePlan, sink: Sink, encode: Encode, upload: Upload | None) -> None:
        """Try the targets of `plan` until one answers; raises the last error when none did and nothing was sent.

        `encode` turns a choice into what goes onto the wire.
        """
        exchange.move(State.TRYING)
        self._retries.note_request(monotonic())
        patience = patience_of(exchange.request)
        can_repeat = upload is None and is_repeatable(exchange.request)
        sent = 0
        was_resent = is_fresh = False
        last: RelayError | None = None
        trial: Trial | None = None
        onward: Onward | None = None
        choice = plan.next()
        for _ in range(MAX_TRIES):
            if choice is None or not self._may_attempt(sent, last, patience, onward):
                break
            if trial is None or not is_fresh:
                # A resend goes on with its first try's permit: that a kept connection was stale says nothing of the target.
                trial = self._trial(choice, is_forced=last is None and not plan.has_more)
            if trial is None:
                choice = plan.next()
                continue
            onward = Onward(plan, self._targets, self._retries, patience, sent=sent + 1 if can_repeat else MAX_ATTEMPTS)
            run = self._attempting(exchange, choice, plan.route, sink, onward, trial, patience)
            run.attempt.is_resend = is_fresh
            exchange.attempts.append(run.attempt)
            last = await self._try(
                run, exchange, choice, encode, upload, trial, is_fresh=is_fresh, can_resend=can_repeat and not was_resent
            )
            if last is None:
                return
            if not isinstance(last, UpstreamError):
                break
            if can_repeat and not was_resent and is_stale_connection(last, was_reused=run.was_reused):
                was_resent = is_fresh = True
                continue
            sent += run.attempt.sent_at is not None
            is_fresh = False
            if upload is not None or not judge(last, is_mapped=choice.is_mapped).fall_back or (sent and not can_repeat):
                break
            choice = plan.next()
        if trial is not None:
            # Not handed back yet when the caller's patience ended before the resend.
            trial.over(None, None, is_mapped=False)
        assert last is not None
        exchange.advice = self._advice(exchange, last, plan)
        raise last

    def _attempting(
        self, exchange: Exchange, choice: Choice, route: Route, sink: Sink, onward: Onward, trial: Trial, patience: Patience
    ) -> Attempting:
        return Attempting(
            exchange,
            choice,
            sink,
            choice.target.timeouts or route.timeouts,
            self._budget,
            may_fall_back=onward.reserve,
            deadline_at=patience.deadline_at,
            on_answer=trial.succeeded,
        )

    def _may_attempt(self, sent: int, last: RelayError | None, patience: Patience, onward: Onward | None) -> bool:
        """Tell whether one more attempt is within the bounds: their number, the budget, the caller's patience."""
        if last is None:
            return True
        now = monotonic()
        if sent >= MAX_ATTEMPTS or not patience.fits(now, 0.0):
            return False
        is_paid = onward is not None and onward.is_paid
        return is_paid or not needs_budget(sent, is_same_target=False) or self._retries.take(now)

    def _trial(self, choice: Choice, *, is_forced: bool) -> Trial | None:
        breaker = self._targets.breaker(choice.target)
        permit = breaker.begin(monotonic(), is_forced=is_forced)
        return None if permit is None else Trial(breaker, permit, self._chance, is_own_account=not choice.target.upstream.is_passthrough)

    def _advice(self, exchange: Exchange, last: RelayError, plan: RoutePlan) -> dict[str, str]:
        """Tell an SDK whether to try again: not when several targets have failed, for it would multiply their attempts."""
        if not isinstance(last, UpstreamError):
            return {}
        is_spent = len({name_of(attempt.target) for attempt in exchange.attempts}) > 1
        return advice(None) if is_spent or judge(last, is_mapped=False).is_final else {}

    async def _try(
        self,
        run: Attempting,
        exchange: Exchange,
        choice: Choice,
        encode: Encode,
        upload: Upload | None,
        trial: Trial,
        *,
        is_fresh: bool,
        can_resend: bool,
    ) -> RelayError | None:
        self._running.begin(run)
        self._targets.began(choice.target)
        try:
            error = await run.run(self._upstreams, encode(choice), upload, is_fresh=is_fresh)
        except BaseException:
            if exchange.outcome is None and run.attempt.meter.terminal_at is not None:
                # The client hung up after the terminator: it has everything.
                exchange.outcome = Outcome.COMPLETE
            # Our own cut of the client's connection cancels as well: by then the outcome says how the attempt ended.
            _mark(run.attempt, exchange, None, choice)
            trial.over(None, exchange.outcome, is_mapped=choice.is_mapped)
            raise
        finally:
            self._running.end(run)
            self._targets.ended(choice.target)
        _mark(run.attempt, exchange, error, choice)
        if can_resend and isinstance(error, UpstreamError) and is_stale_connection(error, was_reused=run.was_reused):
            return error
        trial.over(error or run.refusal, exchange.outcome, is_mapped=choice.is_mapped)
        self._learn(run.attempt)
        return error

    def _learn(self, attempt: Attempt) -> None:
        first = attempt.meter.first_content_at
        if first is not None and attempt.sent_at is not None:
            self._targets.answered(attempt.target, first - attempt.sent_at)


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
