"""Admission: a request is measured against every limit that holds for it and takes from all of them or from none.

Limits belong to scopes: a key, a route, a key on a route. Each scope has one `Account` of integer cells, which may lie in memory
that several processes share; each process has a column of its own in it, so that what a process held can be told, and
given back, when it died. Who calls these functions holds the lock, where there is one.

Requests and tokens of a minute belong to the moment of their admission: the answer is reserved then, and settled by correcting that
same entry. What exceeds a reservation is counted when it is seen. Budgets go by the calendar (UTC): a wall clock that steps back
opens no new period. Times are milliseconds of a monotonic clock, `unix_time` is seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from math import ceil
from typing import Final, NamedTuple

from relay.config.tree import Budget, Limits, Period
from relay.policy.sliding import WINDOW_CELLS, Cells, SlidingWindow, quantum_of

CONCURRENCY_WAIT_MS: Final = 1_000
"""What a caller is told to wait when too many requests run: nobody knows when one ends."""

MAX_WORKERS: Final = 512
"""Columns of an account: processes that may share it, twice as many as one relay may have workers."""
_COLUMN_CELLS: Final = 3
_SLOTS: Final = 0
"""Requests in flight. The first three cells are sums of the columns, in their order."""
_TOKENS: Final = 1
_HELD: Final = 2
"""Of the budget, reserved for requests in flight."""
_SPENT: Final = 3
_KIND: Final = 4
"""What the budget counts, and over which period; 0 while nothing was counted."""
_PERIOD: Final = 5
_COLUMNS: Final = 8
_REQUEST_WINDOW: Final = _COLUMNS + _COLUMN_CELLS * MAX_WORKERS
_TOKEN_WINDOW: Final = _REQUEST_WINDOW + WINDOW_CELLS
ACCOUNT_CELLS: Final = _TOKEN_WINDOW + WINDOW_CELLS


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

    __slots__ = ("demand", "extra", "is_over", "request_stamps", "requests", "token_stamps", "tokens")

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.extra = 0
        """Tokens counted beyond the demand, as they flowed."""
        self.request_stamps: list[int] = []
        self.token_stamps: list[int] = []
        self.is_over = False
        self.requests: Standing | None = None
        """How the key stood once this request was in."""
        self.tokens: Standing | None = None


class Account:
    """The counts of one scope, seen from one process. All zeros is a new one."""

    __slots__ = ("_column", "cells", "requests", "tokens")

    def __init__(self, cells: memoryview, worker: int) -> None:
        """Count in `cells`, of which there must be ACCOUNT_CELLS, for the process with the number `worker`."""
        self.cells: Cells = cells
        self.requests = SlidingWindow(cells[_REQUEST_WINDOW:_TOKEN_WINDOW])
        self.tokens = SlidingWindow(cells[_TOKEN_WINDOW:ACCOUNT_CELLS])
        self._column = _COLUMNS + _COLUMN_CELLS * worker

    def hold(self, tokens: int, budget: int, slots: int) -> None:
        """Add to what this process holds; negative numbers give back."""
        cells, column = self.cells, self._column
        cells[_SLOTS] += slots
        cells[column] += slots
        if tokens:
            cells[_TOKENS] += tokens
            cells[column + _TOKENS] += tokens
        if budget:
            cells[_HELD] += budget
            cells[column + _HELD] += budget

    def reclaim(self, worker: int) -> bool:
        """Give back what the process `worker`, which is dead, held; tell whether that was anything.

        Its part of the budget counts as spent: its requests had been sent, and nobody knows what they cost.
        """
        cells = self.cells
        column = _COLUMNS + _COLUMN_CELLS * worker
        slots, tokens, budget = cells[column], cells[column + _TOKENS], cells[column + _HELD]
        if not (slots or tokens or budget):
            return False
        cells[_SPENT] += budget
        for kind in (_SLOTS, _TOKENS, _HELD):
            cells[column + kind] = 0
        self._sum()
        return True

    def repair(self) -> None:
        """Make the sums right again after a writer died between two cells."""
        self.requests.repair()
        self.tokens.repair()
        self._sum()

    def _sum(self) -> None:
        for kind in (_SLOTS, _TOKENS, _HELD):
            self.cells[kind] = sum(self.cells[_COLUMNS + _COLUMN_CELLS * worker + kind] for worker in range(MAX_WORKERS))

    @property
    def own(self) -> tuple[int, int]:
        """Return the slots and the tokens that this process holds."""
        return self.cells[self._column], self.cells[self._column + _TOKENS]

    @property
    def slots(self) -> int:
        """Return the requests in flight, of all processes."""
        return self.cells[_SLOTS]

    @property
    def reserved(self) -> int:
        """Return the tokens reserved and not settled, of all processes."""
        return self.cells[_TOKENS]

    def spent(self, budget: Budget, unix_time: float) -> int:
        """Return what was used of `budget` in the period of `unix_time`."""
        self._turn(budget, unix_time)
        return self.cells[_SPENT]

    def left(self, budget: Budget, unix_time: float) -> int:
        """Return what is neither spent nor reserved of `budget`; negative when more was used than it allows."""
        return budget.amount - self.spent(budget, unix_time) - self.cells[_HELD]

    def spend(self, budget: Budget, amount: int, unix_time: float) -> None:
        """Count `amount` as used, unless the budget has come to count something else meanwhile."""
        if self.cells[_KIND] == kind_of(budget):
            self._turn(budget, unix_time)
            self.cells[_SPENT] += amount

    def _turn(self, budget: Budget, unix_time: float) -> None:
        cells = self.cells
        period = period_of(budget.period, unix_time)
        if cells[_KIND] == kind_of(budget) and period <= cells[_PERIOD]:
            if period < cells[_PERIOD] - 1:
                # The clock had been far ahead: what was spent still counts, but the next period shall begin on time.
                cells[_PERIOD] = period
            return
        cells[_KIND] = kind_of(budget)
        cells[_PERIOD] = period
        cells[_SPENT] = 0


def kind_of(budget: Budget | None) -> int:
    """Return a number for what a budget counts, and over which period; 0 for none."""
    return 0 if budget is None else 1 + 2 * (budget.period is Period.MONTH) + budget.is_money


def period_of(period: Period, unix_time: float) -> int:
    """Return the number of the calendar's day or month, UTC."""
    day = int(unix_time // 86_400)
    return day if period is Period.DAY else _month_of(day)


@lru_cache(8)
def _month_of(day: int) -> int:
    moment = datetime.fromtimestamp(day * 86_400, UTC)
    return moment.year * 12 + moment.month - 1


def until_next(period: Period, unix_time: float) -> float:
    """Return the seconds until the next day or month begins, UTC."""
    number = period_of(period, unix_time) + 1
    if period is Period.DAY:
        return number * 86_400 - unix_time
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC).timestamp() - unix_time


