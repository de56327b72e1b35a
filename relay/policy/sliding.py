"""An exact sliding minute over a flat run of integers: at most N in any 60 s, counted entry by entry.

A window is a ring of (stamp, amount) pairs in 64-bit cells, so that the same code works on a process's own memory and on a
map that processes share. Time is whole milliseconds of a clock that never steps. Entries of one quantum are one pair, stamped
with the quantum's last millisecond: that errs on the side of leaving later, by at most the quantum.
"""

from typing import Final, Protocol

WINDOW_MS: Final = 60_001
"""A minute and one: a time is rounded down to its millisecond, and two admissions must be a full minute apart."""
SLOTS: Final = 6_016
"""Pairs kept: one per millisecond up to 6,000 in a minute, else one per 10 ms, and a few for the edges."""
_EXACT: Final = 6_000
_COARSE_MS: Final = 10
_HEAD: Final = 0
_COUNT: Final = 1
_TOTAL: Final = 2
_FIRST: Final = 4
WINDOW_CELLS: Final = _FIRST + 2 * SLOTS


class Cells(Protocol):
    """A run of signed 64-bit integers."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


def quantum_of(limit: int) -> int:
    """Return the milliseconds that one entry of a window for `limit` covers: so many that the ring never overflows."""
    return 1 if limit <= _EXACT else _COARSE_MS


class SlidingWindow:
    """What was counted in the last minute. All zeros is an empty one."""

    __slots__ = ("_cells",)

    def __init__(self, cells: Cells) -> None:
        """Count in `cells`, of which there must be WINDOW_CELLS."""
        self._cells = cells

    def total(self, now: int) -> int:
        """Forget what is too old at `now` and return the sum of the rest."""
        cells = self._cells
        count = cells[_COUNT]
        if not count:
            return 0
        head = cells[_HEAD]
        oldest = now - WINDOW_MS
        total = cells[_TOTAL]
        if cells[_FIRST + 2 * head] > oldest:
            return total
        while count and cells[_FIRST + 2 * head] <= oldest:
            total -= cells[_FIRST + 2 * head + 1]
            head = head + 1 if head + 1 < SLOTS else 0
            count -= 1
        cells[_COUNT] = count
        # An empty ring begins anew, so that a window of few entries touches few pages.
        cells[_HEAD] = head if count else 0
        cells[_TOTAL] = total
        return total

    def peek(self, now: int) -> int:
        """Return what `total` would, and change nothing: for who has not the lock. A writer under way may make it a little wrong."""
        cells = self._cells
        total, oldest = cells[_TOTAL], now - WINDOW_MS
        gone = 0
        for position in range(min(max(0, cells[_COUNT]), SLOTS)):
            at = self._at(position % SLOTS)
            if cells[at] > oldest:
                break
            gone += cells[at + 1]
        return max(0, total - gone)

    def add(self, now: int, amount: int, quantum: int) -> int:
        """Count `amount` at `now`; return the entry's stamp, by which it can be taken back."""
        cells = self._cells
        stamp = now if quantum == 1 else now + quantum - 1 - now % quantum
        count = cells[_COUNT]
        if count:
            at = self._at(count - 1)
            if stamp <= cells[at]:
                cells[at + 1] += amount
                cells[_TOTAL] += amount
                return cells[at]
            if count == SLOTS:
                self._compact()
                count = cells[_COUNT]
        if count == SLOTS:
            # No quantum leaves room for this; were it so, what is counted would only stay longer.
            at = self._at(count - 1)
            cells[at] = stamp
            cells[at + 1] += amount
        else:
            at = self._at(count)
            cells[at] = stamp
            cells[at + 1] = amount
            cells[_COUNT] = count + 1
        cells[_TOTAL] += amount
        return stamp

    def remove(self, stamp: int, amount: int) -> None:
        """Take `amount` of the entry at `stamp` back; nothing when it has left the window."""
        cells = self._cells
        position = self._find(stamp)
        if position is None:
            return
        at = self._at(position)
        taken = min(amount, cells[at + 1])
        cells[at + 1] -= taken
        cells[_TOTAL] -= taken
        # What is empty and newest says nothing of when the window will be.
        count = cells[_COUNT]
        while count and not cells[self._at(count - 1) + 1]:
            count -= 1
        cells[_COUNT] = count

    def wait(self, need: int, now: int) -> int | None:
        """Return in how many milliseconds entries of `need` in all will have left; None when there is not so much."""
        cells = self._cells
        for position in range(cells[_COUNT]):
            at = self._at(position)
            need -= cells[at + 1]
            if need <= 0:
                return max(0, cells[at] + WINDOW_MS - now)
        return None

    def reset(self, now: int) -> int:
        """Return in how many milliseconds the window will be empty if nothing comes."""
        count = self._cells[_COUNT]
        return max(0, self._cells[self._at(count - 1)] + WINDOW_MS - now) if count else 0

    def clear(self) -> None:
        """Forget everything."""
        self._cells[_COUNT] = self._cells[_HEAD] = self._cells[_TOTAL] = 0

    def repair(self) -> None:
        """Make the sum right again after a writer died between two cells."""
        cells = self._cells
        if not (0 <= cells[_HEAD] < SLOTS and 0 <= cells[_COUNT] <= SLOTS):
            self.clear()
        cells[_TOTAL] = sum(cells[self._at(position) + 1] for position in range(cells[_COUNT]))

    def _at(self, position: int) -> int:
        slot = self._cells[_HEAD] + position
        return _FIRST + 2 * (slot if slot < SLOTS else slot - SLOTS)

    def _find(self, stamp: int) -> int | None:
        """Search the entries, whose stamps rise, for one; the newest first, since most is taken back soon."""
        cells = self._cells
        low, high = 0, cells[_COUNT] - 1
        middle = high
        while low <= high:
            found = cells[self._at(middle)]
            if found == stamp:
                return middle
            if found < stamp:
                low = middle + 1
            else:
                high = middle - 1
            middle = (low + high) // 2
        return None

    def _compact(self) -> None:
        """Drop entries of which nothing is left."""
        cells = self._cells
        kept = [(cells[at], cells[at + 1]) for at in map(self._at, range(cells[_COUNT])) if cells[at + 1]]
        cells[_HEAD] = 0
        for position, (stamp, amount) in enumerate(kept):
            cells[_FIRST + 2 * position] = stamp
            cells[_FIRST + 2 * position + 1] = amount
        cells[_COUNT] = len(kept)
