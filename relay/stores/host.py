"""Accounts in a file that the processes of one machine map into their memory: exact limits for all of them, no server.

Why so: measured on one core of a small machine, a flock pair costs 1.0 us and a cell 0.03 us, so that an admission and
its settlement stay near 20 us; SQLite (WAL, synchronous off, two transactions) costs 39 us for one window alone, and its processes
wait for each other by sleeping. A map shares the file's pages, so what was counted outlives every process, by kill -9 too; with the
file in a directory that stays, budgets survive a restart.

Dying: the kernel gives a dead process's lock back. A writer that died between two cells leaves `_DIRTY` set, and the next one makes
the sums right again. What a process held stands in its own column; it is alive as long as it has the lock on its own file, so a
column whose file can be locked belongs to nobody and is given back by whoever sweeps next. No clock decides, so a
process that was merely stopped keeps what it holds.

The lock is held for some microseconds and nothing in between waits; on a busy machine its holder may be off the core for some
milliseconds. Who finds it taken tries for SPIN_SECONDS, once, and then only now and then. When WAIT_SECONDS have passed a signal
must have stopped the holder: from then on each process admits its part of what was left (`standin`), says so in a cell of its own, and
enters it when the lock is free again, because its holder went on or died. Until all have done so nobody admits from the whole.

An account that was made stays: others may have it in hand, and what was spent of a budget is to be found again. Requests of a scope
that finds no room any more are refused, and the log says so. Room is set aside on the disk when an account is made: a write into a
map for which a full disk has none would end the process (SIGBUS).

After the machine's restart the monotonic clock begins anew: minutes are forgotten then, budgets are not.
"""

import fcntl
import hashlib
import mmap
import os
from collections.abc import Set
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from relay.policy.accounts import ACCOUNT_CELLS, MAX_WORKERS, Account
from relay.stores.ledger import monotonic_ms
from relay.stores.table import Busy, Full

_MAGIC: Final = 0x72656C61796C696D
"""The letters `relaylim`."""
_VERSION: Final = 1
_HEADER_BYTES: Final = 65_536
"""A multiple of every system's page size, as offsets of maps must be."""
_STRIDE: Final = 32_768
"""Cells from one account to the next: its name, and as many as it needs; in bytes a multiple of every page size."""
_NAME_CELLS: Final = 2
_SEGMENT: Final = 64
"""Accounts in one map: each map costs a descriptor."""
_MAX_ACCOUNTS: Final = 65_536
"""Scopes that a file may hold, some 200 KiB each: an end to what keys that come and go can take."""

SPIN_SECONDS: Final = 0.005
"""How long a lock that is taken may hold this process up, once: a turn of another process on a busy core."""
WAIT_SECONDS: Final = 0.25
"""Until a lock's holder counts as stopped: many times what a core that is shared by many makes it wait."""
START_WAIT_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.000_05

_IS_MAGIC, _IS_VERSION, _COUNT, _LAST_MS, _DIRTY, _ANY_APART = range(6)
_ALIVE: Final = 16
"""From here one cell for each process: whether its column may be in use."""
_APART: Final = _ALIVE + MAX_WORKERS
"""From here one cell for each process, written by it alone: whether it counts by itself."""


class StateFileUnusable(Exception):
    """The file cannot be had, is none of ours, or of another version. The text says what to do."""


