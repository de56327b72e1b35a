"""Accounts in the memory of one process: gone with it. Pages that no account has used cost nothing."""

from collections.abc import Set
from typing import Final

from relay.policy.accounts import Account
from relay.stores.standin import private_account

MAX_UNUSED: Final = 1_024
"""Accounts kept for scopes that are gone, at some 12 KiB: a key that is taken out and put back has not been given its budget anew."""


class MemoryTable:
    """A `table.Table` without a lock: the calls of one event loop take turns anyway."""

    __slots__ = ("_accounts",)

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    @property
    def is_busy(self) -> bool:
        """Return False: there is no lock."""
        return False

    @property
    def is_stalled(self) -> bool:
        """Return False."""
        return False

    @property
    def is_whole(self) -> bool:
        """Return True: nobody else counts anything."""
        return True

    @property
    def processes(self) -> int:
        """Return 1."""
        return 1

    def part(self, *, is_apart: bool) -> None:
        """Do nothing."""

    def account(self, name: str) -> Account:
        """Return the account of a scope."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = private_account()
        return account

    def find(self, name: str) -> Account | None:
        """Return the account of a scope if there is one."""
        return self._accounts.get(name)

    def keep(self, names: Set[str]) -> None:
        """Forget the oldest accounts of other scopes, as far as there are too many."""
        unused = [name for name in self._accounts if name not in names]
        for name in unused[: max(0, len(unused) - MAX_UNUSED)]:
            del self._accounts[name]

    def enter(self) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""

    def sweep(self) -> None:
        """Do nothing: nobody else holds anything."""

    def close(self) -> None:
        """Forget everything."""
        self._accounts.clear()
