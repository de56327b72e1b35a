"""One attempt in the books of who may suffer for it: the target, and the credential it was made with."""

from typing import Final

from relay.config.tree import Secret
from relay.policy.breaker import Breaker, Permit
from relay.policy.refusals import Blame
from relay.policy.verdicts import Verdict

Held = tuple[Breaker, Permit]


class Trial:
    """The permits of one attempt, handed back exactly once; a break after a good beginning is a failure of its own."""

    __slots__ = ("_account", "_has_begun_well", "_is_over", "_place", "_target", "credential")

    def __init__(
        self,
        target: Held,
        *,
        credential: Secret | None = None,
        account: Held | None = None,
        place: Held | None = None,
    ) -> None:
        """Hold the permit of a target, that of the credential's `account`, and that of its `place` at this target.

        `credential` is the one to send; None for none, a file's, or the caller's own. A credential that is the upstream's only one
        has no place of its own: there the target's health is the same thing.
        """
        self.credential = credential
        self._target = target
        self._account = account
        self._place = place
        self._has_begun_well = False
        self._is_over = False

    def succeeded(self, now: float) -> None:
        """Take note that a good answer began."""
        if self._has_begun_well or self._is_over:
            return
        self._has_begun_well = True
        # Written out: every request comes by here.
        breaker, permit = self._target
        breaker.succeeded(permit, now)
        if self._account is not None:
            breaker, permit = self._account
            breaker.succeeded(permit, now)
        if self._place is not None:
            breaker, permit = self._place
            breaker.succeeded(permit, now)

    def failed(self, verdict: Verdict, now: float, chance: float) -> None:
        """Take the judgement of a failure before anything good began."""
        if self._is_over or self._has_begun_well:
            return
        self._is_over = True
        blamed = self._blamed(verdict.blame)
        for breaker, permit in self._permits():
            if breaker is not blamed or verdict.rest_seconds:
                breaker.abandoned(permit)
            else:
                breaker.failed(permit, now, chance)
        if blamed is not None and verdict.rest_seconds:
            blamed.rest(now, verdict.rest_seconds, has_to_probe=verdict.is_final)

    def broke(self, now: float, chance: float) -> None:
        """Take note that an answer broke off, by the target's fault."""
        if self._is_over:
            return
        if not self._has_begun_well:
            self.failed(_BROKEN, now, chance)
            return
        self._is_over = True
        breaker = self._target[0]
        permit = breaker.begin(now, is_forced=True)
        if permit is not None:
            breaker.failed(permit, now, chance)

    def close(self) -> None:
        """Hand back what is still held: the attempt ended without a verdict, or was never made."""
        if self._is_over or self._has_begun_well:
            return
        self._is_over = True
        for breaker, permit in self._permits():
            breaker.abandoned(permit)

    def _permits(self) -> list[Held]:
        return [held for held in (self._target, self._account, self._place) if held is not None]

    def _blamed(self, blame: Blame) -> Breaker | None:
        match blame:
            case Blame.NOBODY:
                return None
            case Blame.TARGET:
                return self._target[0]
            case Blame.CREDENTIAL:
                return (self._place or self._target)[0]
            case Blame.ACCOUNT:
                return (self._account or self._target)[0]


_BROKEN: Final = Verdict(fall_back=False, blame=Blame.TARGET, result=None)
