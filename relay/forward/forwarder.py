"""The attempt loop: offer targets, attempt, commit or fall back.

One rule above all: until `Sink.open` was called every failure may still go to another target; after it, never.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final, Protocol

from relay.config.tree import Secret
from relay.errors import ErrorEvent, Malformation, Overloaded, Phase, RelayError, UpstreamError, UpstreamRefused, error_answer
from relay.exchange import Attempt, AttemptResult, Exchange, Outcome, State, UpstreamRequest
from relay.forward.answering import outcome_of, outcome_with, refusal_event
from relay.forward.attempt import Attempting
from relay.forward.heartbeat import Heart, takes_comments
from relay.forward.ports import Sink, Upload, Upstreams
from relay.forward.race import Entrant, Race
from relay.forward.turns import Turns
from relay.policy.course import Course, Step
from relay.policy.estimates import estimate_of
from relay.policy.hedging import delay_of
from relay.policy.lessons import bounded, learn, learn_beaten
from relay.policy.patience import Patience, patience_of
from relay.policy.retries import is_repeatable, retry_budget
from relay.policy.routing import Choice, RoutePlan
from relay.policy.slots import Claim, Holds
from relay.policy.targets import Targets
from relay.policy.verdicts import judge, status_result
from relay.stream import HoldBudget

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
        self._retries = retry_budget()

    async def run(self, exchange: Exchange, plan: RoutePlan, sink: Sink, encode: Encode, upload: Upload | None) -> None:
        """Try the targets of `plan` until one answers; raises the last error when none did.

        `encode` turns a choice, and the credential to use there, into what goes onto the wire. With heartbeats the client's answer may
        have begun by then, with no byte of an upstream in it: the exchange says so.
        """
        work = self._begin(exchange, plan, sink, encode, upload)
        course = Course(plan, self._targets, self._retries, work.patience, can_repeat=work.can_repeat, chance=self._chance)
        try:
            may_hedge = work.plan.route.hedge is not None and self._note_hedgeable(work)
            step: Step | None = course.start(monotonic())
            run: Attempting | None = None
            error: RelayError | None = None
            while step is not None:
                if step.wait_seconds:
                    # A client that leaves cancels this at once.
                    await asyncio.sleep(step.wait_seconds)
                target = step.choice.target
                # A resend keeps the turn of the attempt that it replaces.
                turn = work.turns[-1] if step.is_fresh else self._turns.claim(target)
                if turn is not None and turn.holds is not _SLOT:
                    turn = await self._turns.wait(turn, work.exchange, target, work.patience.deadline_at)
                if turn is None:
                    step = course.crowded(step, monotonic())
                    if step is None:
                        _end_crowded(work, course, run, error)
                    continue
                run = self._ready(work, course, step, turn)
                if may_hedge and (delay := self._hedge_delay(work, step.choice)) is not None:
                    race = Race(work.exchange, course.is_final)
                    first = Entrant(run, step, partial(self._try, work, course, run, step, turn))
                    entrant = await race.run(first, delay, partial(self._back_up, work, course))
                    run, error = entrant.run, entrant.error
                    may_hedge = not race.has_backup
                else:
                    error = await self._try(work, course, run, step, turn)
                if error is None:
                    return
                step = course.go_on() if isinstance(error, UpstreamError) else None
                if step is None:
                    raise _given_up(work, course, run, error)
        finally:
            course.close()
            for turn in work.turns:
                # For an attempt that was given up before it began; the others have given theirs back.
                turn.give()
            if work.heart is not None:
                work.heart.stop()

    def _begin(self, exchange: Exchange, plan: RoutePlan, sink: Sink, encode: Encode, upload: Upload | None) -> "Work":
        exchange.move(State.TRYING)
        work = Work(exchange, plan, sink, encode, upload)
        plan.slots = self._turns.slots
        settings = plan.route.heartbeat
        if settings is not None and takes_comments(exchange.request):
            if max(settings.after, settings.every) < work.patience.deadline_at - exchange.request.received_at:
                # A caller's timeout is that of a single wait: one that hears comments in time does not give up.
                work.patience = Patience(retry_count=work.patience.retry_count)
            work.heart = Heart(exchange, sink, settings)
        return work

    def _ready(self, work: "Work", course: Course, step: Step, turn: Claim) -> Attempting:
        """Make ready one attempt."""
        work.turns.append(turn)
        exchange, plan, choice = work.exchange, work.plan, step.choice
        timeouts = choice.target.timeouts or plan.route.timeouts
        if timeouts.first_token_auto:
            timeouts = bounded(self._targets, choice.target, timeouts, exchange, is_last=not plan.has_more)

        def may_fall_back(refusal: UpstreamRefused) -> bool:
            if course.failed(step, refusal, monotonic()):
                return True
            exchange.advice = course.advice(refusal.status)
            return False

        run = Attempting(
            exchange,
            choice,
            work.sink,
            timeouts,
            self._budget,
            may_fall_back=may_fall_back,
            deadline_at=work.patience.deadline_at,
            on_answer=step.trial.succeeded,
        )
        if work.heart is not None:
            run.claim = work.heart.follow
        run.attempt.is_resend = step.is_fresh
        exchange.attempts.append(run.attempt)
        return run

    def _note_hedgeable(self, work: "Work") -> bool:
        """Count a request of a route with backups; tell whether it may have one."""
        self._targets.hedging(work.plan.route).note_request(monotonic())
        return work.can_repeat and work.plan.has_more

    def _hedge_delay(self, work: "Work", choice: Choice) -> float | None:
        hedge = work.plan.route.hedge
        if hedge is None or hedge.after is not None:
            return None if hedge is None else hedge.after
        lesson = self._targets.lesson(choice.target, work.exchange.request)
        return None if lesson is None else delay_of(lesson.latencies, estimate_of(work.exchange))

    def _back_up(self, work: "Work", course: Course) -> Entrant | None:
        """Make ready a backup on the next target that is well; None when that is beyond any bound."""
        hedge = work.plan.route.hedge
        now = monotonic()
        if hedge is None:
            return None
        step = course.back_up(now, lambda: self._targets.hedging(work.plan.route).take(now, hedge.at_most))
        turn = None if step is None else self._turns.take_free(step.choice.target)
        if step is None or turn is None:
            return None
        run = self._ready(work, course, step, turn)
        return Entrant(run, step, partial(self._try, work, course, run, step, turn))

    async def _try(self, work: "Work", course: Course, run: Attempting, step: Step, turn: Claim) -> RelayError | None:
        exchange, attempt, choice = work.exchange, run.attempt, step.choice
        self._running.begin(run)
        self._targets.began(choice.target)
        try:
            error = await run.run(self._upstreams, work.encode(choice, step.trial.credential), work.upload, is_fresh=step.is_fresh)
        except BaseException:
            turn.give()
            if run.is_beaten:
                # Another attempt has answered: this one is nobody's fault.
                attempt.result = AttemptResult.CANCELLED
                attempt.is_beaten = True
                step.trial.close()
                learn_beaten(self._targets, attempt, exchange, monotonic())
                raise
            if exchange.outcome is None and attempt.meter.terminal_at is not None and not run.is_alone:
                # The client hung up after the terminator: it has everything.
                exchange.outcome = Outcome.COMPLETE
            # Our own cut of the client's connection cancels as well: by then the outcome says how the attempt ended.
            self._ended(exchange, attempt, step)
            raise
        finally:
            self._running.end(run)
            self._targets.ended(choice.target)
        if error is None:
            self._ended(exchange, attempt, step)
        else:
            _mark_failed(attempt, error, choice)
            if isinstance(error, UpstreamError):
                course.failed(step, error, monotonic(), was_sent=attempt.sent_at is not None, was_reused=run.was_reused)
        if error is None or not course.is_resending:
            turn.give()
        learn(self._targets, attempt, exchange, error)
        return error

    def _ended(self, exchange: Exchange, attempt: Attempt, step: Step) -> None:
        """Take note of how an attempt's answer ended, or that there will be none."""
        if exchange.outcome is _COMPLETE:
            attempt.result = _SUCCESS
            return
        _mark(attempt, exchange)
        if exchange.outcome in _BROKEN and exchange.error_code != Phase.TOTAL.value:
            step.trial.broke(monotonic(), self._chance())


