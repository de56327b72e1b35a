"""What attempts teach of the time that answers take, and how long the next may take by that.

Streams are measured to their first content, whole answers to their end: where `first_token` is learned it bounds both.
"""

from dataclasses import replace

from relay.config.tree import Target, Timeouts
from relay.errors import Phase, RelayError, UpstreamTimeout
from relay.exchange import Attempt, AttemptResult, ClientRequest
from relay.policy.deadlines import LearnedDeadline
from relay.policy.targets import Targets


def bounded(targets: Targets, target: Target, timeouts: Timeouts, request: ClientRequest, *, is_last: bool) -> Timeouts:
    """Return `timeouts` with the learned bound of a first token, where it is to be learned and enough is known."""
    lesson = targets.lesson(target, request) if timeouts.first_token_auto else None
    if lesson is None:
        return timeouts
    return replace(timeouts, first_token=lesson.seconds(prompt_bytes(request), timeouts.first_token, is_last=is_last))


def prompt_bytes(request: ClientRequest) -> int:
    """Return the size that prompts are told apart by: that of the whole body."""
    return len(request.body.raw) if request.body is not None else 0


def learn(targets: Targets, attempt: Attempt, request: ClientRequest, error: RelayError | None) -> None:
    """Learn from an attempt that is over."""
    if attempt.sent_at is None:
        return
    first_at = attempt.meter.first_content_at
    if first_at is not None:
        targets.answered(attempt.target, first_at - attempt.sent_at)
    lesson = targets.lesson(attempt.target, request)
    if lesson is None:
        return
    if isinstance(error, UpstreamTimeout):
        if error.phase in (Phase.FIRST_TOKEN, Phase.FIRST_EVENT):
            lesson.cut(prompt_bytes(request))
    elif request.is_stream:
        if first_at is not None:
            lesson.answered(prompt_bytes(request), first_at - attempt.sent_at)
    elif attempt.result is AttemptResult.SUCCESS:
        lesson.answered(prompt_bytes(request), attempt.meter.last_byte_at - attempt.sent_at)


def learn_beaten(targets: Targets, attempt: Attempt, request: ClientRequest, now: float) -> None:
    """Learn from an attempt whose backup answered first. The backup, when it was too late, teaches nothing: it had less time."""
    if attempt.sent_at is None or attempt.hedge_won is not None:
        return
    targets.answered(attempt.target, now - attempt.sent_at)
    lesson: LearnedDeadline | None = targets.lesson(attempt.target, request)
    if lesson is not None:
        lesson.beaten(prompt_bytes(request), now - attempt.sent_at)
