"""What an attempt needs from the outside: the client's side, the upstream's connection, a body to send.

The rooms that touch sockets implement these; `attempt` and `forward` know nothing else of them.
"""

from collections.abc import Callable
from typing import Protocol

from relay.exchange import Exchange, ResponseHead, UpstreamRequest
from relay.policy.limits import Demand, Grant, Refusal
from relay.stream import BodyEnd


class Sink(Protocol):
    """The client's side of one exchange. Writing never blocks and never raises; a client that is gone swallows bytes."""

    is_paused: bool
    """Whether the client's buffers are full."""
    is_closed: bool
    """Whether the client's connection is gone."""
    write: Callable[[bytes], None]

    def open(self, exchange: Exchange, head: ResponseHead, first: bytes) -> None:
        """Send the response head of `head`, filtered, together with `first`."""

    def switch(self, exchange: Exchange, head: ResponseHead, first: bytes, take: Callable[[bytes], None]) -> None:
        """Leave HTTP: send an upstream's 101 and `first`; from now on what the client sends goes to `take`."""

    def set_reading(self, *, on: bool) -> None:
        """Stop or go on reading from the client of a tunnel."""

    def finish(self) -> None:
        """End the answer cleanly."""

    def cut(self, last: bytes) -> None:
        """Send `last`, then end the answer so that every HTTP library reports it as incomplete."""

    def follow(self, call: "Call | None") -> None:
        """Pause and resume `call` as the client's buffers fill and drain."""


class Call(Protocol):
    """One request on an upstream's connection."""

    on_writable: Callable[[], None] | None
    """Called when the upstream takes bytes again."""

    @property
    def is_reused(self) -> bool:
        """Tell whether the connection had served another request before."""

    @property
    def is_full(self) -> bool:
        """Tell whether the upstream takes no more bytes for now."""

    @property
    def full_since(self) -> float | None:
        """Tell since when the upstream takes no more bytes; None when it does."""

    def write(self, data: bytes) -> None:
        """Send body bytes of an upload, or bytes of a tunnel."""

    async def drain(self) -> None:
        """Wait until the upstream takes more bytes; returns at once when it is gone."""

    def upload_done(self) -> None:
        """Take note that the whole body was sent."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again."""

    def close(self, receiver: "Receiver") -> None:
        """Give up the call of `receiver`: close the connection, unless the answer is whole and it went back to the pool."""


class Feed(Protocol):
    """Takes body bytes."""

    @property
    def feed(self) -> Callable[[bytes, float], None]:
        """Take bytes with the instant they came."""


class Receiver(Protocol):
    """Who is told what the upstream answers."""

    @property
    def relay(self) -> "Feed | None":
        """Who takes the body: there from `head` on."""

    @property
    def switch(self) -> Callable[[ResponseHead, bytes], None] | None:
        """Who takes a 101 and the bytes after it; None when none was asked for."""

    def head(self, head: ResponseHead) -> None:
        """Take the final response head."""

    def end(self, how: BodyEnd, *, anything: bool) -> None:
        """Take the end; `anything` tells whether any byte of an answer had come. Called once."""

    def crash(self, error: Exception) -> None:
        """Take what escaped from one of the calls above, or from `relay`: a bug."""


class Upstreams(Protocol):
    """The connections to upstreams."""

    async def begin(self, request: UpstreamRequest, receiver: Receiver, connect_seconds: float, *, is_fresh: bool) -> Call:
        """Send `request` on a pooled connection (a new one when `is_fresh`). Raises ConnectFailed: nothing was sent."""


class Upload(Protocol):
    """A request body that is streamed from the client."""

    async def run(self, call: Call) -> None:
        """Copy the body to `call`. Raises ClientError when the client stalls."""


class Limiter(Protocol):
    """Who knows what was used of every limit, in this process or in many. Only `admit` may wait."""

    async def admit(self, demand: Demand) -> Grant | Refusal:
        """Take what `demand` asks for from all its scopes in one step, or refuse and take from none."""

    def debit(self, grant: Grant, tokens: int) -> bool:
        """Count that `tokens` have flowed in all; tell whether every limit of tokens still holds. Free within the reservation."""

    def settle(self, grant: Grant, tokens: int, cost: int) -> None:
        """Replace what was reserved by what was used (tokens, billionths of a dollar) and give the slots back."""

    def release(self, grant: Grant) -> None:
        """Give everything back, the place among the minute's requests too."""

    def violations(self) -> list[str]:
        """Return the names of accounting identities that do not hold."""
