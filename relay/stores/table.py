"""What a ledger asks of the memory that its accounts lie in."""

from collections.abc import Set
from typing import Protocol

from relay.policy.accounts import Account


class Stalled(Exception):
    """The lock cannot be had: whoever has it does not go on."""


class Table(Protocol):
    """Where accounts lie."""

    @property
    def is_stalled(self) -> bool:
        """Tell whether the lock could not be had the last time."""

    def account(self, name: str) -> Account:
        """Return the account of a scope, a new one when there was none. Called without the lock. Raises Stalled."""

    def keep(self, names: Set[str]) -> None:
        """Take note that no other accounts are in use here."""

    def enter(self) -> None:
        """Take the lock. Raises Stalled."""

    def leave(self) -> None:
        """Give the lock back."""

    def sweep(self) -> None:
        """Give back what dead processes held. Raises Stalled."""

    def close(self) -> None:
        """Let go of the memory."""
