"""The frozen record of an ended exchange, observed once by metrics and log."""

import msgspec

from relay.exchange.gaps import STALL_SECONDS, Gaps, Lateness, split_gaps
from relay.exchange.records import Attempt, ClientRequest, Exchange, Operation, Outcome, StreamMeter, Usage, UsageSource


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """The relay's own time, in seconds, without waits for upstream, queue and client; None where a phase was not reached."""

    request: float
    """From the request's last byte to the first attempt."""
    event: float | None
    """From the first content's arrival until it was written."""
    finish: float | None
    """From the end of the upstream's bytes until everything was settled."""

    @property
    def seconds(self) -> float:
        """Return what the caller waited for the relay."""
        return self.request + (self.event or 0.0)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The frozen record of an ended exchange, observed once by metrics and log."""

    request: ClientRequest
    outcome: Outcome
    status: int
    """HTTP status sent; 499 when the client left before one was."""
    error_code: str | None
    route: str | None
    upstream: str | None
    attempts: tuple[Attempt, ...]
    is_stream: bool
    duration_seconds: float
    ttft_seconds: float | None
    inter_token_seconds: float | None
    token_seconds: float | None
    """Mean time of an output token, for a whole stream whose upstream told their number."""
    overhead: Overhead | None
    queued_seconds: float
    admitted_at: float | None
    first_content_written_at: float | None
    gaps: Gaps | None
    """None for what had no content event."""
    backpressure_seconds: float
    usage: Usage | None
    usage_source: UsageSource | None
    cost: int
    """In billionths of a US dollar; 0 where no price is known."""
    refused_by: str | None
    """Which kind of limit refused it."""
    finish_reason: str | None
    bytes_out: int
    rewritten: str | None

    @property
    def is_quiet(self) -> bool:
        """Tell whether it is nobody's business: a list of models that was given. One that was refused is a look-up that failed."""
        return self.request.operation is Operation.MODELS and self.outcome is Outcome.COMPLETE


def _never_late(start: float, end: float) -> float:
    return 0.0


def summarize(exchange: Exchange, now: float, lateness: Lateness = _never_late) -> Summary:
    """Freeze an ended exchange for those who observe it; `now` is when it ended, `lateness` tells of the event loop."""
    request = exchange.request
    last = exchange.attempts[-1] if exchange.attempts else None
    meter = last.meter if last is not None else StreamMeter()
    written_at = exchange.first_content_written_at
    outcome = exchange.outcome or Outcome.INTERNAL_ERROR
    usage = exchange.usage or meter.usage
    return Summary(
        request=request,
        outcome=outcome,
        status=exchange.status if exchange.status is not None else 499,
        error_code=exchange.error_code,
        route=exchange.route.name if exchange.route is not None else None,
        upstream=last.target.upstream.name if last is not None else None,
        attempts=tuple(exchange.attempts),
        is_stream=request.is_stream,
        duration_seconds=now - request.received_at,
        ttft_seconds=written_at - request.received_at if written_at is not None else None,
        inter_token_seconds=_mean_gap(meter),
        token_seconds=_token_seconds(outcome, meter),
        overhead=_overhead(exchange, meter, now),
        queued_seconds=exchange.queued_seconds,
        admitted_at=exchange.admitted_at,
        first_content_written_at=written_at,
        gaps=_gaps(exchange, meter, now, lateness) if meter.first_content_at is not None else None,
        backpressure_seconds=exchange.backpressure_seconds,
        usage=usage,
        usage_source=exchange.usage_source or (UsageSource.REPORTED if usage is not None else None),
        cost=exchange.cost,
        refused_by=exchange.refused_by,
        finish_reason=meter.finish_reason,
        bytes_out=exchange.bytes_out,
        rewritten=exchange.is_rewritten,
    )


def _span(start: float | None, end: float | None) -> float | None:
    return end - start if start is not None and end is not None else None


def _mean_gap(meter: StreamMeter) -> float | None:
    if meter.content_events < 2 or meter.first_content_at is None:
        return None
    return (meter.last_content_at - meter.first_content_at) / (meter.content_events - 1)


def _token_seconds(outcome: Outcome, meter: StreamMeter) -> float | None:
    if outcome is not Outcome.COMPLETE or meter.usage is None or meter.first_content_at is None:
        return None
    # Reasoning that was not streamed took no time between the first and the last content.
    tokens = meter.usage.output - (meter.usage.reasoning if meter.first_reasoning_at is None else 0)
    return (meter.last_content_at - meter.first_content_at) / (tokens - 1) if tokens > 1 else None


def _overhead(exchange: Exchange, meter: StreamMeter, now: float) -> Overhead | None:
    if not exchange.attempts:
        return None
    last = exchange.attempts[-1]
    # Of several attempts that run at once the one that answered stands last.
    begun_at = min(attempt.started_at for attempt in exchange.attempts)
    event = _span(meter.first_content_at, exchange.first_content_written_at)
    finish = _span(last.body_ended_at, now)
    return Overhead(
        request=max(begun_at - exchange.request.received_at - exchange.queued_seconds, 0.0),
        event=None if event is None else max(event, 0.0),
        finish=finish if exchange.outcome is Outcome.COMPLETE else None,
    )


def _gaps(exchange: Exchange, meter: StreamMeter, now: float, lateness: Lateness) -> Gaps:
    begun_at = meter.first_content_at
    assert begun_at is not None
    # What comes after the terminator is nobody's loss.
    ended_at = meter.terminal_at or now
    silences = meter.silences
    if ended_at - meter.last_content_at > STALL_SECONDS:
        silences = [*silences, (meter.last_content_at, ended_at)]
    return split_gaps((begun_at, ended_at), silences, exchange.pauses, exchange.backpressure_seconds, lateness)
