"""Counts of two kinds over a sliding stretch of time, in a ring of whole seconds.

The stretch is the running second and `seconds` whole ones before it: never shorter than `seconds`, at most one second longer, so
that what is bounded in the ring is bounded in every stretch of `seconds` too. Memory is fixed; an addition costs O(1) amortized.
"""


class Window:
    """How often each of two things happened lately. Time must not run backwards; if it does, it stands still."""

    __slots__ = ("_ends_at", "_first", "_newest", "_second", "_size", "first", "second")

    def __init__(self, seconds: int) -> None:
        self._size = seconds + 1
        self._first = [0] * self._size
        self._second = [0] * self._size
        self._newest = 0
        self._ends_at = 1.0
        """When the running second is over: before that there is nothing to forget."""
        self.first = 0
        """Count of the first kind, as of the last `advance`."""
        self.second = 0
        """Count of the second kind, as of the last `advance`."""

    def advance(self, now: float) -> None:
        """Forget what is too old at `now`."""
        newest = int(now)
        passed = newest - self._newest
        if passed <= 0:
            return
        self._newest = newest
        self._ends_at = newest + 1.0
        if passed >= self._size:
            self.clear()
            return
        for second in range(newest - passed + 1, newest + 1):
            slot = second % self._size
            self.first -= self._first[slot]
            self.second -= self._second[slot]
            self._first[slot] = self._second[slot] = 0

    def add_first(self, now: float) -> None:
        """Count one of the first kind."""
        if now >= self._ends_at:
            self.advance(now)
        self._first[self._newest % self._size] += 1
        self.first += 1

    def add_second(self, now: float) -> None:
        """Count one of the second kind."""
        if now >= self._ends_at:
            self.advance(now)
        self._second[self._newest % self._size] += 1
        self.second += 1

    def clear(self) -> None:
        """Forget everything."""
        self._first = [0] * self._size
        self._second = [0] * self._size
        self.first = self.second = 0
