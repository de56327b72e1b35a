"""Hand-made exchanges and their summaries."""

from typing import Any

from msgspec.structs import replace

from relay.config.tree import Config, Key, Route, Target, Timeouts, Upstream
from relay.exchange import (
    Attempt,
    AttemptResult,
    ClientRequest,
    Exchange,
    Framing,
    Operation,
    Outcome,
    ResponseHead,
    Summary,
    summarize,
)

MINE = Upstream(name="mine", base_url="http://mine/v1")
OTHER = Upstream(name="other", base_url="http://other/v1")
FAST = Route(name="fast", targets=(Target(upstream=MINE, model="m"), Target(upstream=OTHER, model="n")), timeouts=Timeouts())
STAR = Route(name="*", targets=(Target(upstream=MINE, model="*"),), timeouts=Timeouts())
ALICE = {b"digest": Key(name="alice")}
CONFIG = Config(upstreams={"mine": MINE, "other": OTHER}, routes={"fast": FAST, "*": STAR}, keys=ALICE)


def attempt(target: Target = FAST.targets[0], result: AttemptResult | None = AttemptResult.SUCCESS, **marks: Any) -> Attempt:
    """An attempt that is over."""
    made = Attempt(target=target, started_at=10.1, sent_at=10.2)
    made.result = result
    for name, value in marks.items():
        setattr(made, name, value)
    return made


def head(status: int) -> ResponseHead:
    """An upstream's response head."""
    return ResponseHead(
        status=status, headers=(), framing=Framing.NONE, content_length=None, content_type=b"", is_encoded=False, received_at=10.3
    )


def ended(
    outcome: Outcome = Outcome.COMPLETE,
    *attempts: Attempt,
    status: int = 200,
    route: Route | None = FAST,
    operation: Operation = Operation.CHAT,
    is_stream: bool = True,
    key: str | None = "alice",
    error_code: str | None = None,
    **request: Any,
) -> tuple[Exchange, Summary]:
    """An exchange that lasted two seconds, and its summary."""
    made = ClientRequest(
        id="id-1",
        method="POST",
        path="/v1/chat/completions",
        query=None,
        headers=(),
        operation=operation,
        received_at=10.0,
        client_ip="127.0.0.1",
        model="fast",
        key=None if key is None else Key(name=key),
        is_stream=is_stream,
    )
    exchange = Exchange(request=replace(made, **request), route=route)
    exchange.outcome, exchange.status, exchange.error_code = outcome, status, error_code
    exchange.attempts.extend(attempts)
    return exchange, summarize(exchange, 12.0)
