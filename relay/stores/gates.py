"""The slots of an upstream that several processes take: how many are taken, and who has waited longest, in an account of its own.

It lies in the table of the limits, so what a killed process held, or waited for, is given back as theirs is. While a process
that was stopped has the table's lock, each of the others takes its part of the slots that were left, and enters what changed afterwards.
"""

from collections.abc import Callable

from relay.policy.accounts import Account
from relay.stores.table import Busy


class SharedGate:
    """A `policy.slots.Gate`."""

    __slots__ = ("_apart", "_enter", "_enter_whole", "_find", "_found", "_is_late", "_later", "_leave", "_now", "_open", "_owed", "_since")

    def __init__(
        self,
        open_account: Callable[[], Account],
        *,
        find: Callable[[], Account | None],
        enter: Callable[[], None],
        enter_whole: Callable[[], None],
        leave: Callable[[], None],
        later: Callable[[Callable[[], None]], None],
        now: Callable[[], int],
        apart: Callable[[], int],
    ) -> None:
        """Count in the account that `open_account` returns, between `enter` and `leave`; what is told `later` is done by the next `enter`.

        `enter_whole` fails also while others have something to enter. `find` returns the account without the lock, if it is there.
        `apart` returns among how many processes to divide what is left while the lock cannot be had for long, else 0.
        """
        self._open = open_account
        self._find = find
        self._found: Account | None = None
        self._enter = enter
        self._enter_whole = enter_whole
        self._leave = leave
        self._later = later
        self._now = now
        self._apart = apart
        self._owed = 0
        """Slots taken and not entered, less those given back and not entered."""
        self._since: int | None = None
        """Since when somebody waits here, where that is not entered."""
        self._is_late = False

    def now(self) -> int:
        """Return the instant, in milliseconds."""
        return self._now()

    def has_room(self, limit: int) -> bool:
        """Tell whether a slot seems to be free: a look without the lock."""
        account = self._found
        return account is None or (account.slots < limit and not account.is_awaited)

    def take(self, limit: int, since: int, queue_wait: float) -> bool:
        """Take a slot; False where there is none for who waits `since` that instant, or while nobody can count."""
        try:
            self._enter_whole()
        except Busy:
            return self._take_apart(limit)
        try:
            account = self._account()
            if account.slots >= limit or account.is_behind(since, self._now() - int(1000 * queue_wait)):
                return False
            account.hold(0, 0, 1)
            return True
        finally:
            self._leave()

    def _take_apart(self, limit: int) -> bool:
        processes = self._apart()
        if not processes:
            return False
        account = self._found or self._find()
        taken = 0 if account is None else account.peek(None, self._now(), 0.0).slots
        if self._owed >= (limit - taken) // processes:
            return False
        self._owed += 1
        self._tell_later()
        return True

    def give(self) -> None:
        """Give a slot back, now or when somebody can count again."""
        self._owed -= 1
        self._tell()

    def wait(self, since: int) -> None:
        """Tell the others since when somebody waits here; 0 for nobody."""
        self._since = since
        self._tell()

    def _tell(self) -> None:
        try:
            self._enter()
        except Busy:
            self._tell_later()
            return
        try:
            self._catch_up()
        finally:
            self._leave()

    def _tell_later(self) -> None:
        if not self._is_late:
            self._is_late = True
            self._later(self._catch_up)

    def _catch_up(self) -> None:
        self._is_late = False
        account = self._account()
        if self._owed:
            account.hold(0, 0, self._owed)
            self._owed = 0
        if self._since is not None:
            account.queue(self._since)
            self._since = None

    def _account(self) -> Account:
        if self._found is None:
            self._found = self._open()
        return self._found
