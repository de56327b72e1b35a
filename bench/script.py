"""What the scripted upstream and the load generator agree on: model names that say what to stream, and the mark in each event.

A model name is the whole script (`s-<events>-<interval_us>-<bytes>`), because it is the one part of a request that every
proxy passes on. Each content event carries the sender's monotonic clock, which Linux shares between processes, so the
receiver knows the delay of every single event without the two ends talking.
"""

import re
from dataclasses import dataclass

MARK = b'"content":"@'
"""Stands before the sender's clock in every content event; longer than any other token that is searched across a cut."""
CLOCK_DIGITS = 19
"""Width of the clock in an event: nanoseconds, zero padded, so that every event of a stream has the same size."""
SECURE_PREFIX = "tls-"
"""Model names that begin so go to the TLS listener, by the routing of each proxy."""
JSON_MODEL = "json"
IDLE_EVENTS = 10**9
"""Events of a stream that never ends by itself."""

STALL_PREFIX = "stall-"
"""One request in `STALL_EVERY` for such a model gets no byte for `STALL_SECONDS`."""
STALL_EVERY = 20
STALL_AFTER = 80
"""Requests that are answered first: the connections of the load get ready, and the relay learns what is usual."""
STALL_SECONDS = 10.0
REFUSE_PREFIX = "refuse-"
"""One request in `REFUSE_EVERY` for such a model is answered 503: seldom enough that the target is not sent to rest."""
REFUSE_EVERY = 3
LOSERS_FILE = "losers"
"""File of the upstream: for each stalled request beside which a backup was answered, the milliseconds until it was given up."""

_NAME = re.compile(r"(?:[a-z]+-)?s-(\d+)-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One stream: how many content events, how far apart, and how large each is."""

    events: int
    interval_us: int
    event_bytes: int = 250

    def name(self, *, secure: bool = False) -> str:
        """Return the model name that asks for this stream."""
        return f"{SECURE_PREFIX if secure else ''}s-{self.events}-{self.interval_us}-{self.event_bytes}"


def parse_name(model: str) -> Script | None:
    """Read a script out of a model name; None when the name asks for a plain JSON answer."""
    found = _NAME.fullmatch(model)
    if found is None:
        return None
    events, interval_us, event_bytes = map(int, found.groups())
    return Script(events=events, interval_us=interval_us, event_bytes=event_bytes)