class Work:
    """What all attempts of one exchange share."""

    __slots__ = ("can_repeat", "encode", "exchange", "heart", "patience", "plan", "sink", "turns", "upload")

    def __init__(self, exchange: Exchange, plan: RoutePlan, sink: Sink, encode: Encode, upload: Upload | None) -> None:
        self.exchange = exchange
        self.plan = plan
        self.sink = sink
        self.encode = encode
        self.upload = upload
        self.patience = patience_of(exchange.request)
        self.can_repeat = upload is None and is_repeatable(exchange.request)
        self.heart: Heart | None = None
        self.turns: list[Claim] = []
        """Of every attempt."""


class Running(Protocol):
    """Who is told which attempts are under way (metrics, shutdown)."""

    def begin(self, run: Attempting) -> None:
        """Take note of an attempt that starts."""

    def end(self, run: Attempting) -> None:
        """Take note of an attempt that is over."""


# Members of an enumeration take their time to look up, and every attempt comes by here.
_COMPLETE: Final = Outcome.COMPLETE
_SUCCESS: Final = AttemptResult.SUCCESS
_SLOT: Final = Holds.SLOT
_BROKEN: Final = frozenset({Outcome.UPSTREAM_CUT, Outcome.UPSTREAM_STALLED, Outcome.UPSTREAM_ERROR})


