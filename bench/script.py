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

_NAME = re.compile(r"(?:tls-)?s-(\d+)-(\d+)-(\d+)")


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
