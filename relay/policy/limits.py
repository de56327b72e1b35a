"""Admission: a request is measured against every limit that holds for it and takes from all of them or from none.

Limits belong to scopes: a key, a route, a key on a route. Each scope has one `Account` of integer cells, which may lie in memory
that several processes share; each process has a column of its own in it, so that what a process held can be told, and
given back, when it died. Who calls these functions holds the lock, where there is one.

Requests and tokens of a minute belong to the moment of their admission: the answer is reserved then, and settled by correcting that
same entry. What exceeds a reservation is counted when it is seen. Budgets go by the calendar (UTC): a wall clock that steps back
opens no new period. Times are milliseconds of a monotonic clock, `unix_time` is seconds.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil
from operator import itemgetter
from typing import Final, NamedTuple

from relay.config.tree import Budget, Limits
from relay.policy.accounts import Account
from relay.policy.periods import until_next
from relay.policy.sliding import SlidingWindow, quantum_of

CONCURRENCY_WAIT_MS: Final = 1_000
"""What a caller is told to wait when too many requests run: nobody knows when one ends."""


MAX_EXTRAS: Final = 64
"""Entries of tokens beyond a demand that can be taken back: an estimate is seldom far above what is reported."""


class Limit(StrEnum):
    """The kinds of limits."""

    RPM = "rpm"
    TPM = "tpm"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Who or what a set of limits holds for: a key, a route, or a key on a route."""

    limits: Limits
    key: str | None = None
    route: str | None = None
    name: str = field(init=False)
    """What its account is found by. No key's name holds a slash, so no two scopes' are alike."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", (self.key or "") if self.route is None else f"{self.key or ''}/{self.route}")

    @property
    def prefix(self) -> str:
        """Return what its limits are called by, before their kind, in metrics."""
        return "" if self.route is None else "route_" if self.key is None else "key_route_"


class Demand(NamedTuple):
    """What a request asks of its scopes. A tuple, as `Standing` is: one is made for each request."""

    scopes: tuple[Scope, ...]
    tokens: int
    """To reserve."""
    cost: int = 0
    """To reserve, in billionths of a US dollar."""
    least: int = 0
    """What the tokens may be lowered to, down to what is left; 0 for not at all."""
    answer_cost: int = 0
    """Of one token of the answer, in billionths of a US dollar."""


class Standing(NamedTuple):
    """How a limit per minute stands: for the headers that tell a caller."""

    limit: int
    remaining: int
    reset_ms: int
    """Until all of it is free again if nothing more comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was not admitted: the limit that will be free last."""

    limit: Limit
    scope: Scope
    wait_ms: int | None
    """After this a request like it is admitted if nobody else comes, and not before; None when it never is."""
    requests: Standing | None
    tokens: Standing | None


class Grant:
    """What an admitted request holds. Settled or released exactly once, by who gave it."""

    __slots__ = ("demand", "extra", "extras", "is_over", "request_stamps", "requests", "token_stamps", "tokens")

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.extra = 0
        """Tokens counted beyond the demand, as they flowed."""
        self.extras: deque[tuple[int, int, int]] = deque(maxlen=MAX_EXTRAS)
        """The latest of them: number of the scope, stamp, tokens."""
        self.request_stamps: list[int] = []
        self.token_stamps: list[int] = []
        self.is_over = False
        self.requests: Standing | None = None
        """How the key stood once this request was in."""
        self.tokens: Standing | None = None


def admit(accounts: Sequence[Account], demand: Demand, now: int, unix_time: float) -> Grant | Refusal:
    """Take what `demand` asks for from the accounts of its scopes, in their order, or refuse and take nothing.

    A demand that may be lowered is lowered to what is left where it asks for more: the grant says what was taken.
    """
    worst = _worst(accounts, demand, now, unix_time)
    if worst is not None and demand.least:
        demand = _lowered(accounts, demand, now, unix_time)
        worst = _worst(accounts, demand, now, unix_time)
    if worst is None:
        return take(accounts, demand, now)
    wait, limit, refused = worst
    requests, tokens = _standings(accounts, demand.scopes, now)
    return Refusal(limit=limit, scope=refused, wait_ms=None if wait == _NEVER else int(wait), requests=requests, tokens=tokens)


def _worst(accounts: Sequence[Account], demand: Demand, now: int, unix_time: float) -> tuple[float, Limit, Scope] | None:
    """Return the limit that will be free last, of those that have no room."""
    found = [
        (wait, limit, scope)
        for account, scope in zip(accounts, demand.scopes, strict=True)
        for wait, limit in _waits(account, scope.limits, demand.tokens, demand.cost, now, unix_time)
    ]
    return max(found, key=itemgetter(0)) if found else None


def _lowered(accounts: Sequence[Account], demand: Demand, now: int, unix_time: float) -> Demand:
    """Return the demand with no more tokens than are left, but with the least that it can do with."""
    tokens = demand.tokens
    for account, scope in zip(accounts, demand.scopes, strict=True):
        limits = scope.limits
        if limits.tpm is not None:
            tokens = min(tokens, limits.tpm - account.tokens.total(now))
        budget = limits.budget
        if budget is not None:
            left = account.left(budget, unix_time)
            if not budget.is_money:
                tokens = min(tokens, left)
            elif demand.cost > left and demand.answer_cost:
                tokens = min(tokens, demand.tokens - ceil((demand.cost - left) / demand.answer_cost))
    tokens = max(tokens, demand.least)
    return demand._replace(tokens=tokens, cost=max(0, demand.cost - (demand.tokens - tokens) * demand.answer_cost))


_NEVER: Final = float("inf")


def _waits(account: Account, limits: Limits, tokens: int, cost: int, now: int, unix_time: float) -> list[tuple[float, Limit]]:
    """Return each limit that has no room, with the milliseconds until it has."""
    found: list[tuple[float, Limit]] = []
    if limits.rpm is not None:
        need = account.requests.total(now) + 1 - limits.rpm
        if need > 0:
            found.append((_or_never(account.requests.wait(need, now)), Limit.RPM))
    if limits.tpm is not None and tokens:
        need = account.tokens.total(now) + tokens - limits.tpm
        if need > 0:
            found.append((_or_never(account.tokens.wait(need, now)), Limit.TPM))
    if limits.concurrency is not None and account.slots >= limits.concurrency:
        found.append((CONCURRENCY_WAIT_MS, Limit.CONCURRENCY))
    budget = limits.budget
    if budget is not None:
        # A request that asks for nothing is refused too once all is spent: what it will cost is not known.
        asked = max(1, cost if budget.is_money else tokens)
        if asked > budget.amount:
            found.append((_NEVER, Limit.BUDGET))
        elif asked > account.left(budget, unix_time):
            found.append((ceil(until_next(budget.period, unix_time) * 1000), Limit.BUDGET))
    return found


def _or_never(wait: int | None) -> float:
    return _NEVER if wait is None else wait


def _of_budget(budget: Budget | None, tokens: int, cost: int) -> int:
    if budget is None:
        return 0
    return cost if budget.is_money else tokens


def _held_of(budget: Budget | None, grant: Grant) -> int:
    demand = grant.demand
    return _of_budget(budget, demand.tokens + grant.extra, demand.cost + grant.extra * demand.answer_cost)


def take(accounts: Sequence[Account], demand: Demand, now: int) -> Grant:
    """Take what `demand` asks for, whether there is room or not: somebody else has admitted it."""
    grant = Grant(demand)
    tokens, cost = demand.tokens, demand.cost
    for account, scope in zip(accounts, demand.scopes, strict=True):
        limits = scope.limits
        request_stamp = token_stamp = -1
        if limits.rpm is not None:
            request_stamp = account.requests.add(now, 1, quantum_of(limits.rpm))
        if limits.tpm is not None and tokens:
            token_stamp = account.tokens.add(now, tokens, quantum_of(limits.tpm))
        grant.request_stamps.append(request_stamp)
        grant.token_stamps.append(token_stamp)
        account.hold(tokens, _of_budget(limits.budget, tokens, cost), 1)
    grant.requests, grant.tokens = _standings(accounts, demand.scopes, now)
    return grant


def _standings(accounts: Sequence[Account], scopes: Sequence[Scope], now: int) -> tuple[Standing | None, Standing | None]:
    """Return how the caller's own limits stand, the tightest of each kind; a route's own would tell of other callers."""
    requests: Standing | None = None
    tokens: Standing | None = None
    for account, scope in zip(accounts, scopes, strict=True):
        if scope.key is not None:
            limits = scope.limits
            if limits.rpm is not None:
                requests = _tighter(requests, limits.rpm, account.requests, now)
            if limits.tpm is not None:
                tokens = _tighter(tokens, limits.tpm, account.tokens, now)
    return requests, tokens


def _tighter(known: Standing | None, limit: int, window: SlidingWindow, now: int) -> Standing:
    remaining = limit - window.total(now)
    if known is not None and known.remaining <= remaining:
        return known
    return Standing(limit, max(0, remaining), window.reset(now))


def debit(accounts: Sequence[Account], grant: Grant, tokens: int, now: int, unix_time: float) -> bool:
    """Count that `tokens` of this request have flowed in all; tell whether every limit of tokens and every budget still holds.

    Costs nothing while they are within the reservation.
    """
    excess = tokens - grant.demand.tokens - grant.extra
    if excess <= 0:
        return True
    grant.extra += excess
    holds = True
    for index, (account, scope) in enumerate(zip(accounts, grant.demand.scopes, strict=True)):
        limit = scope.limits.tpm
        if limit is not None:
            grant.extras.append((index, account.tokens.add(now, excess, quantum_of(limit)), excess))
            holds = holds and account.tokens.total(now) <= limit
        budget = scope.limits.budget
        if budget is not None:
            account.hold(0, _of_budget(budget, excess, excess * grant.demand.answer_cost), 0)
            holds = holds and account.left(budget, unix_time) >= 0
    return holds


def settle(accounts: Sequence[Account], grant: Grant, tokens: int, cost: int, now: int, unix_time: float) -> None:
    """Replace what `grant` reserved by what was really used, and give its slots back."""
    demand = grant.demand
    counted = demand.tokens + grant.extra
    for index, (account, scope) in enumerate(zip(accounts, demand.scopes, strict=True)):
        limits = scope.limits
        if limits.tpm is not None:
            if tokens > counted:
                account.tokens.add(now, tokens - counted, quantum_of(limits.tpm))
            elif tokens < counted:
                _give_back(account, grant, index, counted - tokens)
        if limits.budget is not None:
            account.spend(limits.budget, _of_budget(limits.budget, tokens, cost), unix_time)
        account.hold(-demand.tokens, -_held_of(limits.budget, grant), -1)
    grant.is_over = True


def _give_back(account: Account, grant: Grant, index: int, surplus: int) -> None:
    """Take back `surplus` tokens of what was counted in the account number `index`, the latest first."""
    for of, stamp, tokens in reversed(grant.extras):
        if of == index:
            account.tokens.remove(stamp, min(surplus, tokens))
            surplus -= min(surplus, tokens)
    if surplus and grant.token_stamps[index] >= 0:
        account.tokens.remove(grant.token_stamps[index], min(surplus, grant.demand.tokens))


def release(accounts: Sequence[Account], grant: Grant, now: int, unix_time: float) -> None:
    """Give everything back, the place among the minute's requests too: nothing was sent anywhere."""
    for account, stamp in zip(accounts, grant.request_stamps, strict=True):
        if stamp >= 0:
            account.requests.remove(stamp, 1)
    settle(accounts, grant, 0, 0, now, unix_time)


