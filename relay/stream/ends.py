"""How an upstream's body can stop, what a relay can make happen, and what all relays share."""

from enum import Enum
from typing import Final, Protocol

from relay.errors import Break, ErrorEvent, Malformation, MalformedResponse, StreamBroken, UpstreamError
from relay.exchange import EventError, Outcome

HOLD_SECONDS: Final = 2.0
"""How long the beginning of an answer may be held back: long enough to see most early failures, short enough for a person."""
HOLD_EVENT_BYTES: Final = 64 * 2**10
HOLD_BODY_BYTES: Final = 8 * 2**20
PROOF_BYTES: Final = 64 * 2**20
"""Largest close-delimited JSON answer that is parsed to see whether it is whole; a larger one counts as cut."""
COMMENT_BYTES: Final = 2**20
"""Comments alone start no clock; an upstream that sends this much of them and no event is not answering."""
DONE_GRACE_SECONDS: Final = 1.0
"""How long an upstream may keep its connection open after its terminator before we stop waiting for the end."""


class BodyEnd(Enum):
    """How the bytes of an upstream's body stopped."""

    WHOLE = "whole"
    """The framing says so: last chunk, full length, or no body at all."""
    OPEN = "open"
    """FIN of a body that only FIN ends: proves nothing by itself."""
    CUT = "cut"
    """FIN inside the framing."""
    RESET = "reset"
    GARBAGE = "garbage"
    """The framing became invalid."""


class Port(Protocol):
    """What a relay can make happen on the client's side and in its owner."""

    def hold(self) -> None:
        """Call the relay's `release` when HOLD_SECONDS have passed."""

    def open(self, first: bytes) -> bool:
        """Send the response head and `first`; False when this answer must not reach the client (it is then failed)."""

    def write(self, data: bytes) -> None:
        """Send further body bytes."""

    def content_written(self) -> None:
        """Take the time: the first content has just been written."""

    def terminal(self) -> None:
        """The protocol's terminator was passed on: end within DONE_GRACE_SECONDS whatever the upstream does."""

    def failed(self, error: UpstreamError) -> None:
        """Nothing reached the client, and nothing of this attempt will."""

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None:
        """The answer is over. Unclean ends get no terminal chunk; `can_append` tells whether an error event may stand there."""


def ignore(data: bytes, now: float) -> None:
    """Take bytes that nobody waits for any more.

    A relay that is over feeds this instead of a method of its own: a circle of the two would keep the whole exchange, bodies
    included, until the collector looks, and no request's memory would be at hand for the next.
    """


class HoldBudget:
    """Bytes that all answers of the process may hold back together."""

    __slots__ = ("_left",)

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False, and nothing reserved, when they are not to be had."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give(self, size: int) -> None:
        """Return what was taken."""
        self._left += size


def broken(how: BodyEnd, *, anything: bool = True) -> UpstreamError | None:
    """Return the failure that an end before the commit amounts to; None for ends that break nothing by themselves."""
    match how:
        case BodyEnd.WHOLE | BodyEnd.OPEN:
            return None
        case BodyEnd.CUT:
            return StreamBroken(Break.TRUNCATED, anything=anything)
        case BodyEnd.RESET:
            return StreamBroken(Break.RESET, anything=anything)
        case BodyEnd.GARBAGE:
            return MalformedResponse(Malformation.PROTOCOL)


def error_of(error: EventError) -> ErrorEvent:
    """Return the failure that an error in place of an answer amounts to."""
    return ErrorEvent(error.status, kind=error.type or "upstream_error", code=error.code, message=error.message)


def cut_code(how: BodyEnd) -> str:
    match how:
        case BodyEnd.RESET:
            return Break.RESET.value
        case BodyEnd.GARBAGE:
            return Malformation.PROTOCOL.value
        case _:
            return Break.TRUNCATED.value
