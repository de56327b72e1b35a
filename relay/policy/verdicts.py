"""What an upstream's failure means: may another target be tried, who is to blame, may the same one be asked again.

The one exhaustive table; nobody else looks at kinds of errors to choose what happens next.
"""

from dataclasses import dataclass
from typing import assert_never

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of one failed attempt."""

    fall_back: bool
    blame_target: bool
    result: AttemptResult
    rest_seconds: float = 0.0
    """Rest the target at once for this long; 0 leaves it to its breaker."""
    is_final: bool = False
    """Whether asking again is useless: the account, not the moment, is what is wrong."""


def judge(error: UpstreamError, *, is_mapped: bool) -> Verdict:
    """Judge a failure before commit; `is_mapped` tells whether we chose the model's name at the target."""
    match error:
        case ConnectFailed(fault=fault):
            return Verdict(fall_back=True, blame_target=True, result=_connect_result(fault))
        case UpstreamTimeout(phase=phase):
            # How little a caller waits is its own choice: a header must not put a target to rest for everybody.
            return Verdict(
                fall_back=phase not in (Phase.TOTAL, Phase.CALLER), blame_target=phase is not Phase.CALLER, result=_timeout_result(phase)
            )
        case UpstreamRefused():
            return _judge_refusal(error, is_mapped=is_mapped)
        case MalformedResponse(what=what):
            result = AttemptResult.EMPTY if what is Malformation.EMPTY else AttemptResult.PROTOCOL_ERROR
            return Verdict(fall_back=True, blame_target=True, result=result)
        case StreamBroken():
            return Verdict(fall_back=True, blame_target=True, result=AttemptResult.STREAM_BROKEN)
        case ErrorEvent(status=status):
            own_fault = status in (400, 413, 422)
            return Verdict(fall_back=not own_fault, blame_target=not own_fault, result=AttemptResult.ERROR_EVENT)
        case _:
            assert_never(error)  # type: ignore[arg-type]  # UpstreamError has no other subclass; mypy has no sealed classes


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


def _judge_refusal(error: UpstreamRefused, *, is_mapped: bool) -> Verdict:
    refusal = classify(error.status, error.vendor, error.type, error.code)
    consequence = CONSEQUENCES[refusal]
    rest = consequence.rest_seconds
    if refusal in (Refusal.THROTTLED, Refusal.SLOW_DOWN):
        rest = max(rest, error.retry_after or 0.0)
    return Verdict(
        # A 404 for the name we mapped the model to is our configuration's fault, not the caller's.
        fall_back=consequence.falls_back is Fallback.ALWAYS or (consequence.falls_back is Fallback.MAPPED and is_mapped),
        blame_target=consequence.blames is not Blame.NOBODY,
        result=status_result(error.status),
        rest_seconds=rest,
        is_final=consequence.is_final,
    )


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
