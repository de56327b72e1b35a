"""Admission as a machine: whatever comes in whatever order, no minute holds more than it may, and no refusal costs anything."""

from array import array
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.config.tree import Budget, Limits, Period
from relay.policy import limits as policy
from relay.policy.accounts import ACCOUNT_CELLS, Account
from relay.policy.limits import CONCURRENCY_WAIT_MS, Demand, Grant, Limit, Refusal, Scope
from relay.policy.sliding import WINDOW_MS

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0


def account(worker: int = 0, cells: memoryview | None = None) -> Account:
    return Account(memoryview(array("q", bytes(8 * ACCOUNT_CELLS))) if cells is None else cells, worker)


def scope(key: str | None = "alice", route: str | None = None, **limits: Any) -> Scope:
    return Scope(key=key, route=route, limits=Limits(**limits))


def copied(accounts: list[Account]) -> list[Account]:
    return [account(cells=memoryview(array("q", bytes(each.cells)))) for each in accounts]  # type: ignore[call-overload]


class Machine(RuleBasedStateMachine):
    """Requests of two keys on one route with random sizes, ends and pauses, against a list of what really happened."""

    def __init__(self) -> None:
        super().__init__()
        self.scopes = (
            scope(rpm=5, tpm=100, concurrency=4, budget=Budget(amount=400, is_money=False, period=Period.DAY)),
            scope(route="fast", rpm=4, tpm=60),
            scope(key=None, route="fast", rpm=6, concurrency=5),
        )
        self.accounts = [account() for _ in self.scopes]
        self.now = 1_000_000
        self.unix = NOON
        self.step = 0.0
        """By how much the wall clock was set back or forward within the day."""
        self.open: list[tuple[Grant, int]] = []
        self.admitted: list[list[int]] = []
        """When, and how many tokens it counts for by now."""

    def demand(self, tokens: int) -> Demand:
        return Demand(scopes=self.scopes, tokens=tokens)

    def admit(self, tokens: int) -> Grant | Refusal:
        return policy.admit(self.accounts, self.demand(tokens), self.now, self.unix + self.step)

    @rule(tokens=st.integers(0, 70))
    def ask(self, tokens: int) -> None:
        sums = [(each.requests.total(self.now), each.tokens.total(self.now), each.slots, each.reserved) for each in self.accounts]
        answer = self.admit(tokens)
        if isinstance(answer, Grant):
            self.open.append((answer, len(self.admitted)))
            self.admitted.append([self.now, tokens])
            return
        after = [(each.requests.total(self.now), each.tokens.total(self.now), each.slots, each.reserved) for each in self.accounts]
        assert sums == after, "a refusal took something"
        if answer.limit in (Limit.RPM, Limit.TPM) and answer.wait_ms is not None:
            self.check_wait(answer, tokens)

    def check_wait(self, answer: Refusal, tokens: int) -> None:
        """At the promised moment it is admitted, a millisecond before it is not; slots and budget apart."""
        assert answer.wait_ms is not None
        free = tuple(replace(each, limits=replace(each.limits, concurrency=None, budget=None)) for each in self.scopes)
        for moment, is_good in ((answer.wait_ms - 1, False), (answer.wait_ms, True)):
            twins = copied(self.accounts)
            late = policy.admit(twins, Demand(scopes=free, tokens=tokens), self.now + moment, self.unix)
            assert isinstance(late, Grant) is is_good, (moment, late)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), used=st.integers(0, 80))
    def end(self, data: st.DataObject, used: int) -> None:
        grant, index = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        used = min(used, grant.demand.tokens)  # what exceeds a reservation has a test of its own
        policy.settle(self.accounts, grant, used, 0, self.now, self.unix + self.step)
        self.admitted[index][1] = used

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        grant, index = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        policy.release(self.accounts, grant, self.now, self.unix + self.step)
        self.admitted[index] = [-10 * WINDOW_MS, 0]

    @rule(milliseconds=st.one_of(st.integers(0, 500), st.integers(0, 70_000)))
    def wait(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.unix += milliseconds / 1000

    @rule(seconds=st.integers(-3_600, 3_600))
    def set_the_wall_clock(self, seconds: int) -> None:
        self.step = float(seconds)

    @invariant()
    def no_minute_holds_more_than_it_may(self) -> None:
        for moment, _ in self.admitted:
            within = [tokens for at, tokens in self.admitted if moment <= at < moment + 60_000 and at >= 0]
            assert len(within) <= 4
            assert sum(within) <= 60

    @invariant()
    def slots_are_those_of_the_open_ones(self) -> None:
        assert {each.slots for each in self.accounts} == {len(self.open)}
        assert {each.reserved for each in self.accounts} == {sum(grant.demand.tokens for grant, _ in self.open)}
        assert len(self.open) <= 4

    @invariant()
    def the_budget_holds(self) -> None:
        settled = sum(tokens for index, (_, tokens) in enumerate(self.admitted) if index not in {place for _, place in self.open})
        budget = self.scopes[0].limits.budget
        assert budget is not None
        if self.unix + self.step < NOON + DAY / 2 and self.unix + self.step >= NOON - DAY / 2:
            assert self.accounts[0].spent(budget, self.unix + self.step) == settled
            assert settled <= budget.amount


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


def test_tokens_beyond_the_reservation_count_from_when_they_are_seen() -> None:
    mine = [account()]
    grant = policy.admit(mine, Demand(scopes=(scope(tpm=100),), tokens=40), 0, NOON)
    assert isinstance(grant, Grant)
    policy.settle(mine, grant, 55, 0, 30_000, NOON)
    assert mine[0].tokens.total(30_000) == 55
    assert mine[0].tokens.total(WINDOW_MS) == 15


def test_a_debit_within_the_reservation_changes_nothing_and_beyond_it_tells_when_the_limit_is_reached() -> None:
    mine = [account()]
    grant = policy.admit(mine, Demand(scopes=(scope(tpm=100),), tokens=40), 0, NOON)
    assert isinstance(grant, Grant)
    assert policy.debit(mine, grant, 40, 1, NOON)
    assert mine[0].tokens.total(1) == 40
    assert policy.debit(mine, grant, 100, 2, NOON)
    assert not policy.debit(mine, grant, 101, 3, NOON)
    policy.settle(mine, grant, 101, 0, 4, NOON)
    assert (mine[0].tokens.total(4), mine[0].reserved, mine[0].slots) == (101, 0, 0)


def test_a_refusal_names_the_limit_that_is_free_last() -> None:
    both = scope(rpm=1), scope(route="fast", concurrency=1)
    accounts = [account(), account()]
    assert isinstance(policy.admit(accounts, Demand(scopes=both, tokens=0), 0, NOON), Grant)
    refusal = policy.admit(accounts, Demand(scopes=both, tokens=0), 100, NOON)
    assert isinstance(refusal, Refusal)
    assert (refusal.limit, refusal.wait_ms) == (Limit.RPM, WINDOW_MS - 100)
    late = policy.admit(accounts, Demand(scopes=both, tokens=0), WINDOW_MS, NOON)
    assert isinstance(late, Refusal)
    assert (late.limit, late.wait_ms, late.scope.prefix) == (Limit.CONCURRENCY, CONCURRENCY_WAIT_MS, "key_route_")


def test_more_than_the_limit_at_once_is_never_admitted() -> None:
    for limits in ({"tpm": 10}, {"budget": Budget(amount=10, is_money=False, period=Period.DAY)}):
        refusal = policy.admit([account()], Demand(scopes=(scope(**limits),), tokens=11), 0, NOON)
        assert isinstance(refusal, Refusal)
        assert refusal.wait_ms is None


@pytest.mark.parametrize(
    ("period", "moment", "wait"),
    [
        (Period.DAY, datetime(2026, 3, 15, 23, 59, 50, tzinfo=UTC), 10),
        (Period.MONTH, datetime(2026, 12, 31, 23, 59, 50, tzinfo=UTC), 10),
        (Period.MONTH, datetime(2028, 2, 28, tzinfo=UTC), 2 * DAY),
    ],
)
def test_a_spent_budget_is_free_again_when_the_next_period_begins(period: Period, moment: datetime, wait: float) -> None:
    mine = [account()]
    asked = Demand(scopes=(scope(budget=Budget(amount=100, is_money=True, period=period)),), tokens=5, cost=100)
    unix = moment.timestamp()
    grant = policy.admit(mine, asked, 0, unix)
    assert isinstance(grant, Grant)
    policy.settle(mine, grant, 5, 100, 0, unix)
    refusal = policy.admit(mine, asked, 0, unix)
    assert isinstance(refusal, Refusal)
    assert refusal.wait_ms == wait * 1000
    assert isinstance(policy.admit(mine, asked, 0, unix + wait - 0.001), Refusal)
    assert isinstance(policy.admit(mine, asked, 0, unix + wait), Grant)


def test_a_clock_set_back_over_midnight_and_forth_again_opens_no_new_budget() -> None:
    mine = [account()]
    asked = Demand(scopes=(scope(budget=Budget(amount=100, is_money=False, period=Period.DAY)),), tokens=100)
    midnight = datetime(2026, 3, 16, tzinfo=UTC).timestamp()
    grant = policy.admit(mine, asked, 0, midnight + 1)
    assert isinstance(grant, Grant)
    policy.settle(mine, grant, 100, 0, 0, midnight + 1)
    for moment in (midnight - 1, midnight + 2, midnight - 3600, midnight + 3600):
        assert isinstance(policy.admit(mine, asked, 0, moment), Refusal)


def test_a_clock_that_was_far_ahead_does_not_hold_the_next_budget_back() -> None:
    mine = [account()]
    asked = Demand(scopes=(scope(budget=Budget(amount=100, is_money=False, period=Period.DAY)),), tokens=100)
    grant = policy.admit(mine, asked, 0, NOON + 400 * DAY)
    assert isinstance(grant, Grant)
    policy.settle(mine, grant, 100, 0, 0, NOON + 400 * DAY)
    assert isinstance(policy.admit(mine, asked, 0, NOON), Refusal)
    assert isinstance(policy.admit(mine, asked, 0, NOON + DAY), Grant)


def test_a_budget_that_comes_to_count_something_else_begins_anew() -> None:
    mine = [account()]
    tokens = scope(budget=Budget(amount=100, is_money=False, period=Period.DAY))
    money = scope(budget=Budget(amount=100, is_money=True, period=Period.DAY))
    grant = policy.admit(mine, Demand(scopes=(tokens,), tokens=100), 0, NOON)
    assert isinstance(grant, Grant)
    assert isinstance(policy.admit(mine, Demand(scopes=(money,), tokens=1, cost=1), 0, NOON), Refusal), "held by the first still"
    policy.settle(mine, grant, 100, 0, 0, NOON)
    assert isinstance(policy.admit(mine, Demand(scopes=(money,), tokens=1, cost=100), 0, NOON), Grant)


def test_what_a_dead_process_held_is_given_back_and_its_budget_counts_as_spent() -> None:
    cells = memoryview(array("q", bytes(8 * ACCOUNT_CELLS)))
    dead, alive = account(3, cells), account(4, cells)
    budget = Budget(amount=100, is_money=False, period=Period.DAY)
    limited = scope(concurrency=2, budget=budget)
    for mine in (dead, alive):
        assert isinstance(policy.admit([mine], Demand(scopes=(limited,), tokens=30), 0, NOON), Grant)
    assert isinstance(policy.admit([alive], Demand(scopes=(limited,), tokens=1), 0, NOON), Refusal)
    assert alive.reclaim(3)
    assert not alive.reclaim(3)
    assert (alive.slots, alive.reserved, alive.own) == (1, 30, (1, 30))
    assert (alive.spent(budget, NOON), alive.left(budget, NOON)) == (30, 40)


def test_only_the_callers_own_limits_are_told() -> None:
    scopes = scope(rpm=10), scope(route="fast", rpm=3, tpm=50), scope(key=None, route="fast", rpm=1)
    grant = policy.admit([account() for _ in scopes], Demand(scopes=scopes, tokens=20), 0, NOON)
    assert isinstance(grant, Grant)
    assert grant.requests is not None
    assert (grant.requests.limit, grant.requests.remaining, grant.requests.reset_ms) == (3, 2, WINDOW_MS)
    assert grant.tokens is not None
    assert (grant.tokens.limit, grant.tokens.remaining) == (50, 30)


def test_no_two_scopes_have_the_same_name() -> None:
    names = [scope().name, scope(route="fast").name, scope(key=None, route="fast").name, scope(route="a/fast").name, scope(key="fast").name]
    assert len(set(names)) == len(names)


def test_what_flowed_beyond_the_reservation_is_given_back_when_less_is_reported() -> None:
    both = [account(), account()]
    grant = policy.admit(both, Demand(scopes=(scope(tpm=100), scope(route="fast", tpm=200)), tokens=10), 0, NOON)
    assert isinstance(grant, Grant)
    for tokens in (20, 30, 40):
        assert policy.debit(both, grant, tokens, tokens, NOON)
    policy.settle(both, grant, 0, 0, 50, NOON)
    assert [each.tokens.total(50) for each in both] == [0, 0]


@pytest.mark.parametrize("is_money", [True, False])
def test_a_budget_holds_what_flows_until_it_is_settled(is_money: bool) -> None:
    budget = Budget(amount=1000, is_money=is_money, period=Period.DAY)
    mine = [account()]
    grant = policy.admit(mine, Demand(scopes=(scope(budget=budget),), tokens=100, cost=100, answer_cost=1), 0, NOON)
    assert isinstance(grant, Grant)
    assert policy.debit(mine, grant, 1000, 1, NOON)
    assert mine[0].left(budget, NOON) == 0
    assert not policy.debit(mine, grant, 1001, 2, NOON)
    policy.settle(mine, grant, 300, 300, 3, NOON)
    assert mine[0].left(budget, NOON) == 700


@pytest.mark.parametrize(
    ("limits", "tokens", "cost"),
    [
        ({"tpm": 100}, 60, 440),
        ({"budget": Budget(amount=100, is_money=False, period=Period.DAY)}, 60, 440),
        ({"budget": Budget(amount=600, is_money=True, period=Period.DAY)}, 56, 400),
    ],
)
def test_a_demand_that_may_be_lowered_takes_what_is_left(limits: dict[str, object], tokens: int, cost: int) -> None:
    mine = [account()]
    first = policy.admit(mine, Demand(scopes=(scope(**limits),), tokens=40, cost=200), 0, NOON)
    assert isinstance(first, Grant)
    asked = Demand(scopes=(scope(**limits),), tokens=500, cost=4840, least=20, answer_cost=10)
    second = policy.admit(mine, asked, 0, NOON)
    assert isinstance(second, Grant)
    assert (second.demand.tokens, second.demand.cost) == (tokens, cost)
    refusal = policy.admit(mine, asked, 0, NOON)
    assert isinstance(refusal, Refusal), "the least of it does not fit"
    policy.settle(mine, second, 0, 0, 1, NOON)
    fits = policy.admit(mine, asked._replace(tokens=30, cost=140), 1, NOON)
    assert isinstance(fits, Grant)
    assert fits.demand.tokens == 30, "what fits is not lowered"
