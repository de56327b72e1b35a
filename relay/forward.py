"""The attempt loop: offer targets, attempt, commit or fall back.

One rule above all: until `Sink.open` was called every failure may still go to another target; after it, never.
"""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Protocol

from relay.attempt import Attempting
from relay.errors import Phase, RelayError, UpstreamError, error_answer
from relay.exchange import Attempt, AttemptResult, Exchange, Outcome, State, UpstreamRequest
from relay.heartbeat import Heart, takes_comments
from relay.policy.hedging import delay_of
from relay.policy.lessons import bounded, learn, learn_beaten, prompt_bytes
from relay.policy.patience import Patience, advice, patience_of
from relay.policy.retries import MAX_ATTEMPTS, MAX_TRIES, RetryBudget, is_repeatable, needs_budget
from relay.policy.routing import Choice, RoutePlan
from relay.policy.targets import Targets, name_of
from relay.policy.verdicts import is_stale_connection, judge, status_result
from relay.ports import Sink, Upload, Upstreams
from relay.race import Entrant, Race
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
        """Try the targets of `plan` until one answers; raises the last error when none did.

        `encode` turns a choice into what goes onto the wire. With heartbeats the client's answer may have begun by then, with no byte of
        an upstream in it: the exchange says so.
        """
        exchange.move(State.TRYING)
        course = Course(exchange, plan, sink, encode, upload)
        settings = plan.route.heartbeat
        if settings is None or not takes_comments(exchange.request):
            await self._run(course)
            return
        if max(settings.after, settings.every) < course.patience.deadline_at - exchange.request.received_at:
            # A caller's timeout is that of a single wait: one that hears comments in time does not give up.
            course.patience = Patience(retry_count=course.patience.retry_count)
        course.heart = Heart(exchange, sink, settings)
        try:
            await self._run(course)
        finally:
            course.heart.stop()

    async def _run(self, course: "Course") -> None:
        plan, can_repeat = course.plan, course.can_repeat
        self._retries.note_request(monotonic())
        may_hedge = plan.route.hedge is not None and self._note_hedgeable(course)
        is_fresh = False
        last: RelayError | None = None
        trial: Trial | None = None
        entrant: Entrant | None = None
        choice = plan.next()
        for _ in range(MAX_TRIES):
            if choice is None or not self._may_attempt(course, entrant):
                break
            if trial is None or not is_fresh:
                # A resend goes on with its first try's permit: that a kept connection was stale says nothing of the target.
                trial = self._trial(choice, is_forced=last is None and not plan.has_more)
            if trial is None:
                choice = plan.next()
                continue
            entrant = self._enter(course, choice, trial, sent=course.sent + 1, is_fresh=is_fresh)
            if may_hedge and (delay := self._hedge_delay(course, choice)) is not None:
                race = Race(course.exchange)
                entrant = await race.run(entrant, delay, partial(self._back_up, course))
                may_hedge = not race.has_backup
                course.may_resend = course.may_resend and may_hedge
            else:
                entrant.error = await entrant.try_()
            last, choice = entrant.error, entrant.choice
            if last is None:
                return
            if not isinstance(last, UpstreamError):
                break
            if course.may_resend and is_stale_connection(last, was_reused=entrant.run.was_reused):
                course.resend()
                is_fresh = True
                continue
            is_fresh = False
            if course.upload is not None or not judge(last, is_mapped=choice.is_mapped).fall_back or (course.sent and not can_repeat):
                break
            choice = plan.next()
        if trial is not None:
            # Not handed back yet when the caller's patience ended before the resend.
            trial.over(None, None, is_mapped=False)
        assert last is not None
        course.exchange.advice = self._advice(course.exchange, last, plan)
        raise last

    def _enter(self, course: "Course", choice: Choice, trial: Trial, *, sent: int, is_fresh: bool = False) -> Entrant:
        """Make ready one attempt, the `sent`th that may send anything."""
        exchange, plan = course.exchange, course.plan
        onward = Onward(plan, self._targets, self._retries, course.patience, sent=sent if course.can_repeat else MAX_ATTEMPTS)
        timeouts = choice.target.timeouts or plan.route.timeouts
        if timeouts.first_token_auto:
            timeouts = bounded(self._targets, choice.target, timeouts, exchange.request, is_last=not plan.has_more)
        run = Attempting(
            exchange,
            choice,
            course.sink,
            timeouts,
            self._budget,
            may_fall_back=onward.reserve,
            deadline_at=course.patience.deadline_at,
            on_answer=trial.succeeded,
        )
        if course.heart is not None:
            run.claim = course.heart.follow
        run.attempt.is_resend = is_fresh
        exchange.attempts.append(run.attempt)
        return Entrant(run, choice, trial, onward, partial(self._try, course, run, choice, trial, is_fresh=is_fresh))

    def _may_attempt(self, course: "Course", before: Entrant | None) -> bool:
        """Tell whether one more attempt is within the bounds: their number, the budget, the caller's patience."""
        if before is None:
            return True
        now = monotonic()
        sent = course.sent
        if sent >= MAX_ATTEMPTS or not course.patience.fits(now, 0.0):
            return False
        return before.onward.is_paid or not needs_budget(sent, is_same_target=False) or self._retries.take(now)

    def _trial(self, choice: Choice, *, is_forced: bool) -> Trial | None:
        breaker = self._targets.breaker(choice.target)
        permit = breaker.begin(monotonic(), is_forced=is_forced)
        return None if permit is None else Trial(breaker, permit, self._chance, is_own_account=not choice.target.upstream.is_passthrough)

    def _note_hedgeable(self, course: "Course") -> bool:
        """Count a request of a route with backups; tell whether it may have one."""
        self._targets.hedging(course.plan.route).note_request(monotonic())
        return course.can_repeat and course.plan.has_more

    def _hedge_delay(self, course: "Course", choice: Choice) -> float | None:
        hedge = course.plan.route.hedge
        if hedge is None:
            return None
        request = course.exchange.request
        lesson = self._targets.lesson(choice.target, request)
        return delay_of(hedge, None if lesson is None else lesson.latencies, prompt_bytes(request))

    def _back_up(self, course: "Course", first: Entrant) -> Entrant | None:
        """Make ready a backup beside `first` on the next target that is well; None when that is beyond any bound."""
        plan, hedge = course.plan, course.plan.route.hedge
        now = monotonic()
        sent = first.onward.sent + 1
        if hedge is None or sent > MAX_ATTEMPTS or not course.patience.fits(now, 0.0):
            return None
        if not any(self._targets.breaker(choice.target).may_try(now) for choice in plan.left):
            return None
        if not self._targets.hedging(plan.route).may_hedge(now, hedge.at_most):
            return None
        while (choice := plan.next()) is not None:
            trial = self._trial(choice, is_forced=False)
            if trial is not None:
                return self._enter(course, choice, trial, sent=sent)
        return None

    def _advice(self, exchange: Exchange, last: RelayError, plan: RoutePlan) -> dict[str, str]:
        """Tell an SDK whether to try again: not when several targets have failed, for it would multiply their attempts."""
        if not isinstance(last, UpstreamError):
            return {}
        is_spent = len({name_of(attempt.target) for attempt in exchange.attempts}) > 1
        return advice(None) if is_spent or judge(last, is_mapped=False).is_final else {}

    async def _try(self, course: "Course", run: Attempting, choice: Choice, trial: Trial, *, is_fresh: bool) -> RelayError | None:
        exchange, attempt = course.exchange, run.attempt
        self._running.begin(run)
        self._targets.began(choice.target)
        try:
            error = await run.run(self._upstreams, course.encode(choice), course.upload, is_fresh=is_fresh)
        except BaseException:
            if run.is_beaten:
                self._mark_beaten(run, exchange, trial)
                raise
            if exchange.outcome is None and attempt.meter.terminal_at is not None:
                # The client hung up after the terminator: it has everything.
                exchange.outcome = Outcome.COMPLETE
            # Our own cut of the client's connection cancels as well: by then the outcome says how the attempt ended.
            _mark(attempt, exchange, None, choice)
            trial.over(None, exchange.outcome, is_mapped=choice.is_mapped)
            raise
        finally:
            self._running.end(run)
            self._targets.ended(choice.target)
        _mark(attempt, exchange, error, choice)
        if course.may_resend and isinstance(error, UpstreamError) and is_stale_connection(error, was_reused=run.was_reused):
            return error
        trial.over(error or run.refusal, exchange.outcome, is_mapped=choice.is_mapped)
        learn(self._targets, attempt, exchange.request, error)
        return error

    def _mark_beaten(self, run: Attempting, exchange: Exchange, trial: Trial) -> None:
        """Take note that another attempt has answered: this one is nobody's fault."""
        run.attempt.result = AttemptResult.CANCELLED
        trial.over(None, None, is_mapped=False)
        learn_beaten(self._targets, run.attempt, exchange.request, monotonic())


class Course:
    """What all attempts of one exchange share."""

    __slots__ = ("_stale", "can_repeat", "encode", "exchange", "heart", "may_resend", "patience", "plan", "sink", "upload")

    def __init__(self, exchange: Exchange, plan: RoutePlan, sink: Sink, encode: Encode, upload: Upload | None) -> None:
        self.exchange = exchange
        self.plan = plan
        self.sink = sink
        self.encode = encode
        self.upload = upload
        self.patience = patience_of(exchange.request)
        self.can_repeat = upload is None and is_repeatable(exchange.request)
        self.may_resend = self.can_repeat
        """Whether a stale connection may still be answered by a fresh one: once for an exchange."""
        self.heart: Heart | None = None
        self._stale = 0

    @property
    def sent(self) -> int:
        """Return how many attempts have sent anything; one whose connection was stale does not count."""
        return sum(attempt.sent_at is not None for attempt in self.exchange.attempts) - self._stale

    def resend(self) -> None:
        """Take note that the last attempt is made again."""
        self.may_resend = False
        self._stale = 1


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
