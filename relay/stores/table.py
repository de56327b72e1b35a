"""What a ledger asks of the memory that its accounts lie in."""

from collections.abc import Set
from typing import Protocol

from relay.policy.accounts import Account


class Busy(Exception):
    """The lock cannot be had now, or not all count under it."""


class Full(Exception):
    """There is no room for another account."""


class Table(Protocol):
    """Where accounts lie."""

    @property
    def is_busy(self) -> bool:
        """Tell whether the lock could not be had the last time."""

    @property
    def is_stalled(self) -> bool:
        """Tell whether the lock cannot be had for so long that whoever has it must have been stopped."""

    @property
    def is_whole(self) -> bool:
        """Tell whether all others count here too, and nobody by itself: asked with the lock."""

    @property
    def processes(self) -> int:
        """Return how many processes share the accounts."""

    def part(self, *, is_apart: bool) -> None:
        """Tell the others that this process counts by itself, or does so no more. Called with or without the lock."""

    def account(self, name: str) -> Account:
        """Return the account of a scope, a new one when there was none. Called with the lock. Raises Full."""

    def find(self, name: str) -> Account | None:
        """Return the account of a scope if there is one. Called with or without the lock."""

    def keep(self, names: Set[str]) -> None:
        """Take note that no other accounts are in use here."""

    def enter(self) -> None:
        """Take the lock. Raises Busy."""

    def leave(self) -> None:
        """Give the lock back."""

    def sweep(self) -> None:
        """Give back what dead processes held. Raises Busy."""

    def close(self) -> None:
        """Let go of the memory."""
