"""What an attempt means for its target's health, and what is left to try when it fails."""

from collections.abc import Callable
from time import monotonic
from typing import Final

from relay.errors import RelayError, UpstreamError
from relay.exchange import Outcome
from relay.policy.breaker import Breaker, Permit
from relay.policy.patience import Patience
from relay.policy.retries import MAX_ATTEMPTS, RetryBudget, needs_budget
from relay.policy.routing import RoutePlan
from relay.policy.targets import Targets
from relay.policy.verdicts import judge


class Onward:
    """Whether an attempt's refusal may be given up for another target: else it is passed on, which tells more than an error of ours."""

    __slots__ = ("_patience", "_plan", "_retries", "_targets", "has_rival", "is_paid", "sent")

    def __init__(self, plan: RoutePlan, targets: Targets, retries: RetryBudget, patience: Patience, *, sent: int) -> None:
        """Look at what `plan` has left; `sent` are the attempts made by then, this one included."""
        self._plan = plan
        self._targets = targets
        self._retries = retries
        self._patience = patience
        self.sent = sent
        self.has_rival = False
        """Whether another attempt is under way that may still answer."""
        self.is_paid = False
        """Whether the next attempt was taken from the budget already."""

    def reserve(self) -> bool:
        """Tell whether another target can be tried now; takes it from the budget, for others ask in the same moment."""
        if self.has_rival:
            return True
        now = monotonic()
        if self.sent >= MAX_ATTEMPTS or not self._patience.fits(now, 0.0):
            return False
        if not any(self._targets.breaker(choice.target).may_try(now) for choice in self._plan.left):
            return False
        self.is_paid = needs_budget(self.sent, is_same_target=False) and self._retries.take(now)
        return self.is_paid or not needs_budget(self.sent, is_same_target=False)


class Trial:
    """One permit of a target's breaker, handed back exactly once; a break after that is a failure of its own."""

    __slots__ = ("_breaker", "_chance", "_is_over", "_is_own_account", "_permit")

    def __init__(self, breaker: Breaker, permit: Permit, chance: Callable[[], float], *, is_own_account: bool) -> None:
        """Hold `permit`; `is_own_account` tells whether the credential is the relay's, not each caller's own."""
        self._breaker = breaker
        self._permit = permit
        self._chance = chance
        self._is_own_account = is_own_account
        self._is_over = False

    def succeeded(self) -> None:
        """Take note that a good answer began."""
        if not self._is_over:
            self._is_over = True
            self._breaker.succeeded(self._permit, monotonic())

    def over(self, error: RelayError | None, outcome: Outcome | None, *, is_mapped: bool) -> None:
        """Take note of how the attempt ended."""
        now = monotonic()
        verdict = judge(error, is_mapped=is_mapped) if isinstance(error, UpstreamError) else None
        if verdict is not None and verdict.rest_seconds and not self._is_own_account:
            # A caller's own credential is bad, spent or throttled: no reason for the others to be kept away.
            verdict = None
        is_blamed = (verdict is not None and verdict.blame_target) or outcome in _BROKEN
        if self._is_over:
            permit = self._breaker.begin(now, is_forced=True) if is_blamed else None
            if permit is not None:
                self._breaker.failed(permit, now, self._chance())
            return
        self._is_over = True
        if not is_blamed:
            self._breaker.abandoned(self._permit)
        elif verdict is not None and verdict.rest_seconds:
            self._breaker.abandoned(self._permit)
            self._breaker.rest(now, verdict.rest_seconds, has_to_probe=verdict.is_final)
        else:
            self._breaker.failed(self._permit, now, self._chance())


_BROKEN: Final = frozenset({Outcome.UPSTREAM_CUT, Outcome.UPSTREAM_STALLED, Outcome.UPSTREAM_ERROR})
