"""The part of a limit that one of several relays may give away by itself while it cannot ask what the others gave.

All of them divide the limit, so that together they stay within it. What was last known of everybody's use counts as well: what one relay
had used beyond its part, the others leave. Of minutes and slots that knowledge is good for a minute, of budgets until it is replaced.
"""

from dataclasses import replace
from typing import Final, NamedTuple

from relay.config.tree import Limits

KNOWN_MS: Final = 60_000
"""After this what others had used of a minute has left it."""


class Use(NamedTuple):
    """What was used of the limits of one scope."""

    requests: int
    tokens: int
    slots: int
    budget: int
    """Spent and reserved."""


NOTHING: Final = Use(0, 0, 0, 0)


def share(limits: Limits, replicas: int, own: Use, total: Use | None, *, is_fresh: bool) -> Limits:
    """Return the part of `limits` for one of `replicas`, which has used `own` of the `total` that was used when that was last known."""
    minute = total if is_fresh else None
    budget = limits.budget
    return Limits(
        rpm=_part(limits.rpm, replicas, own.requests, None if minute is None else minute.requests),
        tpm=_part(limits.tpm, replicas, own.tokens, None if minute is None else minute.tokens),
        concurrency=_part(limits.concurrency, replicas, own.slots, None if minute is None else minute.slots),
        budget=None if budget is None else replace(budget, amount=_budget(budget.amount, replicas, own.budget, total)),
    )


def _part(limit: int | None, replicas: int, own: int, total: int | None) -> int | None:
    if limit is None:
        return None
    part = limit // replicas
    return part if total is None else min(part, _rest(limit, replicas, own, total))


def _budget(amount: int, replicas: int, own: int, total: Use | None) -> int:
    return amount // replicas if total is None else _rest(amount, replicas, own, total.budget)


def _rest(limit: int, replicas: int, own: int, total: int) -> int:
    """Return what was used here, and the part of what nobody had used."""
    return own + max(0, limit - max(own, total)) // replicas
