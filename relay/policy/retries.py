"""How many tries a request may cost: what may be sent twice at all, and the budget that keeps retries from becoming a storm.

The first fallback to another target is free; what the budget governs is a retry on the same target and the third attempt. So with
every upstream down, attempts stay near the number of requests however many targets a route has.
"""

from typing import Final

from relay.exchange import JSON_OPERATIONS, ClientRequest, Operation
from relay.policy.ration import Ration

MAX_TRIES: Final = 8
"""Targets looked at for one exchange, those that were never reached included."""
MAX_ATTEMPTS: Final = 3
"""Attempts of one exchange that sent a request byte."""
WINDOW_SECONDS: Final = 10
SHARE: Final = 0.1
MINIMUM: Final = 3
"""Retries that are always allowed in a window: with little traffic a share says nothing."""


def retry_budget() -> Ration:
    """Return a budget that nothing was taken from."""
    return Ration(WINDOW_SECONDS, minimum=MINIMUM)


def needs_budget(attempts_sent: int) -> bool:
    """Tell whether the next attempt has to be taken from the budget, after `attempts_sent` that sent a byte.

    Asked for one at another target, or with another credential; what repeats the same always has to.
    """
    return attempts_sent >= 2


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
