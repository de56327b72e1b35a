"""The frozen record of an ended exchange, observed once by metrics and log."""

from dataclasses import dataclass

from relay.exchange.records import Attempt, ClientRequest, Exchange, Operation, Outcome, StreamMeter, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
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
    upstream_ttft_seconds: float | None
    inter_token_seconds: float | None
    overhead_seconds: float | None
    backpressure_seconds: float
    queue_seconds: float
    """0 when it found a free slot at once."""
    usage: Usage | None
    finish_reason: str | None
    bytes_out: int
    rewritten: str | None

    @property
    def is_quiet(self) -> bool:
        """Tell whether it is nobody's business: a list of models that was given. One that was refused is a look-up that failed."""
        return self.request.operation is Operation.MODELS and self.outcome is Outcome.COMPLETE


def summarize(exchange: Exchange, now: float) -> Summary:
    """Freeze an ended exchange for those who observe it; `now` is when it ended."""
    request = exchange.request
    last = exchange.attempts[-1] if exchange.attempts else None
    meter = last.meter if last is not None else StreamMeter()
    written_at = exchange.first_content_written_at
    outcome = exchange.outcome or Outcome.INTERNAL_ERROR
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
        upstream_ttft_seconds=_span(last.sent_at if last is not None else None, meter.first_content_at),
        inter_token_seconds=_mean_gap(meter),
        overhead_seconds=_overhead(exchange, meter),
        backpressure_seconds=exchange.backpressure_seconds,
        queue_seconds=exchange.queue_seconds,
        usage=meter.usage,
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


def _overhead(exchange: Exchange, meter: StreamMeter) -> float | None:
    """Add up what passed inside the relay: from the request's arrival to the first attempt, and around the first content.

    None also where nobody can tell whether a wait for a turn was before the first attempt or after it.
    """
    if not exchange.attempts or (exchange.queue_seconds and len(exchange.attempts) > 1):
        return None
    before = exchange.attempts[0].started_at - exchange.request.received_at - exchange.queue_seconds
    after = _span(meter.first_content_at, exchange.first_content_written_at) or 0.0
    return max(before, 0.0) + max(after, 0.0)
