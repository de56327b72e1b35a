"""The counts of one process while it cannot count with the others: its part of each limit, entered into the shared counts afterwards.

What nobody had used when they had to part is divided among the processes, so that together they stay within every limit; of the part of a
limit that is not divisible nobody has anything. What each process held before it goes on to hold; slots that it gives back
it may use again, up to its part of the whole. A minute later what was used before has left the minute's limits.
"""

import mmap
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from relay.policy import limits
from relay.policy.accounts import ACCOUNT_CELLS, Account
from relay.policy.limits import Demand, Grant, Refusal, Scope
from relay.policy.shares import NOTHING, Use, share
from relay.policy.sliding import WINDOW_MS
from relay.stores.entries import fits

APART_WAIT_MS: Final = 1_000
"""What is told to a request that only the whole limit has room for: a process that was stopped seldom stays so."""


def private_account() -> Account:
    """Return an account in memory of this process's own; pages that nothing was counted in cost nothing."""
    return Account(memoryview(mmap.mmap(-1, 8 * ACCOUNT_CELLS)).cast("q"), 0)


class _Place:
    """A scope, as it is counted here."""

    __slots__ = ("account", "own", "part", "part_until", "scope", "total")

    def __init__(self, scope: Scope, own: int, total: Use) -> None:
        self.scope = scope
        self.account = private_account()
        self.account.hold(0, 0, own)
        self.own = own
        """Slots that this process held before."""
        self.total = total
        """What all had used before."""
        self.part: Scope | None = None
        self.part_until = 0


class StandIn:
    """What was admitted here since this process had to count by itself."""

    __slots__ = ("_at", "_before", "_places", "_processes", "grants")

    def __init__(self, processes: int, before: Iterable[Grant], now: int) -> None:
        """Count for one of `processes`; the grants `before` are out and stay in the shared counts."""
        self._processes = max(1, processes)
        self._before = Counter(scope.name for grant in before for scope in grant.demand.scopes)
        self._at = now
        self._places: dict[str, _Place] = {}
        self.grants: set[Grant] = set()
        """Those given here that are not over."""

    def admit(self, demand: Demand, peek: Callable[[Scope], Use], now: int, unix_time: float) -> Grant | Refusal:
        """Take what `demand` asks for from this process's part, or refuse and take nothing; `peek` tells what all had used of a scope."""
        places = [self._place(scope, peek) for scope in demand.scopes]
        parts = demand._replace(scopes=tuple(self._part(place, now) for place in places))
        answer = limits.admit([place.account for place in places], parts, now, unix_time)
        if isinstance(answer, Grant):
            answer.demand = answer.demand._replace(scopes=demand.scopes)  # its tokens may have been lowered
            self.grants.add(answer)
            return answer
        scope = next(each for each in demand.scopes if each.name == answer.scope.name)
        wait = APART_WAIT_MS if answer.wait_ms is None and fits(scope.limits, answer.limit, demand) else answer.wait_ms
        return replace(answer, scope=scope, wait_ms=wait)

    def take(self, demand: Demand, peek: Callable[[Scope], Use], now: int) -> Grant:
        """Take what `demand` asks for: somebody else has admitted it."""
        grant = limits.take([self._place(scope, peek).account for scope in demand.scopes], demand, now)
        self.grants.add(grant)
        return grant

    def accounts(self, grant: Grant) -> list[Account]:
        """Return where a grant that was given here is counted."""
        return [self._places[scope.name].account for scope in grant.demand.scopes]

    def ended_before(self, grant: Grant) -> None:
        """Take note that a grant of before is over: its slots are this process's to give."""
        for scope in grant.demand.scopes:
            self._before[scope.name] -= 1
            place = self._places.get(scope.name)
            if place is not None:
                place.account.hold(0, 0, -1)

    def use(self, scope: Scope, now: int, unix_time: float) -> Use:
        """Return what was used here."""
        place = self._places.get(scope.name)
        return NOTHING if place is None else place.account.peek(scope.limits.budget, now, unix_time)

    def enter_into(self, shared: Callable[[Scope], Account], now: int, unix_time: float) -> None:
        """Count in the `shared` accounts what was counted here; grants that are not over are theirs from then on."""
        merged: dict[str, tuple[int, int]] = {}
        for name, place in self._places.items():
            merged[name] = limits.add_counts(shared(place.scope), place.account, place.scope.limits, now, unix_time)
        for grant in self.grants:
            limits.move([shared(scope) for scope in grant.demand.scopes], grant, [merged[scope.name] for scope in grant.demand.scopes])

    def _place(self, scope: Scope, peek: Callable[[Scope], Use]) -> _Place:
        place = self._places.get(scope.name)
        if place is None:
            place = self._places[scope.name] = _Place(scope, max(0, self._before[scope.name]), peek(scope))
        elif place.scope is not scope:  # a reload has come in between
            place.scope, place.part = scope, None
        return place

    def _part(self, place: _Place, now: int) -> Scope:
        if place.part is None or now >= place.part_until:
            is_fresh = now - self._at < WINDOW_MS
            total = place.total if is_fresh else place.total._replace(requests=0, tokens=0)
            part = share(place.scope.limits, self._processes, Use(0, 0, place.own, 0), total, is_fresh=True)
            place.part = Scope(limits=part, key=place.scope.key, route=place.scope.route)
            place.part_until = self._at + WINDOW_MS if is_fresh else now + WINDOW_MS
        return place.part