def add_counts(to: Account, counted: Account, limits: Limits, now: int, unix_time: float) -> tuple[int, int]:
    """Count in `to` what was `counted` elsewhere of requests, tokens and the budget; return the stamps of both, -1 where nothing was.

    What is held is not among it: see `move`.
    """
    request_stamp = token_stamp = -1
    if limits.rpm is not None and (requests := counted.requests.total(now)):
        request_stamp = to.requests.add(now, requests, quantum_of(limits.rpm))
    if limits.tpm is not None and (tokens := counted.tokens.total(now)):
        token_stamp = to.tokens.add(now, tokens, quantum_of(limits.tpm))
    if limits.budget is not None:
        to.spent(limits.budget, unix_time)  # a new period begins for both
        to.spend(limits.budget, counted.spent(limits.budget, unix_time), unix_time)
    return request_stamp, token_stamp


def move(accounts: Sequence[Account], grant: Grant, stamps: Sequence[tuple[int, int]]) -> None:
    """Have `accounts` hold what `grant` holds; its requests and tokens have been counted there under `stamps`."""
    demand = grant.demand
    for account, scope in zip(accounts, demand.scopes, strict=True):
        account.hold(demand.tokens, _held_of(scope.limits.budget, grant), 1)
    is_counted = [stamp >= 0 for stamp in grant.request_stamps], [stamp >= 0 for stamp in grant.token_stamps]
    grant.request_stamps = [stamps[at][0] if was else -1 for at, was in enumerate(is_counted[0])]
    grant.token_stamps = [stamps[at][1] if was else -1 for at, was in enumerate(is_counted[1])]
    grant.extras = deque(((at, stamps[at][1], tokens) for at, _, tokens in grant.extras), maxlen=MAX_EXTRAS)


def used_shares(account: Account, limits: Limits, now: int, unix_time: float) -> dict[Limit, float]:
    """Return the used share of each limit that allows anything."""
    shares: dict[Limit, float] = {}
    if limits.rpm:
        shares[Limit.RPM] = account.requests.total(now) / limits.rpm
    if limits.tpm:
        shares[Limit.TPM] = account.tokens.total(now) / limits.tpm
    if limits.concurrency:
        shares[Limit.CONCURRENCY] = account.slots / limits.concurrency
    if limits.budget is not None and limits.budget.amount:
        shares[Limit.BUDGET] = 1 - account.left(limits.budget, unix_time) / limits.budget.amount
    return shares
