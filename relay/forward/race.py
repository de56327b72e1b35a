"""One attempt, and a backup beside it when the first is slow: the first content wins.

Which of the two answers is decided in the call that begins the client's response, before its first byte: there the other one is
given up, connection and all. So exactly one of them ever writes to the client, and the loser costs nothing from then on; what it
had cost by then is settled with the rest (`admission`). The same holds for a failure that is the answer whoever finds it, such as
a caller's mistake that is told within a 200.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from relay.errors import RelayError
from relay.exchange import Exchange
from relay.forward.attempt import Attempting
from relay.policy.course import Step


class Entrant:
    """One attempt of a race."""

    __slots__ = ("error", "run", "step", "task", "try_")

    def __init__(self, run: Attempting, step: Step, try_: Callable[[], Coroutine[Any, Any, RelayError | None]]) -> None:
        """Enter `run`, which `try_` makes: its result is None when the answer is over, else why nothing reached the client."""
        self.run = run
        self.step = step
        self.try_ = try_
        self.task: asyncio.Task[None] | None = None
        self.error: RelayError | None = None


class Race:
    """The attempts at one answer."""

    __slots__ = ("_entrants", "_exchange", "_is_final", "_next_claim", "_over")

    def __init__(self, exchange: Exchange, is_final: Callable[[], bool]) -> None:
        """Answer `exchange`; `is_final` tells whether the failure of an attempt is the answer, whatever the other one might bring."""
        self._exchange = exchange
        self._is_final = is_final
        self._entrants: list[Entrant] = []
        self._over: list[Entrant] = []
        self._next_claim: Callable[[Attempting], None] | None = None

    @property
    def has_backup(self) -> bool:
        """Tell whether a second attempt was made."""
        return len(self._entrants) > 1

    async def run(self, first: Entrant, delay: float, back_up: Callable[[], Entrant | None]) -> Entrant:
        """Make the attempt `first`, and after `delay` seconds without an answer the one that `back_up` returns, if any.

        Returns the one that answered, else the one that failed last.
        """
        try:
            async with asyncio.TaskGroup() as group:
                task = self._enter(group, first)
                await asyncio.wait({task}, timeout=delay)
                if not first.run.is_open and not first.run.done.done() and not task.done():
                    self._start_backup(group, back_up())
        except BaseExceptionGroup as bugs:
            # A bug of ours: the second, if there is one, comes from the same cause.
            raise bugs.exceptions[0] from None
        finally:
            if self.has_backup:
                for entrant in self._entrants:
                    # For one that was given up before it began; else it knows already.
                    entrant.step.trial.close()
        return next((entrant for entrant in self._entrants if entrant.run.is_open), self._over[-1])

    def _start_backup(self, group: asyncio.TaskGroup, second: Entrant | None) -> None:
        if second is None:
            return
        second.run.attempt.hedge_won = False
        self._enter(group, second)

    def _enter(self, group: asyncio.TaskGroup, entrant: Entrant) -> asyncio.Task[None]:
        self._next_claim = entrant.run.claim
        entrant.run.claim = self._claim
        self._entrants.append(entrant)
        entrant.task = group.create_task(self._go(entrant))
        return entrant.task

    async def _go(self, entrant: Entrant) -> None:
        entrant.error = await entrant.try_()
        self._over.append(entrant)
        if entrant.error is not None and self._is_final() and not any(other.run.is_open for other in self._entrants):
            self._end_others(entrant.run)

    def _end_others(self, last: Attempting) -> None:
        """Give up all but `last` now; their tasks end soon."""
        for entrant in self._entrants:
            if entrant.run is last:
                continue
            assert entrant.task is not None
            if not entrant.run.done.done():
                entrant.run.beat()
                entrant.task.cancel()
        if self.has_backup:
            self._exchange.attempts.sort(key=lambda attempt: attempt is last.attempt)

    def _claim(self, winner: Attempting) -> None:
        """Let `winner` answer: the other one is given up."""
        self._end_others(winner)
        if winner.attempt.hedge_won is not None:
            winner.attempt.hedge_won = True
        if self._next_claim is not None:
            self._next_claim(winner)
