"""The course of one exchange over its targets: what is tried first, and what after each failure.

Another credential of a target that was tried goes before another target, and that before the same again. What was not sent may always be
tried elsewhere; what was sent only if it is safe to repeat. The first fallback is free, what comes after it is taken from the retry budget.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Final

from relay.errors import UpstreamError, UpstreamRefused
from relay.policy.backoff import CAP_SECONDS, backoff
from relay.policy.patience import MAX_ADVISED_SECONDS, Patience, advice
from relay.policy.ration import Ration
from relay.policy.refusals import Blame
from relay.policy.retries import MAX_ATTEMPTS, MAX_TRIES, SHARE, needs_budget
from relay.policy.routing import Choice, RoutePlan
from relay.policy.targets import Targets
from relay.policy.trial import Trial
from relay.policy.verdicts import Verdict, is_stale_connection, judge

_OF_CREDENTIALS: Final = frozenset({Blame.CREDENTIAL, Blame.ACCOUNT})
_ASKED_AGAIN: Final = frozenset({408, 409, 429})
"""Statuses below 500 that official SDKs try again by themselves."""


@dataclass(slots=True, eq=False)
class Step:
    """One attempt to make. Not frozen, which would cost every request a microsecond; nobody changes it."""

    choice: Choice
    trial: Trial
    wait_seconds: float = 0.0
    """How long to wait before it."""
    is_fresh: bool = False
    """Whether it is a resend, on a connection of its own, for the one before died unused."""


class Course:
    """What one exchange tries, one step at a time."""

    __slots__ = (
        "_can_repeat",
        "_chance",
        "_has_moved",
        "_is_final",
        "_live",
        "_more",
        "_next",
        "_patience",
        "_plan",
        "_repeats",
        "_retries",
        "_sent",
        "_targets",
        "_tries",
        "_waits",
        "_was_resent",
    )

    def __init__(
        self,
        plan: RoutePlan,
        targets: Targets,
        retries: Ration,
        patience: Patience,
        *,
        can_repeat: bool,
        chance: Callable[[], float],
    ) -> None:
        """Follow `plan`; `can_repeat` tells whether the request may be sent twice, `chance` gives numbers in [0, 1)."""
        self._plan = plan
        self._targets = targets
        self._retries = retries
        self._patience = patience
        self._can_repeat = can_repeat
        self._chance = chance
        self._live: list[Step] = []
        """The attempts under way: one, or two while a backup races."""
        self._more: list[Choice] = []
        """Targets that failed for the credential that was used: they may have another."""
        self._next: Step | None = None
        self._is_final = False
        self._was_resent = False
        self._has_moved = False
        self._sent = 0
        self._tries = 0
        self._repeats = 0
        self._waits: list[float] = []

    def start(self, now: float) -> Step:
        """Return the first step: there is one always, for the last target is tried although it rests."""
        self._retries.note_request(now)
        while True:
            choice = self._plan.next()
            assert choice is not None
            self._tries += 1
            is_last = not self._plan.has_more or self._tries >= MAX_TRIES
            trial = self._targets.begin(choice.target, now, is_forced=is_last)
            if trial is not None:
                return self._entered(Step(choice, trial))

    def back_up(self, now: float, may_hedge: Callable[[], bool]) -> Step | None:
        """Return a step to make beside the one under way, if `may_hedge` allows it; None when it is beyond any bound."""
        if not self._can_repeat or self._sent + len(self._live) >= MAX_ATTEMPTS or not self._patience.fits(now, 0.0):
            return None
        usable = (each for each in self._plan.left if self._targets.may_try(each.target, now) and self._plan.has_free_slot(each))
        choice = next(usable, None)
        if choice is None or not may_hedge():
            return None
        self._plan.take(choice)
        self._tries += 1
        trial = self._targets.begin(choice.target, now)
        assert trial is not None
        # Two attempts are under way: that one's connection was stale shall not bring a third.
        self._was_resent = self._has_moved = True
        return self._entered(Step(choice, trial))

    def failed(self, step: Step, error: UpstreamError, now: float, *, was_sent: bool = True, was_reused: bool = False) -> bool:
        """Judge the failure of `step`; return whether it is given up for another step, or for an attempt that still runs.

        Asked again, the answer stays. `was_sent` tells whether a byte of the request went out, `was_reused` whether on a connection
        that had served before.
        """
        if step in self._live:
            self._live.remove(step)
            self._is_final = False
            self._next = self._decide(step, error, now, was_sent=was_sent, was_reused=was_reused)
        return not self._is_final and (self._next is not None or bool(self._live))

    def is_final(self) -> bool:
        """Tell whether what failed last is the answer, whatever else is under way: no other target could mend it."""
        return self._is_final

    def go_on(self) -> Step | None:
        """Return the next step; None when nothing is left to try."""
        step, self._next = self._next, None
        return None if step is None else self._entered(step)

    def crowded(self, step: Step, now: float) -> Step | None:
        """Leave the target of `step`, which takes no more calls, for the next one; None when nothing is left. Nothing was tried."""
        self._live.remove(step)
        step.trial.close()
        while self._tries < MAX_TRIES and (choice := self._plan.next()) is not None:
            self._tries += 1
            trial = self._targets.begin(choice.target, now)
            if trial is not None:
                return self._entered(Step(choice, trial))
        return None

    @property
    def is_resending(self) -> bool:
        """Tell whether the next step is a resend of the one before it."""
        return self._next is not None and self._next.is_fresh

    def close(self) -> None:
        """Hand back what no attempt has told of."""
        for step in self._live:
            step.trial.close()
        if self._next is not None:
            self._next.trial.close()

    def _entered(self, step: Step) -> Step:
        self._live.append(step)
        return step

    def advice(self, status: int) -> dict[str, str]:
        """Tell an SDK that gets `status` whether to try again: where waiting helps, when; never when that only multiplies attempts."""
        if not self._waits or (status < 500 and status not in _ASKED_AGAIN):
            return {}
        helps_in = min(self._waits)
        if 0 < helps_in <= MAX_ADVISED_SECONDS:
            return advice(helps_in)
        return advice(None) if helps_in or len(self._waits) > 1 else {}

    def _decide(self, step: Step, error: UpstreamError, now: float, *, was_sent: bool, was_reused: bool) -> Step | None:
        if self._live and is_stale_connection(error, was_reused=was_reused):
            step.trial.close()
            return None
        if self._can_resend(error, now, was_reused=was_reused):
            # With the same permit and outside of the budget: that a kept connection was stale says nothing of the target.
            self._was_resent = True
            return Step(step.choice, step.trial, is_fresh=True)
        verdict = judge(error, step.choice)
        step.trial.failed(verdict, now, self._chance())
        self._sent += was_sent
        self._waits.append(self._helps_in(step, error, verdict, now))
        # What no other target could mend is the answer, whoever finds it.
        self._is_final = not verdict.fall_back
        if verdict.blame in _OF_CREDENTIALS:
            self._more.append(step.choice)
        if self._live:
            return None
        if not verdict.fall_back or (self._sent and not self._can_repeat):
            return None
        if self._sent >= MAX_ATTEMPTS or not self._patience.fits(now, 0.0):
            return None
        return self._another(step, now) or self._again(step, error, verdict, now)

    def _can_resend(self, error: UpstreamError, now: float, *, was_reused: bool) -> bool:
        if not self._can_repeat or self._was_resent or not is_stale_connection(error, was_reused=was_reused):
            return False
        return self._patience.fits(now, 0.0)

    def _helps_in(self, step: Step, error: UpstreamError, verdict: Verdict, now: float) -> float:
        """Return when the target that failed may do better, as far as anybody said; 0 when nobody did."""
        if verdict.is_final:
            return inf
        said = error.retry_after if isinstance(error, UpstreamRefused) else None
        return max(said or 0.0, self._targets.rest_left(step.choice.target, now))

    def _another(self, step: Step, now: float) -> Step | None:
        """Return the next credential of a target that was tried, or the next target."""
        for choice in self._offers():
            # The attempt that failed may still have the turn that its target has to give.
            if not self._targets.may_try(choice.target, now) or not (choice is step.choice or self._plan.has_room(choice)):
                continue
            if needs_budget(self._sent) and not self._retries.take(now, SHARE):
                return None
            trial = self._targets.begin(choice.target, now)
            assert trial is not None
            self._has_moved = True
            return Step(choice, trial)
        return None

    def _offers(self) -> Iterator[Choice]:
        while self._tries < MAX_TRIES:
            choice = self._more.pop(0) if self._more else self._plan.next()
            if choice is None:
                return
            self._tries += 1
            yield choice

    def _again(self, step: Step, error: UpstreamError, verdict: Verdict, now: float) -> Step | None:
        """Return the same target once more after a wait, where there was nothing else to try and nobody else tries again."""
        choice = step.choice
        if not verdict.can_repeat or self._has_moved or self._patience.retry_count or self._repeats >= self._plan.route.retries:
            return None
        # A rest that ends brings everyone at once, were it not for the jitter.
        wait = self._helps_in(step, error, verdict, now) + backoff(self._repeats, self._chance())
        if wait > CAP_SECONDS or not self._patience.fits(now, wait) or not self._retries.take(now, SHARE):
            return None
        trial = self._targets.begin(choice.target, now, is_forced=True)
        assert trial is not None
        self._repeats += 1
        return Step(choice, trial, wait)
