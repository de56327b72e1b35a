"""Accounts in the memory of one process: gone with it. Pages that no account has used cost nothing."""

import mmap

from relay.policy.accounts import ACCOUNT_CELLS, Account

_BYTES = 8 * ACCOUNT_CELLS


class MemoryTable:
    """A `ledger.Table` without a lock: the calls of one event loop take turns anyway."""

    __slots__ = ("_accounts",)

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def account(self, name: str) -> Account:
        """Return the account of a scope."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(memoryview(mmap.mmap(-1, _BYTES)).cast("q"), 0)
        return account

    def enter(self) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""

    def sweep(self) -> None:
        """Do nothing: nobody else holds anything."""

    def close(self) -> None:
        """Forget everything."""
        self._accounts.clear()
