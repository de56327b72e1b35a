from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.balance import EXPLORE, Turns, fastest, least_busy

CHANCE = st.floats(0, 1, exclude_max=True)


def test_three_of_four_turns_go_to_the_heavier_spread_out() -> None:
    turns = Turns()
    assert "".join("ab"[turns.order(["a", "b"], [3, 1])[0]] for _ in range(8)) == "aabaaaba"


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_after_one_round_everyone_had_exactly_its_weight(weights: list[int]) -> None:
    names = [str(number) for number in range(len(weights))]
    turns = Turns()
    firsts = Counter(turns.order(names, weights)[0] for _ in range(sum(weights)))
    assert [firsts[number] for number in range(len(weights))] == weights


@given(rounds=st.lists(st.sets(st.integers(0, 4), min_size=1), max_size=60))
def test_targets_that_come_and_go_never_run_up_a_debt(rounds: list[set[int]]) -> None:
    turns = Turns()
    weights = [1, 2, 3, 4, 5]
    for usable in rounds:
        chosen = sorted(usable)
        order = turns.order([str(number) for number in chosen], [weights[number] for number in chosen])
        assert sorted(order) == list(range(len(chosen)))
    turns.keep(["0"])
    assert all(abs(credit) <= 60 * sum(weights) for credit in turns._credit.values())
    assert set(turns._credit) <= {"0"}


def test_no_target_has_no_order() -> None:
    assert Turns().order([], []) == least_busy([], [], 0.5) == fastest([], 0.5) == []


@given(load=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), min_size=1, max_size=6), chance=CHANCE)
def test_least_busy_puts_the_least_loaded_first(load: list[tuple[int, int]], chance: float) -> None:
    in_flight, weights = [pair[0] for pair in load], [pair[1] for pair in load]
    order = least_busy(in_flight, weights, chance)
    loads = [(in_flight[i] + 1) / weights[i] for i in order]
    assert loads == sorted(loads)
    assert sorted(order) == list(range(len(load)))


def test_idle_targets_share_the_work_evenly() -> None:
    firsts = Counter(least_busy([0, 0, 0, 0], [1, 1, 1, 1], number / 1000)[0] for number in range(1000))
    assert set(firsts.values()) == {250}


@given(seconds=st.lists(st.none() | st.floats(0.01, 60), min_size=1, max_size=6), chance=CHANCE)
def test_fastest_is_a_whole_order(seconds: list[float | None], chance: float) -> None:
    assert sorted(fastest(seconds, chance)) == list(range(len(seconds)))


@pytest.mark.parametrize("chance", [EXPLORE, 0.5, 0.999])
def test_the_fastest_known_goes_first_and_the_unknown_last(chance: float) -> None:
    assert fastest([2.0, None, 0.5, 1.0], chance) == [2, 3, 0, 1]


def test_a_small_share_explores_what_is_not_known_first() -> None:
    assert fastest([2.0, None, 0.5], 0.01)[0] == 1
    firsts = Counter(fastest([2.0, 1.0, 0.5], number / 10_000)[0] for number in range(10_000))
    slower = (firsts[0] + firsts[1]) / 10_000
    assert EXPLORE / 2 < slower <= EXPLORE
    assert firsts[0] > 0 and firsts[1] > 0


def test_with_nothing_known_chance_decides() -> None:
    assert {fastest([None, None, None], chance)[0] for chance in (0.1, 0.4, 0.9)} == {0, 1, 2}
