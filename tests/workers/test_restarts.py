"""When a dead worker is started again."""

from hypothesis import given
from hypothesis import strategies as st

from relay.workers.restarts import CAP_SECONDS, FIRST_SECONDS, GIVE_UP_DEATHS, GIVE_UP_SECONDS, YOUNG_SECONDS, Restarts


def test_waits_double_up_to_the_cap_while_lives_are_short() -> None:
    restarts = Restarts()
    waits = [restarts.wait_seconds(1.0, 0.0) for _ in range(12)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == CAP_SECONDS


def test_long_life_begins_anew() -> None:
    restarts = Restarts()
    for _ in range(8):
        restarts.wait_seconds(0.0, 0.0)
    assert restarts.wait_seconds(YOUNG_SECONDS, 0.0) == FIRST_SECONDS


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1, exclude_max=True)), max_size=2000))
def test_never_at_once_and_never_too_late(lives: list[tuple[float, float]]) -> None:
    restarts = Restarts()
    for lived, chance in lives:
        assert FIRST_SECONDS / 2 <= restarts.wait_seconds(lived, chance) <= CAP_SECONDS


def test_fifth_death_within_a_minute_is_hopeless() -> None:
    """F40."""
    restarts = Restarts()
    assert [restarts.is_hopeless(1000.0 + 15 * number, was_ready=True) for number in range(GIVE_UP_DEATHS)] == [False] * 4 + [True]


def test_deaths_that_come_seldom_are_never_hopeless() -> None:
    restarts = Restarts()
    assert not any(restarts.is_hopeless(15.1 * number, was_ready=True) for number in range(1000))


def test_fifth_life_in_a_row_that_never_was_ready_is_hopeless_however_long_starts_take() -> None:
    restarts = Restarts()
    lives = [False] * 4 + [True] + [False] * 5
    assert [restarts.is_hopeless(30.0 * at, was_ready=was_ready) for at, was_ready in enumerate(lives)] == [False] * 9 + [True]


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=200))
def test_hopeless_means_five_deaths_in_a_minute_or_five_unready_lives(lives: list[tuple[float, bool]]) -> None:
    restarts, now = Restarts(), 0.0
    deaths: list[tuple[float, bool]] = []
    for lived, was_ready in lives:
        now += lived
        deaths.append((now, was_ready))
        last = deaths[-GIVE_UP_DEATHS:]
        is_full = len(last) == GIVE_UP_DEATHS
        expected = is_full and (now - last[0][0] <= GIVE_UP_SECONDS or not any(ready for _, ready in last))
        assert restarts.is_hopeless(now, was_ready=was_ready) == expected
