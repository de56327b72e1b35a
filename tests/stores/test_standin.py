"""Several processes that cannot count together for a while: whatever they do, no limit is exceeded, and afterwards all is counted."""

from collections.abc import Set

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.config.tree import Budget, Limits, Period
from relay.errors import Overloaded
from relay.policy.accounts import Account
from relay.policy.limits import Demand, Grant, Limit, Refusal, Scope
from relay.policy.sliding import WINDOW_MS
from relay.stores.ledger import Ledger
from relay.stores.standin import APART_WAIT_MS, private_account
from relay.stores.table import Busy, Full

PROCESSES = 3
LIMITS = Limits(rpm=12, tpm=200, concurrency=7, budget=Budget(amount=900, is_money=False, period=Period.MONTH))
SCOPES = (Scope(limits=LIMITS, key="alice"), Scope(limits=Limits(concurrency=5, rpm=40), route="fast"))
UNIX_TIME = 1e9


class Shared:
    """What the processes share."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.is_stopped = False
        self.apart: set[int] = set()
        self.room = 100


class FakeTable:
    """One process's view of accounts whose lock somebody may have for as long as the test wants."""

    def __init__(self, shared: Shared, worker: int) -> None:
        self._shared = shared
        self._worker = worker
        self.processes = PROCESSES

    @property
    def is_busy(self) -> bool:
        return self._shared.is_stopped

    @property
    def is_stalled(self) -> bool:
        return self._shared.is_stopped

    @property
    def is_whole(self) -> bool:
        return not self._shared.apart

    def part(self, *, is_apart: bool) -> None:
        (self._shared.apart.add if is_apart else self._shared.apart.discard)(self._worker)

    def account(self, name: str) -> Account:
        if name not in self._shared.accounts:
            if len(self._shared.accounts) >= self._shared.room:
                raise Full
            self._shared.accounts[name] = private_account()
        return Account(self._shared.accounts[name].cells, self._worker)  # type: ignore[arg-type]

    def find(self, name: str) -> Account | None:
        return self.account(name) if name in self._shared.accounts else None

    def keep(self, names: Set[str]) -> None:
        pass

    def enter(self) -> None:
        if self._shared.is_stopped:
            raise Busy

    def leave(self) -> None:
        pass

    def sweep(self) -> None:
        pass

    def close(self) -> None:
        pass


class Apart(RuleBasedStateMachine):
    """Processes that admit and settle, and a holder of the lock that is stopped and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000
        self.shared = Shared()
        self.ledgers = [
            Ledger(FakeTable(self.shared, number), now=lambda: self.now, unix_time=lambda: UNIX_TIME) for number in range(PROCESSES)
        ]
        self.out: list[tuple[Ledger, Grant, int]] = []
        self.admitted: dict[Grant, int] = {}
        """When, of those that keep their place among the minute's requests."""
        self.spent = 0

    @rule(process=st.integers(0, PROCESSES - 1), tokens=st.integers(0, 40), scopes=st.integers(1, 2))
    def admit(self, process: int, tokens: int, scopes: int) -> None:
        ledger = self.ledgers[process]
        if self.shared.apart and not self.shared.is_stopped:
            return  # it would wait for the others to catch up
        answer = ledger.try_take(Demand(scopes=SCOPES[:scopes], tokens=tokens))
        if isinstance(answer, Grant):
            self.admitted[answer] = self.now
            self.out.append((ledger, answer, tokens))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 1000), share=st.floats(0, 1), is_sent=st.booleans())
    def end(self, which: int, share: float, is_sent: bool) -> None:
        ledger, grant, tokens = self.out.pop(which % len(self.out))
        if is_sent:
            used = int(tokens * share)
            ledger.settle(grant, used, 0)
            self.spent += used
        else:
            ledger.release(grant)
            del self.admitted[grant]
        assert ledger.violations() == []

    @rule()
    def stop(self) -> None:
        self.shared.is_stopped = True

    @rule()
    def go_on(self) -> None:
        self.shared.is_stopped = False

    @rule(process=st.integers(0, PROCESSES - 1))
    def catch_up(self, process: int) -> None:
        self.ledgers[process].catch_up()

    @rule(ms=st.sampled_from([1, 1_000, 30_000, WINDOW_MS]))
    def wait(self, ms: int) -> None:
        self.now += ms

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        assert len(self.out) <= 7
        assert sum(len(grant.demand.scopes) == 2 for _, grant, _ in self.out) <= 5
        assert self.spent + sum(tokens for _, _, tokens in self.out) <= 900
        assert sum(at > self.now - WINDOW_MS for at in self.admitted.values()) <= 12

    @precondition(lambda self: not self.shared.is_stopped)
    @invariant()
    def all_is_counted_once_it_can_be(self) -> None:
        for ledger in self.ledgers:
            ledger.catch_up()
            assert not ledger.is_behind
            assert ledger.sweep() == []
        assert not self.shared.apart
        account = self.shared.accounts.get("alice")
        if account is not None:
            assert account.slots == len(self.out)
            assert account.reserved == sum(tokens for _, _, tokens in self.out)
            assert account.spent(LIMITS.budget, UNIX_TIME) == self.spent  # type: ignore[arg-type]


TestApart = Apart.TestCase
TestApart.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def ledger(shared: Shared, worker: int = 0) -> Ledger:
    return Ledger(FakeTable(shared, worker), now=lambda: 1_000_000, unix_time=lambda: UNIX_TIME)


def test_a_part_that_is_nothing_says_to_ask_again_soon_and_the_whole_limit_says_when_it_never_fits() -> None:
    shared = Shared()
    shared.is_stopped = True
    scope = Scope(limits=Limits(tpm=20), key="few")
    for tokens, wait in ((7, APART_WAIT_MS), (21, None)):
        refusal = ledger(shared).try_take(Demand(scopes=(scope,), tokens=tokens))
        assert isinstance(refusal, Refusal)
        assert (refusal.limit, refusal.scope, refusal.wait_ms) == (Limit.TPM, scope, wait)


async def test_a_scope_that_finds_no_room_is_refused_and_no_other() -> None:
    shared = Shared()
    shared.room = 1
    books = ledger(shared)
    assert isinstance(await books.admit(Demand(scopes=SCOPES[:1], tokens=1)), Grant)
    with pytest.raises(Overloaded):
        await books.admit(Demand(scopes=SCOPES, tokens=1))
    assert books.is_full
    assert isinstance(await books.admit(Demand(scopes=SCOPES[:1], tokens=1)), Grant)
    assert books.sweep() == []