def admit(accounts: Sequence[Account], demand: Demand, now: int, unix_time: float) -> Grant | Refusal:
    """Take what `demand` asks for from the accounts of its scopes, in their order, or refuse and take nothing."""
    worst: tuple[float, Limit, Scope] | None = None
    for account, scope in zip(accounts, demand.scopes, strict=True):
        for wait, limit in _waits(account, scope.limits, demand.tokens, demand.cost, now, unix_time):
            if worst is None or wait > worst[0]:
                worst = (wait, limit, scope)
    if worst is None:
        return take(accounts, demand, now)
    wait, limit, refused = worst
    requests, tokens = _standings(accounts, demand.scopes, now)
    return Refusal(limit=limit, scope=refused, wait_ms=None if wait == _NEVER else int(wait), requests=requests, tokens=tokens)


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
    if limits.concurrency is not None and account.cells[_SLOTS] >= limits.concurrency:
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


def debit(accounts: Sequence[Account], grant: Grant, tokens: int, now: int) -> bool:
    """Count that `tokens` of this request have flowed in all; tell whether every limit of tokens still holds.

    Costs nothing while they are within the reservation.
    """
    excess = tokens - grant.demand.tokens - grant.extra
    if excess <= 0:
        return True
    grant.extra += excess
    holds = True
    for account, scope in zip(accounts, grant.demand.scopes, strict=True):
        limit = scope.limits.tpm
        if limit is not None:
            account.tokens.add(now, excess, quantum_of(limit))
            holds = holds and account.tokens.total(now) <= limit
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
            elif tokens < counted and grant.token_stamps[index] >= 0:
                account.tokens.remove(grant.token_stamps[index], min(counted - tokens, demand.tokens))
        if limits.budget is not None:
            account.spend(limits.budget, _of_budget(limits.budget, tokens, cost), unix_time)
        account.hold(-demand.tokens, -_of_budget(limits.budget, demand.tokens, demand.cost), -1)
    grant.is_over = True


def release(accounts: Sequence[Account], grant: Grant, now: int, unix_time: float) -> None:
    """Give everything back, the place among the minute's requests too: nothing was sent anywhere."""
    for account, stamp in zip(accounts, grant.request_stamps, strict=True):
        if stamp >= 0:
            account.requests.remove(stamp, 1)
    settle(accounts, grant, 0, 0, now, unix_time)


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
