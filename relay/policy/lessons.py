"""What attempts teach of the time that answers take, and how long the next may take by that.

Streams are measured to their first content, whole answers to their end: where `first_token` is learned it bounds both. Prompts are told
apart by the tokens that they are guessed to have: an upstream's work goes by those, and a picture's bytes say nothing of them.
"""

from dataclasses import replace

from relay.config.tree import Target, Timeouts
from relay.errors import Phase, RelayError, UpstreamTimeout
from relay.exchange import Attempt, AttemptResult, Exchange
from relay.policy.deadlines import LearnedDeadline
from relay.policy.estimates import estimate_of
from relay.policy.targets import Targets


def bounded(targets: Targets, target: Target, timeouts: Timeouts, exchange: Exchange, *, is_last: bool) -> Timeouts:
    """Return `timeouts` with the learned bound of a first token, where it is to be learned and enough is known."""
    lesson = targets.lesson(target, exchange.request) if timeouts.first_token_auto else None
    if lesson is None:
        return timeouts
    return replace(timeouts, first_token=lesson.seconds(estimate_of(exchange), timeouts.first_token, is_last=is_last))


def learn(targets: Targets, attempt: Attempt, exchange: Exchange, error: RelayError | None) -> None:
    """Learn from an attempt that is over."""
    if attempt.sent_at is None:
        return
    first_at = attempt.meter.first_content_at
    if first_at is not None:
        targets.answered(attempt.target, first_at - attempt.sent_at)
    lesson = targets.lesson(attempt.target, exchange.request)
    if lesson is None:
        return
    if isinstance(error, UpstreamTimeout):
        if error.phase in (Phase.FIRST_TOKEN, Phase.FIRST_EVENT):
            lesson.cut(estimate_of(exchange))
    elif exchange.request.is_stream:
        if first_at is not None:
            lesson.answered(estimate_of(exchange), first_at - attempt.sent_at)
    elif attempt.result is AttemptResult.SUCCESS:
        lesson.answered(estimate_of(exchange), attempt.meter.last_byte_at - attempt.sent_at)


def learn_beaten(targets: Targets, attempt: Attempt, exchange: Exchange, now: float) -> None:
    """Learn from an attempt whose backup answered first. The backup, when it was too late, teaches nothing: it had less time."""
    if attempt.sent_at is None or attempt.hedge_won is not None:
        return
    targets.answered(attempt.target, now - attempt.sent_at)
    lesson: LearnedDeadline | None = targets.lesson(attempt.target, exchange.request)
    if lesson is not None:
        lesson.beaten(estimate_of(exchange), now - attempt.sent_at)
