"""When a dead worker is started again."""

from hypothesis import given
from hypothesis import strategies as st

from relay.workers.restarts import CAP_SECONDS, FIRST_SECONDS, YOUNG_SECONDS, Restarts


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
def test_never_given_up_and_never_at_once(lives: list[tuple[float, float]]) -> None:
    restarts = Restarts()
    for lived, chance in lives:
        assert FIRST_SECONDS / 2 <= restarts.wait_seconds(lived, chance) <= CAP_SECONDS
