"""Parts of a limit: together never more than the limit, whatever each relay had used before."""

from hypothesis import given
from hypothesis import strategies as st

from relay.config.tree import Budget, Limits, Period
from relay.policy.shares import Use, share

NONE = Use(0, 0, 0, 0)
LIMIT = st.integers(0, 1_000)


def limits(amount: int) -> Limits:
    budget = Budget(amount=amount, is_money=False, period=Period.DAY)
    return Limits(rpm=amount, tpm=amount, concurrency=amount, budget=budget)


def amounts(part: Limits) -> list[int]:
    assert part.rpm is not None
    assert part.tpm is not None
    assert part.concurrency is not None
    assert part.budget is not None
    return [part.rpm, part.tpm, part.concurrency, part.budget.amount]


def use(amount: int) -> Use:
    return Use(amount, amount, amount, amount)


@given(amount=LIMIT, replicas=st.integers(1, 50))
def test_parts_of_what_nobody_has_used_are_together_the_limit_at_most(amount: int, replicas: int) -> None:
    for part in amounts(share(limits(amount), replicas, NONE, None, is_fresh=False)):
        assert part * replicas <= amount
        assert part >= 1 or amount < replicas, "a limit that is smaller than there are relays allows nothing"
        assert amount - part * replicas < replicas, "no more is left than cannot be divided"


@given(amount=LIMIT, data=st.data())
def test_what_was_used_and_what_the_parts_still_allow_are_together_the_limit_at_most(amount: int, data: st.DataObject) -> None:
    used = data.draw(st.lists(st.integers(0, amount), min_size=1, max_size=8).filter(lambda found: sum(found) <= amount))
    total = sum(used)
    parts = [amounts(share(limits(amount), len(used), use(own), use(total), is_fresh=True)) for own in used]
    for kind in range(4):
        assert total + sum(max(0, part[kind] - own) for part, own in zip(parts, used, strict=True)) <= amount


@given(amount=LIMIT, data=st.data())
def test_who_has_not_heard_of_others_use_gives_away_no_more_than_an_even_part(amount: int, data: st.DataObject) -> None:
    used = data.draw(st.lists(st.integers(0, amount), min_size=1, max_size=8).filter(lambda found: sum(found) <= amount))
    parts = [amounts(share(limits(amount), len(used), use(own), None, is_fresh=False)) for own in used]
    for kind in range(4):
        after = sum(max(part[kind], own) for part, own in zip(parts, used, strict=True))
        assert after <= amount + (len(used) - 1) * (amount // len(used))


@given(amount=st.integers(1, 1_000), replicas=st.integers(1, 8), over=st.integers(0, 500))
def test_of_what_is_used_up_nothing_is_left_to_divide(amount: int, replicas: int, over: int) -> None:
    assert amounts(share(limits(amount), replicas, NONE, use(amount + over), is_fresh=True)) == [0] * 4


@given(amount=LIMIT, replicas=st.integers(1, 8), total=LIMIT)
def test_a_minute_that_is_long_ago_says_nothing_and_a_budget_still_does(amount: int, replicas: int, total: int) -> None:
    *minute, budget = amounts(share(limits(amount), replicas, NONE, use(total), is_fresh=False))
    assert minute == [amount // replicas] * 3
    assert budget == max(0, amount - total) // replicas


def test_what_is_not_limited_has_no_parts() -> None:
    assert share(Limits(), 3, NONE, None, is_fresh=False) == Limits()
