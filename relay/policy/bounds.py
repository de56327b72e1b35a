"""Which wait of an attempt ends next, and when: one look at the marks instead of a timer per chunk.

Instants are the clock of `ClientRequest.received_at`.
"""

from math import inf

from relay.config.tree import Timeouts
from relay.errors import ConnectFailed, ConnectFault, Phase, UpstreamError, UpstreamTimeout
from relay.exchange import Attempt, Exchange, StreamMeter


def next_bound(
    exchange: Exchange,
    attempt: Attempt,
    timeouts: Timeouts,
    now: float,
    *,
    is_begun: bool,
    deadline_at: float = inf,
    is_holding: bool = False,
    is_open: bool = False,
    upload_since: float | None = None,
) -> tuple[Phase, float]:
    """Return the wait that ends first, and when it does.

    `is_begun` tells whether this attempt's answer has begun to reach the client, `is_holding` whether events are awaited before it may;
    `deadline_at` is when the caller gives up; `is_open` tells whether nobody waits for the upstream (the client takes nothing, or the
    line has left HTTP). While the client's body is being sent, `upload_since` is since when the upstream takes none of it, `now` when it
    does; None when all was sent.
    """
    phase, due = _silence(attempt, timeouts, now, is_waiting=is_holding and not is_begun, is_open=is_open, upload_since=upload_since)
    if not is_begun and deadline_at < due:
        phase, due = Phase.CALLER, deadline_at
    total = exchange.request.received_at + timeouts.total
    return (phase, due) if due <= total else (Phase.TOTAL, total)


def time_left(exchange: Exchange, timeouts: Timeouts, now: float, deadline_at: float) -> tuple[Phase, float]:
    """Return what bounds the whole exchange first, its total or the caller, and the seconds until then."""
    total_at = exchange.request.received_at + timeouts.total
    return (Phase.CALLER, deadline_at - now) if deadline_at < total_at else (Phase.TOTAL, total_at - now)


def in_time(error: UpstreamError, phase: Phase, *, is_cut_short: bool) -> UpstreamError:
    """Return what a failed connect is: where it had less than its own time, the bound of the exchange that ended is to blame."""
    is_ours = is_cut_short and isinstance(error, ConnectFailed) and error.fault is ConnectFault.TIMEOUT
    return UpstreamTimeout(phase) if is_ours else error


def _silence(
    attempt: Attempt, timeouts: Timeouts, now: float, *, is_waiting: bool, is_open: bool, upload_since: float | None
) -> tuple[Phase, float]:
    if upload_since is not None:
        # The client's own pauses are bounded by who reads its body.
        return Phase.FIRST_TOKEN, upload_since + timeouts.first_token
    sent_at = attempt.sent_at or attempt.started_at
    head = attempt.head
    if head is None:
        return Phase.FIRST_TOKEN, sent_at + timeouts.first_token
    if (is_waiting or attempt.meter.bytes_in == 0) and head.status != 101:
        return Phase.FIRST_EVENT, sent_at + timeouts.first_token
    if is_open or head.status == 101:
        return Phase.BETWEEN_TOKENS, now + timeouts.between_tokens
    return Phase.BETWEEN_TOKENS, max(attempt.meter.last_byte_at, head.received_at) + between_tokens_seconds(timeouts, attempt.meter)


def between_tokens_seconds(timeouts: Timeouts, meter: StreamMeter) -> float:
    """Return the longest silence inside an answer: twice the configured one while only reasoning has come.

    Between two thoughts a model may call tools of its own or sum up in silence; nobody reads along yet.
    """
    is_reasoning = meter.first_reasoning_at is not None and meter.first_text_at is None
    return 2 * timeouts.between_tokens if is_reasoning else timeouts.between_tokens
