"""Comments for clients that give up on silence: the answer is begun after a grace period, and comments follow while nothing else does.

Within the grace period a failure is still a real status; after it, an error event. Begun so, an answer has only the headers that are
known by then, and as long as no byte of an upstream was passed another target may still take over. Comments go out between two events
only (WHATWG HTML 9.2.6: a line that begins with a colon is ignored), without a blank line, which would be an end of an event.

One timer per stream that looks at the marks when it fires: a chunk touches nothing here.
"""

import asyncio
from time import monotonic
from typing import Final

from relay.config.tree import Heartbeat
from relay.exchange import ClientRequest, Exchange, Framing, Operation, ResponseHead, State
from relay.forward.attempt import Attempting
from relay.forward.ports import Sink

COMMENT: Final = b": relay\n"
HEAD: Final = ResponseHead(
    status=200,
    headers=((b"content-type", b"text/event-stream"),),
    framing=Framing.CHUNKED,
    content_length=None,
    content_type=b"text/event-stream",
    is_encoded=False,
    received_at=0.0,
)
_STREAMING: Final = frozenset({Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES})
"""The endpoints that answer `stream: true` with events."""


def takes_comments(request: ClientRequest) -> bool:
    """Tell whether the answer that is asked for can begin with comments."""
    return request.is_stream and request.operation in _STREAMING


class Heart:
    """The comments of one exchange."""

    __slots__ = ("_every", "_exchange", "_next_at", "_run", "_sink", "_timer")

    def __init__(self, exchange: Exchange, sink: Sink, settings: Heartbeat) -> None:
        """Begin the answer when nothing else has within the grace period."""
        self._exchange = exchange
        self._sink = sink
        self._every = settings.every
        self._next_at = exchange.request.received_at + settings.after
        self._run: Attempting | None = None
        self._timer = self._at(self._next_at)

    def follow(self, run: Attempting) -> None:
        """Take note that `run` answers from now on."""
        self._run = run

    def stop(self) -> None:
        """Say nothing more: the exchange is over."""
        self._timer.cancel()

    def _at(self, instant: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(max(instant - monotonic(), 0.0), self._look)

    def _look(self) -> None:
        run = self._run
        now = monotonic()
        if run is not None:
            if not run.is_open or run.done.done():
                return  # a refusal was passed, or all of the answer
            # Not before the first beat was due, and then only into a silence.
            self._next_at = max(self._next_at, run.attempt.meter.last_byte_at + self._every)
        if now >= self._next_at:
            self._beat(run)
            self._next_at = now + self._every
        self._timer = self._at(self._next_at)

    def _beat(self, run: Attempting | None) -> None:
        exchange = self._exchange
        if run is None and exchange.state is State.TRYING:
            exchange.is_begun_early = True
            self._sink.open(exchange, HEAD, COMMENT)
            exchange.move(State.COMMITTED)
            exchange.status = HEAD.status
        elif self._sink.is_paused or (run is not None and not run.is_between_events):
            return
        else:
            self._sink.write(COMMENT)
        exchange.is_rewritten = "heartbeat"
