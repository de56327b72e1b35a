"""What was used of the limits of one scope: integer cells, with a column for each process that counts in them.

The cells may lie in memory that several processes share; by its column can be told, and given back, what a process held when it died.
"""

from typing import Final

from relay.config.tree import Budget, Period
from relay.policy.periods import period_of
from relay.policy.shares import Use
from relay.policy.sliding import WINDOW_CELLS, Cells, SlidingWindow

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

    def queue(self, since: int) -> None:
        """Note since when somebody of this process waits for a slot; 0 for nobody. For accounts of slots alone, which hold no budget."""
        self.hold(0, since - self.cells[self._column + _HELD], 0)

    def is_behind(self, since: int, not_before: int) -> bool:
        """Tell whether in another process somebody waits for longer than `since`, and not since before `not_before`."""
        cells, own = self.cells, self._column
        if cells[_HELD] == cells[own + _HELD]:
            return False
        stamps = ((cells[column + _HELD], column) for column in range(_COLUMNS, _REQUEST_WINDOW, _COLUMN_CELLS))
        return any(stamp and not_before <= stamp and (stamp, column) < (since, own) for stamp, column in stamps)

    @property
    def is_awaited(self) -> bool:
        """Tell whether anybody waits for a slot, in any process."""
        return self.cells[_HELD] != 0

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
            self.cells[kind] = self._sum_of(kind)

    def _sum_of(self, kind: int) -> int:
        return sum(self.cells[_COLUMNS + _COLUMN_CELLS * worker + kind] for worker in range(MAX_WORKERS))

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

    def peek(self, budget: Budget | None, now: int, unix_time: float) -> Use:
        """Return what was used by all, and change nothing: for who has not the lock. A writer under way may make it wrong by one change."""
        cells = self.cells
        used = 0
        if budget is not None and cells[_KIND] == kind_of(budget):
            is_current = period_of(budget.period, unix_time) <= cells[_PERIOD]
            used = self._sum_of(_HELD) + (cells[_SPENT] if is_current else 0)
        return Use(self.requests.peek(now), self.tokens.peek(now), self._sum_of(_SLOTS), used)

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
