"""The accounts of limits while the relay runs: what metrics tell of them, and a sweep that holds them against each other."""

import asyncio
from collections.abc import Callable, Iterator

from relay.admission import all_scopes
from relay.config.tree import Config
from relay.stores import SLOTS_IDENTITY, open_ledger

SWEEP_SECONDS = 1.0
"""How long the slots of a worker that died stay taken, at most."""


class Accounts:
    """The limiter of one relay."""

    __slots__ = ("ledger",)

    def __init__(self, directory: str | None) -> None:
        """Count in `directory`, or in memory. Raises StateFileUnusable."""
        self.ledger = open_ledger(directory)

    def know(self, config: Config) -> None:
        """Forget what the configuration does not limit any more."""
        self.ledger.know(all_scopes(config.keys.values(), config.routes.values()))

    def shares(self) -> Iterator[tuple[str, str, float]]:
        """Yield key, limit and used share of every limit of a key that was used."""
        for scope, shares, _ in self.ledger.standings():
            if scope.key is not None:
                for limit, share in shares.items():
                    yield scope.key, scope.prefix + limit.value, share

    def reserved(self) -> dict[str, int]:
        """Return the tokens reserved for each key."""
        found: dict[str, int] = {}
        for scope, _, tokens in self.ledger.standings():
            if scope.key is not None:
                found[scope.key] = max(tokens, found.get(scope.key, 0))
        return found

    async def watch(self, in_flight: Callable[[], int], violated: Callable[[str], None]) -> None:
        """Sweep until cancelled; `violated` is told of every identity that does not hold."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep(in_flight(), violated)

    def sweep(self, in_flight: int, violated: Callable[[str], None]) -> None:
        """Give back what dead processes held, and check the identities."""
        broken = set(self.ledger.sweep())
        if self.ledger.granted > in_flight:
            # Every grant belongs to an exchange that has not ended.
            broken.add(SLOTS_IDENTITY)
        for identity in sorted(broken):
            violated(identity)

    def close(self) -> None:
        """Let go of them."""
        self.ledger.close()