class HostTable:
    """A `table.Table` in the directory `directory`, which is made when it is not there. Raises StateFileUnusable."""

    __slots__ = ("_accounts", "_busy_since", "_fd", "_header", "_own_lock", "_parted_since", "_path", "_segments", "worker")

    def __init__(self, directory: Path) -> None:
        assert _NAME_CELLS + ACCOUNT_CELLS <= _STRIDE
        self._path = directory / "limits"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateFileUnusable(f"cannot write {self._path}: {error.strerror}; is `state_dir` right?") from None
        self._busy_since: float | None = None
        """Since when the lock has not been had; None when it was, the last time."""
        self._parted_since: float | None = None
        """Since when others count by themselves though the lock is free."""
        self._segments: list[memoryview] = []
        self._accounts: dict[tuple[int, int], int] = {}
        try:
            self._header = self._open()
            self.worker, self._own_lock = self._register()
        except BaseException:
            os.close(self._fd)
            raise
        self._begin()

    def _open(self) -> memoryview:
        self._lock_to_start()
        try:
            size = os.fstat(self._fd).st_size
            if size == 0:
                self._begin_file()
            elif size < _HEADER_BYTES:
                raise self._unusable()
            header = memoryview(mmap.mmap(self._fd, _HEADER_BYTES)).cast("q")
            if size == 0:
                header[_IS_MAGIC], header[_IS_VERSION] = _MAGIC, _VERSION
            if (header[_IS_MAGIC], header[_IS_VERSION]) != (_MAGIC, _VERSION):
                raise self._unusable()
            return header
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _begin_file(self) -> None:
        try:
            _set_aside(self._fd, 0, _HEADER_BYTES)
            os.ftruncate(self._fd, _HEADER_BYTES)
        except OSError as error:
            os.ftruncate(self._fd, 0)
            raise StateFileUnusable(f"cannot write {self._path}: {error.strerror}") from None

    def _unusable(self) -> StateFileUnusable:
        return StateFileUnusable(f"{self._path} is not a file of limits of this version; move it away (budgets then begin anew)")

    def _register(self) -> tuple[int, int]:
        """Find a column that nobody uses; return its number and the descriptor of the lock that says it is in use."""
        for worker in range(MAX_WORKERS):
            lock = self._try_lock(worker)
            if lock is not None:
                return worker, lock
        raise StateFileUnusable(f"{self._path} is in use by {MAX_WORKERS} processes, which is the most")

    def _try_lock(self, worker: int) -> int | None:
        fd = os.open(f"{self._path}-{worker}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd

    def _begin(self) -> None:
        self._lock_to_start()
        self._clean()
        try:
            if self._header[_LAST_MS] > monotonic_ms() + 1:
                for account in self._all():
                    account.requests.clear()
                    account.tokens.clear()
            for account in self._all():
                account.reclaim(self.worker)
            self._header[_ALIVE + self.worker] = 1
            self._header[_APART + self.worker] = 0
        finally:
            self.leave()

    # table.Table

    def account(self, name: str) -> Account:
        """Return the account of a scope; the first process that asks for it makes it. Raises Full."""
        ident = _ident(name)
        self._look()
        index = self._accounts.get(ident)
        if index is None:
            index = self._make(ident)
        return self._at(index)

    def find(self, name: str) -> Account | None:
        """Return the account of a scope if there is one. Needs no lock: an account has its name before it is counted among them."""
        self._look()
        index = self._accounts.get(_ident(name))
        return None if index is None else self._at(index)

    def keep(self, names: Set[str]) -> None:
        """Do nothing: other processes may use them, and what was spent of a budget is to be found again."""

    def enter(self) -> None:
        """Take the lock, and clean up after a process that died with it. Raises Busy."""
        if not self._try():
            self._spin()
        self._clean()

    @property
    def is_busy(self) -> bool:
        """Tell whether another process had the lock the last time."""
        return self._busy_since is not None

    @property
    def is_stalled(self) -> bool:
        """Tell whether another process has the lock and does not go on."""
        return self._busy_since is not None and monotonic() - self._busy_since >= WAIT_SECONDS

    @property
    def is_whole(self) -> bool:
        """Tell whether no other process counts by itself; one that does not come back for long has been stopped as well."""
        if not self._header[_ANY_APART]:
            return True
        # In this order: who parts meanwhile says so in the other order, and is seen here, or the next time.
        self._header[_ANY_APART] = 0
        if not any(self._header[_APART : _APART + MAX_WORKERS]):
            self._parted_since = None
            return True
        self._header[_ANY_APART] = 1
        now = monotonic()
        if self._parted_since is None:
            self._parted_since = now
        return now - self._parted_since >= WAIT_SECONDS

    @property
    def processes(self) -> int:
        """Return how many processes share the accounts."""
        return sum(1 for is_alive in self._header[_ALIVE : _ALIVE + MAX_WORKERS] if is_alive)

    def part(self, *, is_apart: bool) -> None:
        """Tell the others that this process counts by itself, or does so no more."""
        self._header[_APART + self.worker] = is_apart
        if is_apart:
            self._header[_ANY_APART] = 1

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._busy_since = None
        return True

    def _spin(self) -> None:
        """Try again for a short time, unless that was done since the lock was had last. Raises Busy."""
        if self._busy_since is not None:
            raise Busy
        self._busy_since = now = monotonic()
        until = now + SPIN_SECONDS
        while monotonic() < until:
            sleep(_PAUSE_SECONDS)
            if self._try():
                return
        raise Busy

    def _lock_to_start(self) -> None:
        until = monotonic() + START_WAIT_SECONDS
        while not self._try():
            if monotonic() > until:
                raise StateFileUnusable(f"{self._path} is locked by a process that does not go on; is one stopped?")
            sleep(_PAUSE_SECONDS)

    def _clean(self) -> None:
        header = self._header
        if header[_DIRTY]:
            for account in self._all():
                account.repair()
        header[_DIRTY] = 1

    def leave(self) -> None:
        """Give the lock back."""
        self._header[_DIRTY] = 0
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def sweep(self) -> None:
        """Give back what dead processes held, and note the time."""
        self._header[_LAST_MS] = monotonic_ms()
        for worker in range(MAX_WORKERS):
            if worker != self.worker and self._header[_ALIVE + worker]:
                self._reclaim_if_dead(worker)

    def _reclaim_if_dead(self, worker: int) -> None:
        lock = self._try_lock(worker)
        if lock is None:
            return
        try:
            self.enter()
            try:
                for account in self._all():
                    account.reclaim(worker)
                self._header[_ALIVE + worker] = self._header[_APART + worker] = 0
            finally:
                self.leave()
        finally:
            os.close(lock)

    def close(self) -> None:
        """Give the column back and let go of the file; what is held in it by now counts as lost."""
        self._header[_LAST_MS] = monotonic_ms()
        os.close(self._own_lock)
        os.close(self._fd)
        self._fd = -1  # whoever comes late shall not lock what the number may mean by then

    # Accounts

    def _look(self) -> None:
        """Learn of the accounts that other processes have made."""
        for index in range(len(self._accounts), self._header[_COUNT]):
            cells = self._cells(index)
            self._accounts[cells[0], cells[1]] = index

    def _make(self, ident: tuple[int, int]) -> int:
        index = self._header[_COUNT]
        if index >= _MAX_ACCOUNTS:
            raise Full
        try:
            cells = self._cells(index)
            _set_aside(self._fd, _HEADER_BYTES + 8 * _STRIDE * index, 8 * (_NAME_CELLS + ACCOUNT_CELLS))
        except OSError:
            raise Full from None
        cells[0], cells[1] = ident
        self._accounts[ident] = index
        self._header[_COUNT] = index + 1
        return index

    def _all(self) -> list[Account]:
        return [self._at(index) for index in range(self._header[_COUNT])]

    def _at(self, index: int) -> Account:
        return Account(self._cells(index)[_NAME_CELLS : _NAME_CELLS + ACCOUNT_CELLS], self.worker)

    def _cells(self, index: int) -> memoryview:
        """Return the cells of account number `index`; the file grows by whole maps, of which only accounts take room."""
        while index >= len(self._segments) * _SEGMENT:
            length = 8 * _STRIDE * _SEGMENT
            offset = _HEADER_BYTES + length * len(self._segments)
            if os.fstat(self._fd).st_size < offset + length:
                os.ftruncate(self._fd, offset + length)
            self._segments.append(memoryview(mmap.mmap(self._fd, length, offset=offset)).cast("q"))
        start = _STRIDE * (index % _SEGMENT)
        return self._segments[index // _SEGMENT][start : start + _STRIDE]


def _set_aside(fd: int, offset: int, length: int) -> None:
    """Have the file system keep room for a part of the file. Raises OSError when there is none."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        os.posix_fallocate(fd, offset, length)


def _ident(name: str) -> tuple[int, int]:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:16], "big", signed=True)
