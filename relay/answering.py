"""What an upstream's response head decides: whether the answer is usable, how its body is relayed, what a refusal says of itself."""

from time import time

from relay.config.tree import Upstream
from relay.errors import UpstreamRefused
from relay.exchange import JSON_OPERATIONS, ClientRequest, ResponseHead, StreamMeter
from relay.policy.backoff import retry_after
from relay.stream import BodyRelay, EventRelay, HoldBudget, OpaqueRelay, Port, WholeRelay
from relay.wire.openai import parse_error


def choose_relay(
    port: Port, meter: StreamMeter, budget: HoldBudget, request: ClientRequest, head: ResponseHead, upstream: Upstream
) -> BodyRelay:
    """Return the relay for the body of `head`: events, an answer that is held until it is whole, or bytes that pass at once."""
    is_ok = head.status < 300 or head.status == 304
    if is_ok and not head.is_encoded and _looks_like_events(request, head):
        return EventRelay(port, meter, request.operation, can_lack_done=upstream.done_optional)
    is_json = is_ok and request.operation in JSON_OPERATIONS
    if request.is_head or head.status in (204, 304) or not (is_json or not is_ok or head.content_type == b"application/json"):
        return OpaqueRelay(port, meter, is_open_proof=not head.is_event_stream)
    is_close_delimited = head.framing.value == "close"
    return WholeRelay(port, meter, budget, is_json=is_json, is_encoded=head.is_encoded, is_close_delimited=is_close_delimited)


def is_unusable(head: ResponseHead, request: ClientRequest) -> bool:
    """Tell whether a 2xx cannot be an answer to `request`, whatever its body holds."""
    return request.operation in JSON_OPERATIONS and (head.content_type == b"text/html" or head.status in (204, 205))


def is_replaced(status: int, upstream: Upstream) -> bool:
    """Tell whether the caller never sees a refusal of this status as it came (ruling 9)."""
    if status in (401, 402, 403):
        return not upstream.is_passthrough
    return 300 <= status < 400


def read_refusal(head: ResponseHead, body: bytes, upstream: Upstream) -> UpstreamRefused:
    """Read what a refusal says of itself, as far as its body has come."""
    type_, code = parse_error(body) if body and not head.is_encoded else (None, None)
    wait = retry_after(head.headers, time(), body)
    return UpstreamRefused(head.status, vendor=upstream.vendor, type=type_, code=code, retry_after=wait)


def _looks_like_events(request: ClientRequest, head: ResponseHead) -> bool:
    if head.is_event_stream:
        return not request.is_head
    # Some servers stream events without saying so.
    return request.is_stream and head.content_type in (b"", b"text/plain")
