"""The sliding minute: exact, bounded, and right whatever is taken back."""

from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.sliding import SLOTS, WINDOW_CELLS, WINDOW_MS, SlidingWindow, quantum_of


def window() -> SlidingWindow:
    return SlidingWindow(array("q", bytes(8 * WINDOW_CELLS)))


def test_entries_leave_a_minute_after_they_came_and_not_before() -> None:
    counted = window()
    counted.add(1_000, 3, 1)
    counted.add(2_000, 4, 1)
    assert counted.total(1_000 + WINDOW_MS - 1) == 7
    assert counted.total(1_000 + WINDOW_MS) == 4
    assert counted.total(2_000 + WINDOW_MS) == 0


def test_a_wait_is_over_when_enough_has_left() -> None:
    counted = window()
    for moment, amount in ((0, 5), (100, 5), (200, 5)):
        counted.add(moment, amount, 1)
    assert counted.wait(1, 1_000) == WINDOW_MS - 1_000
    assert counted.wait(6, 1_000) == WINDOW_MS + 100 - 1_000
    assert counted.wait(16, 1_000) is None


def test_what_was_taken_back_is_free_again_at_once() -> None:
    counted = window()
    first = counted.add(0, 10, 1)
    second = counted.add(5, 20, 1)
    counted.remove(first, 4)
    assert counted.total(10) == 26
    counted.remove(second, 20)
    assert (counted.total(10), counted.reset(10)) == (6, WINDOW_MS - 10), "nothing is left of the newer one"
    counted.remove(second, 20)
    counted.remove(777, 20)
    assert counted.total(10) == 6


def test_entries_of_one_coarse_quantum_leave_together_and_late_by_less_than_it() -> None:
    counted = window()
    stamps = {counted.add(moment, 1, 10) for moment in range(100, 110)}
    assert stamps == {109}
    assert counted.total(108 + WINDOW_MS) == 10
    assert counted.total(109 + WINDOW_MS) == 0


@pytest.mark.parametrize("limit", [1, 6_000, 6_001, 10**9])
def test_a_full_minute_of_entries_fits_into_the_ring(limit: int) -> None:
    counted = window()
    quantum = quantum_of(limit)
    step = 10 if limit <= 6_000 else 1
    for moment in range(0, 3 * WINDOW_MS, step):
        counted.total(moment)
        counted.add(moment, 1, quantum)
    held = counted.total(3 * WINDOW_MS)
    assert WINDOW_MS // step <= held <= WINDOW_MS // step + quantum + 1


def test_a_ring_filled_with_what_was_taken_back_makes_room() -> None:
    counted = window()
    first = counted.add(0, 7, 1)
    for moment in range(1, 2 * (SLOTS + 500), 2):
        stamps = counted.add(moment, 1, 1), counted.add(moment + 1, 1, 1)
        for stamp in stamps:
            counted.remove(stamp, 1)
    counted.add(30_000, 1, 1)
    assert counted.total(30_000) == 8
    assert counted.total(first + WINDOW_MS) == 1


def test_a_sum_that_a_dying_writer_left_wrong_is_repaired() -> None:
    cells = array("q", bytes(8 * WINDOW_CELLS))
    counted = SlidingWindow(cells)
    for moment in range(10):
        counted.add(moment, 2, 1)
    cells[2] = 999
    counted.repair()
    assert counted.total(10) == 20
    cells[0] = -5
    counted.repair()
    assert counted.total(10) == 0


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 50), st.booleans()), max_size=60),
    st.sampled_from([1, 10]),
)
def test_the_sum_is_that_of_a_plain_list(steps: list[tuple[int, int, bool]], quantum: int) -> None:
    counted = window()
    model: Counter[int] = Counter()
    now = 0
    for pause, amount, takes_back in steps:
        now += pause
        stamp = counted.add(now, amount, quantum)
        assert now <= stamp < now + quantum
        model[stamp] += amount
        if takes_back:
            counted.remove(stamp, amount - 1)
            model[stamp] -= amount - 1
        live = {moment: left for moment, left in model.items() if now < moment + WINDOW_MS}
        assert counted.total(now) == sum(live.values())
        assert counted.reset(now) == max(moment for moment, left in live.items() if left) + WINDOW_MS - now
