"""How long the caller will wait and how often it has asked: what official SDKs say about themselves in their headers.

`x-stainless-read-timeout` (openai-python, anthropic-python) and `x-stainless-timeout` (openai-node) are seconds;
`x-stainless-retry-count` counts from 0. An answer that comes after the caller gave up costs tokens and brings a retry, so none is
begun that cannot fit, and a typed 504 goes out a little before. The headers only shorten what the configuration allows.
"""

import re
from math import ceil, inf
from typing import Final

import msgspec

from relay.exchange import ClientRequest

MARGIN_SECONDS: Final = 1.0
MARGIN_SHARE: Final = 0.1
"""The 504 leaves this long before the caller gives up, whichever is less: it has to arrive."""
MAX_SECONDS: Final = 86_400.0
MAX_RETRY_COUNT: Final = 100
MAX_ADVISED_SECONDS: Final = 60.0
"""SDKs ignore longer waits, or stop retrying, or sleep through them whatever the length."""

_NUMBER: Final = re.compile(rb"\d{1,9}(?:\.\d{1,9})?")
_COUNT: Final = re.compile(rb"\d{1,4}")


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller said of itself. Instants are the clock of `ClientRequest.received_at`."""

    deadline_at: float = inf
    """When an answer has to have begun; infinite when the caller did not say."""
    retry_count: int = 0
    """How often this caller has asked the same before; 0 for the first time and for callers that do not say."""

    def left(self, now: float) -> float:
        """Return the seconds that are left, 0 when it is too late."""
        return max(0.0, self.deadline_at - now)

    def fits(self, now: float, expected_seconds: float) -> bool:
        """Tell whether an attempt that takes `expected_seconds` to its first token would still be in time."""
        return now < self.deadline_at and now + expected_seconds <= self.deadline_at


_SAID_NOTHING: Final = Patience()


def patience_of(request: ClientRequest) -> Patience:
    """Read the caller's patience off its request; values that are no positive number of at most a day count as absent."""
    seconds = inf
    retry_count = 0
    for name, value in request.headers:
        if len(name) < 19 or name[:12].lower() != b"x-stainless-":
            continue
        match name.lower():
            case b"x-stainless-read-timeout" | b"x-stainless-timeout":
                text = value.strip()
                said = float(text) if _NUMBER.fullmatch(text) else 0.0
                if 0 < said <= MAX_SECONDS:
                    seconds = min(seconds, said)
            case b"x-stainless-retry-count":
                text = value.strip()
                retry_count = min(int(text), MAX_RETRY_COUNT) if _COUNT.fullmatch(text) else 0
            case _:
                continue
    if seconds == inf:
        return Patience(retry_count=retry_count) if retry_count else _SAID_NOTHING
    margin = min(MARGIN_SECONDS, MARGIN_SHARE * seconds)
    return Patience(deadline_at=request.received_at + seconds - margin, retry_count=retry_count)


def advice(helps_in: float | None) -> dict[str, str]:
    """Return the headers that tell an SDK whether to try again when every target has failed.

    `helps_in` is in how many seconds another try may succeed, None for never: only a wait that an upstream named, or a rest that
    ends, is a reason; "perhaps" would turn one request into three. Official SDKs obey `x-should-retry` before anything else.
    """
    if helps_in is None or helps_in > MAX_ADVISED_SECONDS:
        return {"x-should-retry": "false"}
    # SDKs take 0 for "not said"; both headers, for not everyone reads milliseconds.
    milliseconds = max(1, ceil(helps_in * 1000))
    return {"x-should-retry": "true", "retry-after-ms": str(milliseconds), "retry-after": str(max(1, ceil(milliseconds / 1000)))}
