"""Whose fault the silence inside a stream was: the upstream's, the relay's, or the client's.

A stream's silence is all its time from its first content to its end. Of that the client's share is the time in which it took
nothing, so that the upstream was not read; the relay's is what its event loop was late; what is left the upstream kept
everybody waiting. Silences longer than STALL_SECONDS are stalls, and each is blamed on who had the largest part in it.
Nothing of this is worked out before the stream is over; until then silences and pauses are only kept, which costs an event one
comparison.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

STALL_SECONDS: Final = 1.0
"""A silence that a person notices."""
MAX_KEPT: Final = 1000
"""Silences and pauses that are kept of one stream; an hour of stalls has more, and by then says nothing new."""

Span = tuple[float, float]
"""Two instants."""
Lateness = Callable[[float, float], float]
"""How many seconds the event loop was late between two instants."""


class Blame(StrEnum):
    """Whom a gap is put down to: the label `blame`."""

    UPSTREAM = "upstream"
    RELAY = "relay"
    CLIENT = "client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """The silence inside one stream: seconds, and the blame for each stall."""

    upstream: float
    relay: float
    client: float
    stalls: tuple[Blame, ...] = ()


def split_gaps(span: Span, silences: Iterable[Span], pauses: list[Span], paused_seconds: float, lateness: Lateness) -> Gaps:
    """Split the silence of a stream that went on for `span`; `paused_seconds` also has the pauses too short to be in `pauses`."""
    start, end = span
    total = max(end - start, 0.0)
    # A client that is slow to take the end of the stream, or its beginning, makes nobody wait in between.
    outside = sum(resumed - paused - max(min(end, resumed) - max(start, paused), 0.0) for paused, resumed in pauses)
    client = min(max(paused_seconds - outside, 0.0), total)
    relay = min(lateness(start, end), total - client)
    stalls = tuple(_blame(silence, pauses, lateness) for silence in silences)
    return Gaps(upstream=total - client - relay, relay=relay, client=client, stalls=stalls)


def _blame(silence: Span, pauses: list[Span], lateness: Lateness) -> Blame:
    start, end = silence
    client = sum(max(min(end, resumed) - max(start, paused), 0.0) for paused, resumed in pauses)
    relay = min(lateness(start, end), end - start)
    upstream = end - start - client - relay
    if upstream >= client and upstream >= relay:
        return Blame.UPSTREAM
    return Blame.CLIENT if client >= relay else Blame.RELAY
