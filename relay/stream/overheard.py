"""The client's side of an answer whose beginning somebody keeps, for the log."""

from relay.errors import UpstreamError
from relay.exchange import Outcome
from relay.stream.ends import Port


class Overheard:
    """Stands before the port of a relay and notes what reaches the client; the bytes pass as they are."""

    __slots__ = ("_kept", "_most", "_port", "content_written", "hold", "terminal")

    def __init__(self, port: Port, kept: bytearray, most: int) -> None:
        """Put at most `most` bytes into `kept`."""
        self._port = port
        self._kept = kept
        self._most = most
        self.hold = port.hold
        self.content_written = port.content_written
        self.terminal = port.terminal

    def open(self, first: bytes) -> bool:
        """Send the response head and `first`."""
        if not self._port.open(first):
            return False
        self._keep(first)
        return True

    def write(self, data: bytes) -> None:
        """Send further bytes."""
        self._port.write(data)
        self._keep(data)

    def failed(self, error: UpstreamError) -> None:
        """Nothing reached the client, and nothing of this attempt will."""
        self._port.failed(error)

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None:
        """End the answer."""
        self._port.ended(outcome, code, is_clean=is_clean, can_append=can_append)

    def _keep(self, data: bytes) -> None:
        room = self._most - len(self._kept)
        if room > 0:
            self._kept += data[:room]
