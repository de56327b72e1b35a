"""How late the loop was: a record that can be asked for any stretch, and the timer that fills it."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.telemetry.lag import MAX_KEPT, PERIOD_SECONDS, TOLERANCE_SECONDS, LagTimer, Lateness


def noted(*spans: tuple[float, float]) -> Lateness:
    made = Lateness()
    for due_at, now in spans:
        made.note(due_at, now)
    return made


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [(0, 5, 0), (0, 100, 5), (11, 100, 4), (0, 11, 1), (11, 12, 1), (12, 31, 2), (13, 30, 0), (40, 50, 0)],
)
def test_only_what_lies_in_between_counts(start: float, end: float, seconds: float) -> None:
    assert noted((10, 13), (30, 32)).between(start, end) == pytest.approx(seconds)


def test_what_timers_are_always_late_by_is_no_lateness() -> None:
    assert noted((10, 10 + TOLERANCE_SECONDS)).between(0, 100) == 0


def test_a_lateness_that_is_not_over_counts_already() -> None:
    made = noted((10, 13))
    made.due_at = 20.0
    assert made.between(19, 22) == pytest.approx(2)
    assert made.between(21, 22) == pytest.approx(1)
    assert made.between(0, 20) == pytest.approx(3)


def test_the_record_is_bounded_and_keeps_the_newest() -> None:
    made = noted(*((float(at), at + 0.5) for at in range(MAX_KEPT + 10)))
    assert made.between(MAX_KEPT, MAX_KEPT + 10) == pytest.approx(5)
    assert made.between(0, MAX_KEPT) < MAX_KEPT / 2


@given(st.lists(st.tuples(st.floats(0.02, 5), st.floats(0.02, 5)), max_size=20), st.floats(0, 60), st.floats(0, 60))
def test_the_sum_is_that_of_the_overlaps(steps: list[tuple[float, float]], start: float, length: float) -> None:
    spans, at = [], 0.0
    for pause, late in steps:
        spans.append((at + pause, at + pause + late))
        at += pause + late
    end = start + length
    expected = sum(max(min(end, b) - max(start, a), 0.0) for a, b in spans)
    assert noted(*spans).between(start, end) == pytest.approx(expected, abs=1e-6)


async def test_a_blocked_loop_is_noticed_and_observed() -> None:
    observed: list[float] = []
    timer = LagTimer(Lateness(), observed.append)
    try:
        async with asyncio.timeout(10):
            while not observed:
                await asyncio.sleep(0.01)
        began = time.monotonic()
        time.sleep(4 * PERIOD_SECONDS)  # that is what is tested
        now = time.monotonic()
        assert timer.lateness.between(began, now) >= 2 * PERIOD_SECONDS
        count = len(observed)
        async with asyncio.timeout(10):
            while len(observed) == count:
                await asyncio.sleep(0.01)
        assert max(observed) >= 2 * PERIOD_SECONDS
        assert timer.lateness.between(began, now) >= 2 * PERIOD_SECONDS
    finally:
        timer.stop()
