"""What an upstream's failure means: may another target be tried, who is to blame, may the same one be asked again.

The one exhaustive table; nobody else looks at kinds of errors to choose what happens next.
"""

from dataclasses import dataclass
from typing import Final, assert_never

from relay.config.tree import FallbackCause
from relay.errors import (
    Break,
    ConnectFailed,
    ConnectFault,
    ErrorEvent,
    Malformation,
    MalformedResponse,
    Phase,
    StreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from relay.exchange import AttemptResult
from relay.policy.refusals import CONSEQUENCES, Blame, Fallback, Refusal, classify
from relay.policy.routing import Choice

MAX_REST_SECONDS: Final = 60.0
"""A target is not left alone for longer because it asks to be: limits recover within a minute, and a mistaken hour would be an outage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of one failed attempt."""

    fall_back: bool
    blame: Blame
    result: AttemptResult | None
    """None only where an attempt's result is told by how its answer ended."""
    rest_seconds: float = 0.0
    """Rest who is blamed at once for this long; 0 leaves it to the breaker."""
    can_repeat: bool = False
    """Whether the same target may be asked again, when no other is left."""
    is_final: bool = False
    """Whether asking again is useless: the account or the request, not the moment, is what is wrong."""
    is_callers: bool = False
    """Whether the request itself is what is wrong, even where another target may be asked."""


def judge(error: UpstreamError, choice: Choice) -> Verdict:
    """Judge a failure before commit of an attempt at `choice`."""
    match error:
        case ConnectFailed(fault=fault):
            # A certificate or an address that is not acceptable does not become so in a moment.
            can_repeat = fault in (ConnectFault.REFUSED, ConnectFault.TIMEOUT, ConnectFault.DNS)
            return Verdict(fall_back=True, blame=Blame.TARGET, result=_connect_result(fault), can_repeat=can_repeat)
        case UpstreamTimeout():
            return _judge_timeout(error)
        case UpstreamRefused(status=status):
            refusal = classify(status, choice.target.upstream.vendor, error.type, error.code, error.message)
            return _judge_refusal(refusal, status_result(status), choice, status=status, wait=error.retry_after)
        case MalformedResponse(what=what):
            result = AttemptResult.EMPTY if what is Malformation.EMPTY else AttemptResult.PROTOCOL_ERROR
            return Verdict(fall_back=True, blame=Blame.TARGET, result=result)
        case StreamBroken():
            return Verdict(fall_back=True, blame=Blame.TARGET, result=AttemptResult.STREAM_BROKEN)
        case ErrorEvent(status=status):
            refusal = classify(status, choice.target.upstream.vendor, error.kind, error.code, error.message)
            return _judge_refusal(refusal, AttemptResult.ERROR_EVENT, choice, status=status)
        case _:
            assert_never(error)  # type: ignore[arg-type]  # UpstreamError has no other subclass; mypy has no sealed classes


def _judge_timeout(error: UpstreamTimeout) -> Verdict:
    match error.phase:
        case Phase.FIRST_TOKEN | Phase.FIRST_EVENT | Phase.BETWEEN_TOKENS:
            return Verdict(fall_back=True, blame=Blame.TARGET, result=_timeout_result(error.phase))
        case Phase.TOTAL:
            # No other target could answer in no time; and who merely came last had little of it.
            blame = Blame.TARGET if error.had_its_time else Blame.NOBODY
            return Verdict(fall_back=False, blame=blame, result=AttemptResult.TIMEOUT_TOTAL)
        case Phase.CALLER:
            # How little a caller waits is its own choice: a header must not put a target to rest for everybody.
            return Verdict(fall_back=False, blame=Blame.NOBODY, result=AttemptResult.TIMEOUT_TOTAL)
        case _:
            assert_never(error.phase)


def is_stale_connection(error: UpstreamError, *, was_reused: bool) -> bool:
    """Tell whether a kept-alive connection died before it answered anything: worth one resend on a fresh one (F5)."""
    return was_reused and isinstance(error, StreamBroken) and error.how is not Break.TRUNCATED and not error.anything


def status_result(status: int) -> AttemptResult:
    """Return the attempt result of a refusing status."""
    match status:
        case 401:
            return AttemptResult.HTTP_401
        case 402:
            return AttemptResult.HTTP_402
        case 403:
            return AttemptResult.HTTP_403
        case 429:
            return AttemptResult.HTTP_429
        case _ if 300 <= status < 400:
            return AttemptResult.REDIRECT
        case _ if 400 <= status < 500:
            return AttemptResult.HTTP_4XX
        case _ if 500 <= status < 600:
            return AttemptResult.HTTP_5XX
        case _:
            return AttemptResult.PROTOCOL_ERROR


def _judge_refusal(refusal: Refusal, result: AttemptResult, choice: Choice, *, status: int, wait: float | None = None) -> Verdict:
    consequence = CONSEQUENCES[refusal]
    blame, rest = consequence.blames, consequence.rest_seconds
    if refusal in (Refusal.THROTTLED, Refusal.SLOW_DOWN):
        rest = max(rest, min(wait or 0.0, MAX_REST_SECONDS))
    falls_back = _falls_back(refusal, consequence.falls_back, choice)
    if choice.target.upstream.is_passthrough and blame in (Blame.CREDENTIAL, Blame.ACCOUNT):
        # The caller's own credential: no reason for others to be kept away, and where it was refused that is the answer.
        blame, rest = Blame.NOBODY, 0.0
        falls_back = falls_back and status not in (401, 402, 403)
    return Verdict(
        fall_back=falls_back,
        blame=blame,
        result=result,
        rest_seconds=rest,
        can_repeat=consequence.can_repeat,
        is_final=consequence.is_final,
        is_callers=consequence.falls_back in (Fallback.ASKED, Fallback.NEVER),
    )


def _falls_back(refusal: Refusal, rule: Fallback, choice: Choice) -> bool:
    match rule:
        case Fallback.ALWAYS:
            return True
        case Fallback.MAPPED:
            # A 404 for the name we mapped the model to is our configuration's fault, not the caller's.
            return choice.is_mapped
        case Fallback.ASKED:
            return FallbackCause(refusal.value) in choice.fallback_on
        case Fallback.NEVER:
            return False


def _connect_result(fault: ConnectFault) -> AttemptResult:
    match fault:
        case ConnectFault.REFUSED | ConnectFault.FORBIDDEN:
            return AttemptResult.CONNECT_ERROR
        case ConnectFault.TIMEOUT:
            return AttemptResult.TIMEOUT_CONNECT
        case ConnectFault.DNS:
            return AttemptResult.DNS_ERROR
        case ConnectFault.TLS:
            return AttemptResult.TLS_ERROR
        case _:
            assert_never(fault)


def _timeout_result(phase: Phase) -> AttemptResult:
    match phase:
        case Phase.FIRST_TOKEN | Phase.FIRST_EVENT:
            return AttemptResult.TIMEOUT_FIRST_TOKEN
        case Phase.BETWEEN_TOKENS:
            return AttemptResult.TIMEOUT_IDLE
        case Phase.TOTAL | Phase.CALLER:
            return AttemptResult.TIMEOUT_TOTAL
        case _:
            assert_never(phase)
