"""The client's side of a stream whose usage only the relay asked for: what tells it goes no further than here."""

from relay.errors import UpstreamError
from relay.exchange import Exchange, Outcome
from relay.stream.ends import Port
from relay.wire.unasked import EVENT_ENDS, UsageRemover, find_empty_list


class WithoutUsage:
    """Stands before the port of an event relay; the observer has read the bytes by then."""

    __slots__ = ("_exchange", "_port", "_remover", "content_written", "hold", "terminal")

    def __init__(self, port: Port, exchange: Exchange) -> None:
        self._port = port
        self._exchange = exchange
        self._remover = UsageRemover()
        self.hold = port.hold
        self.content_written = port.content_written
        self.terminal = port.terminal

    def open(self, first: bytes) -> bool:
        """Send the response head and what can pass of `first`."""
        self._exchange.is_rewritten = "usage"
        return self._port.open(self._remover.feed(first))

    def write(self, data: bytes) -> None:
        """Send what can pass."""
        remover = self._remover
        # What `feed` asks first, written out: nearly every chunk ends here.
        if remover.is_fresh and data.endswith(EVENT_ENDS) and find_empty_list(data) is None:
            self._port.write(data)
            return
        data = remover.feed_any(data)
        if data:
            self._port.write(data)

    def failed(self, error: UpstreamError) -> None:
        """Nothing reached the client, and nothing of this attempt will."""
        self._port.failed(error)

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None:
        """End the answer, with what was held."""
        rest = self._remover.rest()
        if rest:
            self._port.write(rest)
        self._port.ended(outcome, code, is_clean=is_clean, can_append=can_append)
