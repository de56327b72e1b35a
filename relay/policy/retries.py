"""How many tries a request may cost: what may be sent twice at all, and the budget that keeps retries from becoming a storm.

The first fallback to another target is free; what the budget governs is a retry on the same target and the third attempt. So with
every upstream down, attempts stay near the number of requests however many targets a route has.
"""

from typing import Final

from relay.exchange import JSON_OPERATIONS, ClientRequest, Operation
from relay.policy.window import Window

MAX_TRIES: Final = 8
"""Targets looked at for one exchange, those that were never reached included."""
MAX_ATTEMPTS: Final = 3
"""Attempts of one exchange that sent a request byte."""
WINDOW_SECONDS: Final = 10
SHARE: Final = 0.1
MINIMUM: Final = 3
"""Retries that are always allowed in a window: with little traffic a share says nothing."""


class RetryBudget:
    """At most `SHARE` of the requests of the last ten seconds may be retries, at least `MINIMUM`."""

    __slots__ = ("_recent",)

    def __init__(self) -> None:
        self._recent = Window(WINDOW_SECONDS)

    def note_request(self, now: float) -> None:
        """Count a request: once for each, when its first attempt begins."""
        self._recent.add_first(now)

    def take(self, now: float) -> bool:
        """Take one retry out of the budget; False when there is none."""
        self._recent.advance(now)
        if self._recent.second + 1 > max(float(MINIMUM), SHARE * self._recent.first):
            return False
        self._recent.add_second(now)
        return True


def needs_budget(attempts_sent: int, *, is_same_target: bool) -> bool:
    """Tell whether the next attempt has to be taken from the budget, after `attempts_sent` that sent a byte."""
    return is_same_target or attempts_sent >= 2


def is_repeatable(request: ClientRequest) -> bool:
    """Tell whether sending `request` twice does no more than cost: nothing is stored, started or uploaded by it.

    What is left are reads, and generations whose body is at hand. No API honours an idempotency key for these, so a repeated
    generation may be billed twice; that is the price of a fallback, and the attempts are counted.
    """
    if request.operation is Operation.REALTIME:
        return False
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return True
    body = request.body
    is_generation = request.method == "POST" and request.operation in JSON_OPERATIONS
    return is_generation and body is not None and not body.store and not body.background
