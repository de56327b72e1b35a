"""What telling of one request costs: its summary, every metric, its log line.

Run as `python -m bench.telemetry`; prints one JSON line with the CPU in microseconds for a stream and for a plain answer, of the quickest
of several rounds. It is a part of what `json` and `stream-overhead` show, too small to be read off them.
"""

import json
import time
from collections.abc import Callable

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
    StreamMeter,
    Usage,
    summarize,
)
from relay.telemetry.logs import LogWriter, RequestLog, make_request_line
from relay.telemetry.metrics import Metrics

_REQUESTS = 5_000
_ROUNDS = 9
_HEADERS = tuple((f"x-made-up-{number}".encode(), b"value") for number in range(14))


class _Nowhere(LogWriter):
    """Takes lines and drops them: what the thread does with them is not the request's."""

    def __init__(self) -> None:
        """Start no thread."""

    def put(self, line: str | bytes) -> None:
        """Drop the line."""


def exchange(*, is_stream: bool) -> tuple[Config, Exchange]:
    """Return an ended exchange as it is at its end, and the configuration it belongs to."""
    upstream = Upstream(name="up", base_url="http://127.0.0.1/v1")
    route = Route(name="fast", targets=(Target(upstream=upstream, model="m"),), timeouts=Timeouts())
    request = ClientRequest(
        id="0123456789abcdef",
        method="POST",
        path="/v1/chat/completions",
        query=None,
        headers=_HEADERS,
        operation=Operation.CHAT,
        received_at=10.0,
        client_ip="127.0.0.1",
        model="fast",
        key=Key(name="alice"),
        is_stream=is_stream,
    )
    meter = StreamMeter(usage=Usage(input=180, output=80))
    if is_stream:
        meter.first_event_at = meter.first_content_at = 10.4
        meter.last_content_at, meter.terminal_at, meter.content_events = 11.4, 11.5, 80
    head = ResponseHead(
        status=200,
        headers=_HEADERS,
        framing=Framing.CHUNKED,
        content_length=None,
        content_type=b"text/event-stream" if is_stream else b"application/json",
        is_encoded=False,
        received_at=10.3,
    )
    attempt = Attempt(target=route.targets[0], started_at=10.01, sent_at=10.02, head=head, meter=meter)
    attempt.result, attempt.body_ended_at = AttemptResult.SUCCESS, 11.5
    made = Exchange(request=request, route=route, attempts=[attempt], status=200, outcome=Outcome.COMPLETE, admitted_at=10.01)
    if is_stream:
        made.first_content_written_at = 10.401
    return Config(upstreams={"up": upstream}, routes={"fast": route}), made


def teller(*, is_stream: bool) -> Callable[[], None]:
    """Return what happens once per request."""
    config, made = exchange(is_stream=is_stream)
    metrics = Metrics(config, "bench", connections=dict, dropped=lambda: 0)
    log = RequestLog(None, make_request_line(_Nowhere(), None, is_terminal=False))

    def tell() -> None:
        metrics.began()
        metrics.routed(made)
        summary = summarize(made, 11.6)
        metrics.ended(made, summary)
        log.ended(made, summary)

    return tell


def cost_us(tell: Callable[[], None]) -> float:
    """Return the CPU of one call in microseconds."""
    best = float("inf")
    for _ in range(_ROUNDS):
        before = time.process_time_ns()
        for _ in range(_REQUESTS):
            tell()
        best = min(best, (time.process_time_ns() - before) / _REQUESTS / 1e3)
    return best


if __name__ == "__main__":
    print(json.dumps({"stream_us": cost_us(teller(is_stream=True)), "json_us": cost_us(teller(is_stream=False))}))
