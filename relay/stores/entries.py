"""What Redis is told of requests, and what its answers say of limits."""

from collections.abc import Iterator, Sequence
from typing import Final

from relay.config.tree import Limits
from relay.policy.accounts import kind_of
from relay.policy.limits import Demand, Limit, Scope, Standing
from relay.policy.shares import Use
from relay.policy.sliding import WINDOW_MS

LIMITS: Final = (Limit.RPM, Limit.TPM, Limit.CONCURRENCY, Limit.BUDGET)
"""In the order in which the scripts number them."""


class Entry:
    """What one request counts for, as Redis is to know it."""

    __slots__ = ("at", "demand", "extras", "id", "is_asking", "is_known", "is_live", "is_over", "is_request", "sent", "tokens")

    def __init__(self, ident: bytes, demand: Demand, now: int, *, is_known: bool) -> None:
        self.id = ident
        self.at = now
        self.demand = demand
        self.tokens = demand.tokens
        """What its entry in the minute's tokens counts."""
        self.extras: list[tuple[bytes, int, int]] = []
        """Tokens beyond, as (name, amount, at)."""
        self.sent = 0
        """Of the tokens beyond, those in `extras`."""
        self.is_known = is_known
        """Whether Redis has it, or may have it."""
        self.is_live = True
        self.is_request = True
        self.is_asking = False
        self.is_over = False
        """Whether everybody's tokens were seen beyond a limit."""


class Change:
    """The end of a request, as it is told to Redis."""

    __slots__ = ("entry", "text", "was_sent")

    def __init__(self, entry: Entry, text: bytes) -> None:
        self.entry = entry
        self.text = text
        self.was_sent = False
        """Whether Redis may have it already."""


def running_lines(entry: Entry, scope: Scope) -> list[bytes]:
    """Return what tells Redis that a request runs, or ran until now."""
    return [b"%b 0 0 0 %d %d" % (entry.id, has_lease(scope.limits), _held(entry, scope.limits))]


def has_lease(limits: Limits) -> bool:
    """Tell whether requests in flight are counted."""
    return limits.concurrency is not None or limits.budget is not None


def held_of(entry: Entry) -> tuple[int, int]:
    """Return the tokens and the cost that a request holds while it runs: what it reserved, and what has flowed beyond."""
    demand = entry.demand
    return demand.tokens + entry.sent, demand.cost + entry.sent * demand.answer_cost


def _held(entry: Entry, limits: Limits) -> int:
    if limits.budget is None:
        return 0
    tokens, cost = held_of(entry)
    return cost if limits.budget.is_money else tokens


def lines_of(entry: Entry, scope: Scope, now: int, *, is_renewal: bool) -> Iterator[bytes]:
    """Yield what Redis is told of an entry in one scope; of a renewal, that it runs."""
    limits = scope.limits
    is_live = entry.is_live and has_lease(limits)
    is_request = entry.is_request and limits.rpm is not None and not is_renewal
    tokens = 0 if limits.tpm is None or is_renewal else entry.tokens
    if is_live or is_request or tokens:
        yield b"%b %d %d %d %d %d" % (entry.id, now - entry.at, is_request, tokens, is_live, _held(entry, limits))
    if limits.tpm is not None and not is_renewal:
        for name, amount, at in entry.extras:
            yield b"%b %d 0 %d 0 0" % (name, now - at, amount)


def key_of(name: str) -> bytes:
    """Return where the keys of a scope begin; the braces put all of them into one slot of a cluster."""
    return b"{relay}:" + name.encode()


def limits_text(limits: Limits, *, is_shared: bool) -> bytes:
    """Return limits as the scripts read them, and whether other relays want to hear of what is used."""
    budget = limits.budget
    numbers = (limits.rpm, limits.tpm, limits.concurrency, None if budget is None else budget.amount)
    return b"%d %d %d %d %d %d" % (*(-1 if number is None else number for number in numbers), kind_of(budget), is_shared)


def tighter(known: Standing | None, limit: int, used: int, newest: int, now: int) -> Standing:
    """Return the tighter of a standing and the one that Redis tells of."""
    remaining = limit - used
    if known is not None and known.remaining <= remaining:
        return known
    return Standing(limit, max(0, remaining), max(0, newest + WINDOW_MS - now) if newest else 0)


def fits(limits: Limits, limit: Limit, demand: Demand) -> bool:
    """Tell whether the whole limit could ever have room for `demand`."""
    if limit is Limit.TPM:
        return limits.tpm is not None and demand.tokens <= limits.tpm
    if limit is Limit.BUDGET and limits.budget is not None:
        return (demand.cost if limits.budget.is_money else demand.tokens) <= limits.budget.amount
    return True


def is_beyond(scopes: Sequence[Scope], sums: Sequence[int]) -> bool:
    """Tell whether a limit of tokens or a budget is exceeded, of what each scope has used by the answer to a change."""
    for scope, tokens, used in zip(scopes, sums[::2], sums[1::2], strict=True):
        limits = scope.limits
        if (limits.tpm is not None and tokens > limits.tpm) or (limits.budget is not None and used > limits.budget.amount):
            return True
    return False


def shares_of(limits: Limits, use: Use) -> dict[Limit, float]:
    """Return the used share of each limit."""
    amounts = (limits.rpm, limits.tpm, limits.concurrency, None if limits.budget is None else limits.budget.amount)
    return {limit: used / amount for limit, used, amount in zip(LIMITS, use, amounts, strict=True) if amount}