def _given_up(work: Work, course: Course, last: Attempting, error: RelayError) -> RelayError:
    """Return `error`, why `last` failed, as what the exchange ends with."""
    exchange = work.exchange
    exchange.advice = course.advice(error_answer(error).status)
    if isinstance(error, ErrorEvent):
        # In a 200, and yet it may be the caller's own mistake.
        exchange.outcome = outcome_of(error, last.choice)
    return error


def _end_crowded(work: Work, course: Course, last: Attempting | None, error: RelayError | None) -> None:
    """End an exchange that got no turn at the targets that were left: what the last attempt was refused with is its answer after all."""
    if last is None or error is None:
        raise Overloaded
    exchange, kept = work.exchange, last.given_up
    if not isinstance(error, UpstreamRefused) or kept is None:
        raise _given_up(work, course, last, error)
    head, body = kept
    exchange.outcome = outcome_with(Outcome.COMPLETE, error, last.choice)
    exchange.advice = course.advice(error.status)
    if exchange.is_begun_early:
        exchange.is_begun_early = False
        exchange.error_code = error_answer(error).code
        work.sink.cut(refusal_event(exchange.request.operation, error, body))
        return
    work.sink.open(exchange, head, body)
    exchange.move(State.COMMITTED)
    exchange.status = head.status
    work.sink.finish()


def _mark_failed(attempt: Attempt, error: RelayError, choice: Choice) -> None:
    if not isinstance(error, UpstreamError):
        attempt.result = AttemptResult.CANCELLED
        return
    attempt.result = judge(error, choice).result
    code = error_answer(error).code
    # A refusal in the upstream's own words has no code of the relay's: its status says it.
    has_own_words = isinstance(error, UpstreamRefused) and code == Malformation.BAD_RESPONSE.value
    attempt.error_code = None if has_own_words else code


def _mark(attempt: Attempt, exchange: Exchange) -> None:
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
        case _:
            attempt.result = AttemptResult.CANCELLED
