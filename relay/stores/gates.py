"""The slots of an upstream that several processes take: how many are taken, and who has waited longest, in an account of its own.

It lies in the table of the limits, so what a killed process held, or waited for, is given back as theirs is.
"""

from collections.abc import Callable

from relay.policy.accounts import Account
from relay.stores.table import Stalled


class SharedGate:
    """A `policy.slots.Gate`."""

    __slots__ = ("_change", "_enter", "_found", "_leave", "_now", "_open")

    def __init__(
        self,
        open_account: Callable[[], Account],
        *,
        enter: Callable[[], None],
        leave: Callable[[], None],
        change: Callable[[Callable[[], None]], None],
        now: Callable[[], int],
    ) -> None:
        """Count in the account that `open_account` returns, between `enter` and `leave`, or in a `change` that may have to wait."""
        self._open = open_account
        self._found: Account | None = None
        self._enter = enter
        self._leave = leave
        self._change = change
        self._now = now

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
            account = self._account()
            self._enter()
        except Stalled:
            return False
        try:
            if account.slots >= limit or account.is_behind(since, self._now() - int(1000 * queue_wait)):
                return False
            account.hold(0, 0, 1)
            return True
        finally:
            self._leave()

    def give(self) -> None:
        """Give a slot back, now or when somebody can count again."""
        self._change(lambda: self._account().hold(0, 0, -1))

    def wait(self, since: int) -> None:
        """Tell the others since when somebody waits here; 0 for nobody."""
        account = self._found
        if account is not None:
            self._change(lambda: account.queue(since))

    def _account(self) -> Account:
        if self._found is None:
            self._found = self._open()
        return self._found
