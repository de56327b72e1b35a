"""The accounts of limits while the relay runs: what metrics tell of them, and a sweep that holds them against each other."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from relay.config.tree import Config, Redis
from relay.gateway.admission import all_scopes
from relay.policy.slots import AllSlots
from relay.stores import SLOTS_IDENTITY, Ledger, RedisLimiter, open_ledger

SWEEP_SECONDS = 1.0
"""How long the slots of a worker that died stay taken, at most."""
LOOK_SECONDS = 0.002
"""Between two looks at a lock that another process has: as soon as that may have had its turn on a busy core."""
STALLED_LOOK_SECONDS = 0.02
"""Once it must have been stopped."""


class Accounts:
    """The limiter of one relay."""

    __slots__ = (
        "_catching",
        "_changed",
        "_is_shared",
        "_log",
        "_own",
        "_redis",
        "_was_degraded",
        "_was_full",
        "_was_stalled",
        "ledger",
    )

    def __init__(self, directory: str | None, redis: Redis | None, log: Any, changed: Callable[[bool], None]) -> None:
        """Count in `directory`, or in memory, and in `redis` if there is one. Raises StateFileUnusable, RedisUnusable.

        `changed` is told whether limits are degraded, each time that changes; at first they are not.
        """
        self._log = log
        self._changed = changed
        self._was_degraded = False
        self._own = own = open_ledger(directory)
        self._is_shared = directory is not None
        own.on_busy = self._on_busy
        self._catching: asyncio.Task[None] | None = None
        self._was_stalled = self._was_full = False
        self._redis = None if redis is None else RedisLimiter(redis.url.reveal(), redis.replicas, redis.timeout, own, self._tell)
        self.ledger: Ledger | RedisLimiter = own if self._redis is None else self._redis

    async def start(self, slots: AllSlots) -> None:
        """Begin, with the upstreams' `slots` shared by all who count in the directory; with Redis, once it is known whether it is there."""
        if self._is_shared:
            slots.share(self._own.gate)
        if self._redis is not None:
            await self._redis.start()

    @property
    def is_degraded(self) -> bool:
        """Tell whether limits are counted here alone though others share them, or cannot be counted at all."""
        return self._own.is_stalled or (self._redis is not None and self._redis.is_degraded)

    def _tell(self, reason: str | None) -> None:
        if reason is None:
            self._log.info("limits", result="shared", message="Redis is back: limits are counted there")
        else:
            self._log.warning("limits", result="degraded", reason=reason, message="Redis is away: limits are counted here, each in part")
        self._tell_change()

    def _tell_change(self) -> None:
        if self.is_degraded != self._was_degraded:
            self._was_degraded = not self._was_degraded
            self._changed(self._was_degraded)

    def _tell_of_stall(self) -> None:
        if self._own.is_full and not self._was_full:
            self._was_full = True
            message = (
                "the file of limits, or its disk, has no room for another key or route: their requests are refused; see docs/limits.md"
            )
            self._log.error("limits", result="full", message=message)
        if self._own.is_stalled == self._was_stalled:
            return
        self._was_stalled = not self._was_stalled
        if self._was_stalled:
            message = "a process was stopped while it counted: until it goes on or dies limits are counted here, each in part"
            self._log.warning("limits", result="degraded", reason="stopped process", message=message)
        else:
            self._log.info("limits", result="shared", message="the stopped process went on or died: limits are counted together")
        self._tell_change()

    def _on_busy(self) -> None:
        if self._catching is None or self._catching.done():
            self._catching = asyncio.get_running_loop().create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Look at the lock until nothing is left to be counted."""
        while self._own.is_behind:
            self._tell_of_stall()
            await asyncio.sleep(STALLED_LOOK_SECONDS if self._own.is_stalled else LOOK_SECONDS)
            self._own.catch_up()
        self._tell_of_stall()

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
        self._tell_of_stall()
        if self.ledger.granted > in_flight:
            # Every grant belongs to an exchange that has not ended.
            broken.add(SLOTS_IDENTITY)
        for identity in sorted(broken):
            violated(identity)

    async def close(self) -> None:
        """Have the last settlements arrive, then let go."""
        if self._redis is not None:
            await self._redis.aclose()
        if self._catching is not None:
            self._catching.cancel()
        self.ledger.close()
