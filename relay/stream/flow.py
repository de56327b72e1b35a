"""Tokens of a stream, counted while they flow, where a limit of its caller counts them.

Nothing is decoded for it. `Tally` takes one content event as one token and tells the limits now and then: the answer goes on whatever they
say, and its reported usage corrects them in the end. `Brake` stops the stream, and a stopped stream is never corrected, so it looks
at each event by itself, however the bytes were cut, and takes a large one for what it is.
"""

from collections.abc import Callable, Sequence
from typing import Final

from relay.exchange import StreamMeter

STEP: Final = 16
"""Tokens between two looks of a tally at the least: a limit's lock and ring are not worth a token."""
STEP_PART: Final = 8
"""In a long answer, which part of it so far may be untold: what it used is known to an eighth, for next to nothing per event."""
SLACK_BYTES: Final = 64
"""How much longer than the shortest an event of one token may be: a long word, and the padding that hides its length."""
_BYTES_PER_TOKEN: Final = 4

_LINE_ENDS: Final = (b"\n", b"\r\n", b"\r")


class Tally:
    """Counts, and lets everything pass."""

    __slots__ = ("_debit", "_meter", "due")

    def __init__(self, meter: StreamMeter, debit: Callable[[int], bool]) -> None:
        """Tell `debit` the tokens that `meter` has seen."""
        self._meter = meter
        self._debit = debit
        self.due = STEP
        """How many tokens there are to be for the next `tell`."""

    def tell(self) -> None:
        """Tell the limits what has flowed."""
        count = self._meter.content_events
        self.due = count + max(STEP, count // STEP_PART)
        self._debit(count)


class Brake:
    """Counts, and stops the stream when a limit is reached."""

    __slots__ = ("_debit", "_meter", "_seen", "_seen_bytes", "_shortest")

    def __init__(self, meter: StreamMeter, debit: Callable[[int], bool]) -> None:
        """Ask `debit` whether the tokens that `meter` has seen are within the limits."""
        self._meter = meter
        self._debit = debit
        self._seen = 0
        self._seen_bytes = 0
        self._shortest = 0

    def split(self, data: bytes) -> Sequence[bytes]:
        """Cut after each blank line."""
        if data.find(b"\n\n") == len(data) - 2 and b"\r" not in data and not data.startswith(b"\n"):
            return (data,)
        pieces: list[bytes] = []
        begun: list[bytes] = []
        for line in data.splitlines(keepends=True):
            begun.append(line)
            if line in _LINE_ENDS:
                pieces.append(b"".join(begun))
                begun.clear()
        if begun:
            pieces.append(b"".join(begun))
        return pieces

    def goes_on(self) -> bool:
        """Count the event that has just come, and tell whether the limits hold; an answer that has come to its end is not stopped."""
        meter = self._meter
        new = meter.content_events - self._seen
        if not new:
            return True
        size = meter.bytes_in - self._seen_bytes
        self._seen = meter.content_events
        self._seen_bytes = meter.bytes_in
        self._shortest = min(self._shortest or size, size)
        meter.flowed_tokens += new + max(0, size - self._shortest - SLACK_BYTES) // _BYTES_PER_TOKEN
        holds = self._debit(meter.flowed_tokens)
        return holds or meter.finish_reason is not None or meter.terminal_at is not None


Flow = Tally | Brake
