"""What Redis has to be told: what runs and what was counted here, and what ended while it was away."""

import secrets
from collections.abc import Iterable, Sequence
from time import time
from typing import Final

from relay.policy.accounts import kind_of
from relay.policy.limits import Scope
from relay.policy.periods import period_of
from relay.stores import scripts
from relay.stores.entries import Change, Entry, key_of, limits_text, lines_of, running_lines
from relay.stores.ledger import monotonic_ms
from relay.stores.line import Line, Script

LEASE_MS: Final = 10_000
"""How long a killed relay's slots stay taken, at most."""
CHUNK: Final = 200
"""Entries in one call: some hundred microseconds of the server's time."""

CHANGE: Final = Script(scripts.CHANGE)
SUMS: Final = 2
"""Numbers for each scope in the answer to a change: tokens of the minute, and what is used of the budget."""
_TELL: Final = Script(scripts.TELL)
_SPEND: Final = Script(scripts.SPEND)


class News:
    """What is told over one line."""

    __slots__ = ("_bills", "_is_shared", "_line", "_spent", "_words", "lost")

    def __init__(self, line: Line, *, is_shared: bool) -> None:
        self._line = line
        self._is_shared = is_shared
        """Whether other relays want to hear of it."""
        self.lost: list[Change] = []
        """What Redis has not confirmed; at most one for each request that was in flight when it went away."""
        self._spent: dict[tuple[str, int, int], int] = {}
        """Of budgets, by scope, kind and period: what requests used of which Redis knows nothing."""
        self._bills: list[tuple[bytes, list[bytes]]] = []
        """The same, on its way."""
        self._words: dict[str, tuple[Scope, bytes, bytes]] = {}

    @property
    def is_owed(self) -> bool:
        """Tell whether anything has to be settled."""
        return bool(self.lost or self._spent or self._bills)

    def forget(self) -> None:
        """Forget what scopes look like."""
        self._words.clear()

    def written(self, scopes: Sequence[Scope]) -> tuple[list[bytes], list[bytes]]:
        """Return the keys of scopes, and their limits as the scripts read them."""
        keys, words = [], []
        for scope in scopes:
            known = self._words.get(scope.name)
            if known is None or known[0] is not scope:
                known = self._words[scope.name] = (scope, key_of(scope.name), limits_text(scope.limits, is_shared=self._is_shared))
            keys.append(known[1])
            words.append(known[2])
        return keys, words

    def spend(self, scopes: Sequence[Scope], tokens: int, cost: int) -> None:
        """Note what a request used of which Redis knows nothing."""
        for scope in scopes:
            budget = scope.limits.budget
            if budget is not None and (used := cost if budget.is_money else tokens):
                bill = (scope.name, kind_of(budget), period_of(budget.period, time()))
                self._spent[bill] = self._spent.get(bill, 0) + used

    async def tell(self, entries: Iterable[Entry], *, is_renewal: bool = False) -> None:
        """Tell Redis what is counted here and what runs, scope by scope. Raises LineBroken."""
        by_scope: dict[str, tuple[Scope, list[Entry]]] = {}
        for entry in dict.fromkeys(entries):
            entry.is_known = True
            for scope in entry.demand.scopes:
                by_scope.setdefault(scope.name, (scope, []))[1].append(entry)
        for scope, told in by_scope.values():
            for first in range(0, len(told), CHUNK):
                # Written at the last moment: what ends from here on is told after this.
                now = monotonic_ms()
                lines = [line for entry in told[first : first + CHUNK] for line in lines_of(entry, scope, now, is_renewal=is_renewal)]
                if lines:
                    await self._line.ask(_TELL, [key_of(scope.name)], [self._lease(scope), *lines])

    def _lease(self, scope: Scope) -> bytes:
        return b"%d %d %d" % (kind_of(scope.limits.budget), LEASE_MS, self._is_shared)

    async def settle(self) -> None:
        """Have what ended meanwhile settled. Raises LineBroken."""
        while self.lost:
            change = self.lost[-1]
            if not change.was_sent:
                # What Redis never saw running it could not settle.
                for scope in change.entry.demand.scopes:
                    await self._line.ask(_TELL, [key_of(scope.name)], [self._lease(scope), *running_lines(change.entry, scope)])
                change.was_sent = True
            keys, words = self.written(change.entry.demand.scopes)
            await self._line.ask(CHANGE, keys, [change.text, *words], SUMS * len(keys))
            self.lost.remove(change)
        for (name, kind, period), amount in self._spent.items():
            # The word at the front lets it be sent again.
            self._bills.append((key_of(name), [secrets.token_hex(8).encode(), b"%d" % kind, b"%d" % period, b"%d" % amount]))
        self._spent.clear()
        while self._bills:
            key, bill = self._bills[-1]
            await self._line.ask(_SPEND, [key], bill)
            self._bills.pop()
