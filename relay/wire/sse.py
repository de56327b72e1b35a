"""Server-sent events read from a copy of the bytes, whatever the cuts (WHATWG HTML 9.2.6).

LF, CRLF and lone CR end a line; a blank line dispatches; a leading BOM is not part of the first line. Two things beyond
the standard: the line `data: [DONE]` is told as soon as it has ended, since some servers leave out the blank line after it;
and an event larger than 1 MiB is told as oversized instead of being collected, so that memory stays bounded (image streams
send megabytes on one line).
"""

from typing import Final, NamedTuple

MAX_EVENT_BYTES: Final = 2**20
"""Sum of an event's lines, comments and line ends not counted, so that it does not depend on how the bytes were cut."""

_BOM: Final = b"\xef\xbb\xbf"
_LF: Final = 10
_CR: Final = 13
_COLON: Final = 58


class Event(NamedTuple):
    """One dispatched event. `data` is its data lines joined by LF; None when the event was oversized."""

    name: bytes
    data: bytes | None


DONE: Final = Event(b"", b"[DONE]")
"""The line `data: [DONE]` at the head of an event: this very object, at the end of the line, not of the event."""


class EventSplitter:
    """Incremental reader: bytes in, events out."""

    __slots__ = (
        "_data",
        "_head",
        "_is_after_cr",
        "_is_comment",
        "_is_oversized",
        "_is_pending",
        "_name",
        "_partial",
        "_partial_bytes",
        "_size",
    )

    def __init__(self) -> None:
        self._head: bytes | None = b""
        """What came so far of a possible BOM; None once that is settled."""
        self._is_after_cr = False
        self._partial = bytearray()
        self._partial_bytes = 0
        self._is_comment = False
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._is_pending = False
        self._is_oversized = False

    @property
    def at_boundary(self) -> bool:
        """Tell whether an event may be appended here without gluing it to a part of another."""
        return not (self._is_pending or self._partial_bytes or self._head)

    @property
    def is_fresh(self) -> bool:
        """Tell whether the next bytes can be read without knowing anything of those before."""
        return not (self._is_pending or self._partial_bytes or self._is_after_cr) and self._head is None

    def feed(self, data: bytes) -> list[Event]:
        """Read the next bytes and return the events that they complete. Never raises."""
        if self._head is not None:
            data = self._settle_bom(data)
        if self._is_after_cr and data:
            data = data.removeprefix(b"\n")
            self._is_after_cr = False
        if not data:
            return []
        events: list[Event] = []
        lines = data.splitlines(keepends=True)
        last = lines.pop() if data[-1] != _LF and data[-1] != _CR else b""
        self._is_after_cr = data[-1] == _CR
        if lines and self._partial_bytes:
            self._finish_partial(lines[0], events)
            del lines[0]
        for line in lines:
            self._line(line.rstrip(b"\r\n"), events)
        if last:
            self._keep(last)
        return events

    def _settle_bom(self, data: bytes) -> bytes:
        head = (self._head or b"") + data
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(_BOM)

    def _keep(self, piece: bytes) -> None:
        if not self._partial_bytes:
            self._is_comment = piece[0] == _COLON
        self._partial_bytes += len(piece)
        if self._is_comment or self._is_oversized:
            return
        if self._size + self._partial_bytes > MAX_EVENT_BYTES:
            self._give_up()
        else:
            self._partial += piece

    def _finish_partial(self, end: bytes, events: list[Event]) -> None:
        piece = end.rstrip(b"\r\n")
        if piece:
            self._keep(piece)
        line = bytes(self._partial)
        self._partial.clear()
        self._partial_bytes = 0
        if self._is_oversized:
            self._is_pending = True
        elif not self._is_comment:
            self._line(line, events)

    def _give_up(self) -> None:
        self._is_oversized = True
        self._partial.clear()
        self._data.clear()

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not line:
            self._dispatch(events)
            return
        if line[0] == _COLON:
            return
        self._is_pending = True
        self._size += len(line)
        if self._is_oversized or self._size > MAX_EVENT_BYTES:
            self._give_up()
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            if value == b"[DONE]" and not self._data:
                events.append(DONE)
            self._data.append(value)
        elif name == b"event":
            self._name = value.removeprefix(b" ")

    def _dispatch(self, events: list[Event]) -> None:
        if self._is_oversized:
            events.append(Event(self._name, None))
        elif self._data and not (len(self._data) == 1 and self._data[0] == b"[DONE]"):
            events.append(Event(self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)))
        self._data = []
        self._name = b""
        self._size = 0
        self._is_pending = False
        self._is_oversized = False
