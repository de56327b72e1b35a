"""A client's bytes on their way up a tunnel: an upstream that takes no more stops the reading."""

from collections.abc import Callable

from relay.forward.ports import Call, Sink


class FromClient:
    """Takes what the client of a tunnel sends."""

    __slots__ = ("_call", "_sink")

    def __init__(self, sink: Sink, call: Callable[[], Call | None]) -> None:
        """Pass it to what `call` returns, once that is there."""
        self._sink = sink
        self._call = call

    def take(self, data: bytes) -> None:
        """Send `data` up."""
        call = self._call()
        if call is None:
            return
        call.write(data)
        if call.is_full:
            self._sink.set_reading(on=False)
            call.on_writable = self._read_again

    def _read_again(self) -> None:
        self._sink.set_reading(on=True)
