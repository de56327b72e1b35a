"""Health checks: asks upstreams at intervals whether they are well, and lets their targets rest or come back sooner for it."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final

from relay.config.tree import Config, HealthCheck, Upstream
from relay.policy.signs import Sign, Signs, State, rest_seconds, sign_of
from relay.policy.targets import Targets

JITTER: Final = 0.1
"""Share by which an interval is longer or shorter, so that relays do not ask in step."""

Ask = Callable[[Upstream, HealthCheck], Awaitable[int | None]]
"""Sends one check: the status of a whole answer, None when none came in time."""


class HealthChecks:
    """The checks of every upstream that has any: one task each."""

    __slots__ = ("_ask", "_chance", "_log", "_targets", "_tasks")

    def __init__(self, ask: Ask, targets: Targets, log: Any, chance: Callable[[], float]) -> None:
        """Tell `targets` what is learned; `chance` gives numbers in [0, 1)."""
        self._ask = ask
        self._targets = targets
        self._log = log
        self._chance = chance
        self._tasks: dict[str, tuple[Upstream, asyncio.Task[None]]] = {}

    def know(self, config: Config) -> None:
        """Check what `config` wants checked; checks of upstreams that it leaves as they were go on undisturbed."""
        wanted = {name: upstream for name, upstream in config.upstreams.items() if upstream.health is not None}
        for name, (upstream, task) in list(self._tasks.items()):
            if wanted.get(name) != upstream:
                task.cancel()
                del self._tasks[name]
        for name, upstream in wanted.items():
            if name not in self._tasks and upstream.health is not None:
                self._tasks[name] = (upstream, asyncio.get_running_loop().create_task(self._run(upstream, upstream.health)))

    def close(self) -> None:
        """Stop."""
        for _, task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _run(self, upstream: Upstream, check: HealthCheck) -> None:
        signs = Signs()
        await asyncio.sleep(check.every * self._chance())
        while True:
            try:
                status = await self._ask(upstream, check)
            except Exception as error:  # a bug of ours is no sign, and must not end the checks
                self._log.error("internal_error", where="health check", upstream=upstream.name, exc_info=error)
                status = 0
            self._take(upstream, check, signs, status)
            await asyncio.sleep(check.every * (1 - JITTER + 2 * JITTER * self._chance()))

    def _take(self, upstream: Upstream, check: HealthCheck, signs: Signs, status: int | None) -> None:
        sign = sign_of(status)
        if signs.take(sign):
            say = self._log.info if signs.state is State.WELL else self._log.warning
            say("health_check", upstream=upstream.name, state=signs.state.value, status=status)
        now = monotonic()
        for breaker in self._targets.breakers_of(upstream.name):
            if sign is Sign.GOOD:
                breaker.seems_well(now)
            elif signs.state is State.ILL:
                breaker.seems_ill(now, rest_seconds(check.every, check.timeout))
