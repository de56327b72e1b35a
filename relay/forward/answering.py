"""What an upstream's answer means: whether it is usable, how its body is relayed, what a refusal says, how an error stands in a stream."""

from time import time

from relay.config.tree import OnLimit
from relay.errors import ErrorEvent, UpstreamError, UpstreamRefused, break_error, error_answer
from relay.exchange import (
    JSON_OPERATIONS,
    MAX_OVERHEARD,
    Attempt,
    ClientRequest,
    Exchange,
    Framing,
    Operation,
    Outcome,
    ResponseHead,
    StreamMeter,
)
from relay.policy.backoff import retry_after
from relay.policy.refusals import Blame
from relay.policy.routing import Choice
from relay.policy.verdicts import judge
from relay.stream import BodyRelay, Brake, EventRelay, Flow, HoldBudget, OpaqueRelay, Overheard, Port, Tally, WholeRelay, WithoutUsage
from relay.wire.faults import ErrorWords, error_envelope, parse_error
from relay.wire.openai import error_event


def choose_relay(port: Port, exchange: Exchange, attempt: Attempt, budget: HoldBudget, head: ResponseHead) -> BodyRelay:
    """Return the relay for the body of `head`: events, an answer that is held until it is whole, or bytes that pass at once."""
    request, meter, upstream = exchange.request, attempt.meter, attempt.target.upstream
    if exchange.overheard is not None:
        port = Overheard(port, exchange.overheard, MAX_OVERHEARD)
    is_ok = head.status < 300 or head.status == 304
    if is_ok and not head.is_encoded and _looks_like_events(request, head):
        flow = flow_of(exchange, meter)
        if exchange.adds_usage and not upstream.no_stream_options:
            port = WithoutUsage(port, exchange)
        return EventRelay(port, meter, request.operation, can_lack_done=upstream.done_optional, flow=flow)
    is_json = is_ok and request.operation in JSON_OPERATIONS
    if request.is_head or head.status in (204, 304) or not (is_json or not is_ok or head.content_type == b"application/json"):
        return OpaqueRelay(port, meter, is_open_proof=not head.is_event_stream)
    is_close_delimited = head.framing is Framing.CLOSE
    return WholeRelay(port, meter, budget, is_json=is_json, is_encoded=head.is_encoded, is_close_delimited=is_close_delimited)


def flow_of(exchange: Exchange, meter: StreamMeter) -> Flow | None:
    """Return who counts the tokens of a stream as they flow; None where no limit counts them."""
    if exchange.debit is None or exchange.route is None:
        return None
    return Brake(meter, exchange.debit) if exchange.route.on_limit is OnLimit.STOP else Tally(meter, exchange.debit)


def is_unusable(head: ResponseHead, request: ClientRequest) -> bool:
    """Tell whether a 2xx cannot be an answer to `request`, whatever its body holds."""
    return request.operation in JSON_OPERATIONS and (head.content_type == b"text/html" or head.status in (204, 205))


def is_replaced(refusal: UpstreamRefused | ErrorEvent, choice: Choice) -> bool:
    """Tell whether the caller never sees `refusal` as it came, for it is about a credential of the relay."""
    if refusal.status not in (401, 402, 403) or choice.target.upstream.is_passthrough:
        return False
    return judge(refusal, choice).blame is not Blame.NOBODY


def as_told(error: UpstreamError, refusal: UpstreamRefused | None, choice: Choice) -> UpstreamError:
    """Return what the failure of an attempt is told as, `refusal` being what it had been answered with before it failed."""
    if isinstance(error, ErrorEvent):
        error.is_replaced = is_replaced(error, choice)
    # Whatever became of its body, the refusal of our credential is what there is to know.
    return refusal if refusal is not None and is_replaced(refusal, choice) else error


def read_refusal(head: ResponseHead, body: bytes) -> UpstreamRefused:
    """Read what a refusal says of itself, as far as its body has come."""
    words = parse_error(body) if body and not head.is_encoded else ErrorWords()
    wait = retry_after(head.headers, time(), body)
    return UpstreamRefused(head.status, type=words.type, code=words.code, message=words.message, retry_after=wait)


def _looks_like_events(request: ClientRequest, head: ResponseHead) -> bool:
    if head.is_event_stream:
        return not request.is_head
    # Some servers stream events without saying so.
    return request.is_stream and head.content_type in (b"", b"text/plain")


def outcome_with(outcome: Outcome, refusal: UpstreamRefused | None, choice: Choice) -> Outcome:
    """Return what an answer that ended with `outcome` was, `refusal` taken in when it was one."""
    return outcome if refusal is None or outcome is not Outcome.COMPLETE else outcome_of(refusal, choice)


def outcome_of(refusal: UpstreamRefused | ErrorEvent, choice: Choice) -> Outcome:
    """Return what an exchange was whose answer is `refusal`."""
    # One that would have fallen back, had the route or the budget had more, is no fault of the caller's.
    verdict = judge(refusal, choice)
    return Outcome.UPSTREAM_FAILED if verdict.fall_back and not verdict.is_callers else Outcome.REJECTED


def break_event(operation: Operation, code: str) -> bytes:
    """Return the error event that ends an answer which the upstream broke off."""
    return error_event(operation, break_error(code))


def refusal_event(operation: Operation, refusal: UpstreamRefused, body: bytes) -> bytes:
    """Return a refusal as an error event, in the upstream's own words where it has sent them as JSON."""
    return error_event(operation, error_envelope(body) or error_answer(refusal).body())
