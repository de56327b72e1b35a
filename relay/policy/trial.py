"""One attempt in the books of who may suffer for it: the target, and the credential it was made with."""

from typing import Final

from relay.config.tree import Secret
from relay.policy.breaker import Breaker, Permit
from relay.policy.refusals import Blame
from relay.policy.verdicts import Verdict


class Trial:
    """The permits of one attempt, handed back exactly once; a break after a good beginning is a failure of its own."""

    __slots__ = ("_account", "_breaker", "_has_begun_well", "_is_over", "_permits", "_place", "credential")

    def __init__(
        self,
        breaker: Breaker,
        permit: Permit,
        *,
        credential: Secret | None = None,
        account: tuple[Breaker, Permit] | None = None,
        place: tuple[Breaker, Permit] | None = None,
    ) -> None:
        """Hold a target's `permit`, that of the credential's `account`, and that of its `place` at this target.

        `credential` is the one to send; None for none, a file's, or the caller's own. A credential that is the upstream's only one
        has no place of its own: there the target's health is the same thing.
        """
        self.credential = credential
        self._breaker = breaker
        self._account = account[0] if account is not None else None
        self._place = place[0] if place is not None else None
        self._permits = [(breaker, permit)]
        if account is not None:
            self._permits.append(account)
        if place is not None:
            self._permits.append(place)
        self._has_begun_well = False
        self._is_over = False

    def succeeded(self, now: float) -> None:
        """Take note that a good answer began."""
        if self._has_begun_well or self._is_over:
            return
        self._has_begun_well = True
        for breaker, permit in self._permits:
            breaker.succeeded(permit, now)

    def failed(self, verdict: Verdict, now: float, chance: float) -> None:
        """Take the judgement of a failure before anything good began."""
        if self._is_over or self._has_begun_well:
            return
        self._is_over = True
        blamed = self._blamed(verdict.blame)
        for breaker, permit in self._permits:
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
        permit = self._breaker.begin(now, is_forced=True)
        if permit is not None:
            self._breaker.failed(permit, now, chance)

    def close(self) -> None:
        """Hand back what is still held: the attempt ended without a verdict, or was never made."""
        if self._is_over or self._has_begun_well:
            return
        self._is_over = True
        for breaker, permit in self._permits:
            breaker.abandoned(permit)

    def _blamed(self, blame: Blame) -> Breaker | None:
        match blame:
            case Blame.NOBODY:
                return None
            case Blame.TARGET:
                return self._breaker
            case Blame.CREDENTIAL:
                return self._place or self._breaker
            case Blame.ACCOUNT:
                return self._account or self._breaker


_BROKEN: Final = Verdict(fall_back=False, blame=Blame.TARGET, result=None)
