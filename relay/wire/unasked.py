"""The event that tells a stream's usage, taken out of it for a client that did not ask for it; every other byte stays.

Taken out is exactly the event with `choices: []` and a usage that is not null, its line ends and blank line included.

What is delayed: nobody acts on less than a whole event, so an event's lines wait until its blank line has come, and then pass in
one piece. Three things never wait, because a reader acts on them or they could be endless: comments between events (they keep
connections alive), the line `data: [DONE]`, and an event of more than 64 KiB from there on. Whole events in one piece, which is nearly
all of them, cost one search for an empty list, which the event in question cannot do without.
"""

import re
from enum import Enum
from typing import Final

import msgspec

MAX_HELD_BYTES: Final = 64 * 2**10
"""Usage is told in a few hundred bytes; a larger event is something else, and images come in megabytes."""

_BOM: Final = b"\xef\xbb\xbf"
_LINE_ENDS: Final = (b"\n", b"\r\n", b"\r")
EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
find_empty_list: Final = re.compile(rb"\[[ \t\r\n]*\]").search
_DONE: Final = (b"data: [DONE]", b"data:[DONE]")


class _Told(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw]
    usage: msgspec.Raw


_decode: Final = msgspec.json.Decoder(_Told).decode


class _State(Enum):
    BETWEEN = "between"
    COMMENT = "comment"
    """In a comment line between two events."""
    HOLDING = "holding"
    PASSING = "passing"
    """In an event that passes as it comes."""


class UsageRemover:
    """Takes the usage out of one stream, whatever the cuts."""

    __slots__ = ("_head", "_held", "_is_after_cr", "_is_line_begun", "_line_at", "_size", "_state", "_was_removed", "is_fresh")

    def __init__(self) -> None:
        self._head: bytes | None = b""
        """What came so far of a possible byte order mark; None once that is settled."""
        self._state = _State.BETWEEN
        self._held: list[bytes] = []
        """The begun event."""
        self._size = 0
        self._line_at = 0
        """Where in it the last line begins."""
        self._is_line_begun = False
        self._is_after_cr = False
        self._was_removed = False
        """Whether the last line went with an event that was taken out: then so does an LF that follows its CR."""
        self.is_fresh = False
        """Whether the next byte begins an event, whatever came before."""

    def feed(self, data: bytes) -> bytes:
        """Return what can pass of what was held and `data`. Never raises."""
        if self.is_fresh and data.endswith(EVENT_ENDS) and find_empty_list(data) is None:
            return data
        return self.feed_any(data)

    def rest(self) -> bytes:
        """Return what is still held, once: the stream is over, and half an event is none to be taken out."""
        rest = (self._head or b"") + b"".join(self._held)
        self._head = None
        self._drop()
        return rest

    def feed_any(self, data: bytes) -> bytes:
        """Do what `feed` does, whatever comes."""
        passed: list[bytes] = []
        if self._head is not None:
            data = self._settle_head(self._head + data, passed)
        if self._is_after_cr and data:
            if data[:1] == b"\n":
                self._end_cr(passed)
                data = data[1:]
            self._is_after_cr = False
        for line in data.splitlines(keepends=True):
            self._take(line, passed)
        if data:
            self._is_after_cr = data.endswith(b"\r")
        self.is_fresh = self._state is _State.BETWEEN and not self._is_after_cr and self._head is None
        return b"".join(passed)

    def _settle_head(self, data: bytes, passed: list[bytes]) -> bytes:
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._head = data
            return b""
        self._head = None
        if data.startswith(_BOM):
            passed.append(_BOM)
        return data.removeprefix(_BOM)

    def _end_cr(self, passed: list[bytes]) -> None:
        if self._state is _State.HOLDING:
            self._held.append(b"\n")
            self._line_at = len(self._held)
        elif not self._was_removed:
            passed.append(b"\n")

    def _take(self, line: bytes, passed: list[bytes]) -> None:
        is_ended = line.endswith(_LINE_ENDS)
        is_blank = not self._is_line_begun and line in _LINE_ENDS
        self._is_line_begun = not is_ended
        if self._state is _State.BETWEEN and not is_blank:
            self._state = _State.COMMENT if line.startswith(b":") else _State.HOLDING
        if self._state is _State.HOLDING:
            self._hold(line, passed, is_ended=is_ended, is_blank=is_blank)
            return
        passed.append(line)
        self._was_removed = False
        if is_blank or (is_ended and self._state is _State.COMMENT):
            self._state = _State.BETWEEN

    def _hold(self, line: bytes, passed: list[bytes], *, is_ended: bool, is_blank: bool) -> None:
        self._held.append(line)
        self._size += len(line)
        if is_blank:
            event = b"".join(self._held)
            self._was_removed = _is_usage_alone(event)
            if not self._was_removed:
                passed.append(event)
            self._drop()
            self._state = _State.BETWEEN
        elif self._size > MAX_HELD_BYTES or (is_ended and b"".join(self._held[self._line_at :]).rstrip(b"\r\n") in _DONE):
            passed.append(b"".join(self._held))
            self._drop()
            self._was_removed = False
            self._state = _State.PASSING
        elif is_ended:
            self._line_at = len(self._held)

    def _drop(self) -> None:
        self._held.clear()
        self._size = self._line_at = 0


def _is_usage_alone(event: bytes) -> bool:
    if find_empty_list(event) is None:
        return False
    values = []
    for line in event.splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    try:
        told = _decode(b"\n".join(values))
    except (ValueError, RecursionError):
        return False
    return not told.choices and bytes(told.usage) != b"null"
