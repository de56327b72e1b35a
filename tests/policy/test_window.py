from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.window import Window

STEPS = st.lists(st.tuples(st.floats(0, 20, allow_nan=False), st.booleans()), max_size=60)


@given(seconds=st.integers(1, 30), start=st.floats(0, 1e6), steps=STEPS)
@settings(max_examples=200, deadline=None)
def test_counts_cover_the_stretch_and_at_most_one_second_more(seconds: int, start: float, steps: list[tuple[float, bool]]) -> None:
    window = Window(seconds)
    now = start
    events: list[tuple[float, bool]] = []
    for wait, is_first in steps:
        now += wait
        (window.add_first if is_first else window.add_second)(now)
        events.append((now, is_first))
        for kind, counted in ((True, window.first), (False, window.second)):
            certain = sum(at > now - seconds and what is kind for at, what in events)
            possible = sum(at > now - seconds - 1 and what is kind for at, what in events)
            assert certain <= counted <= possible


def test_a_clock_that_runs_backwards_stands_still() -> None:
    window = Window(10)
    window.add_first(100.0)
    window.add_first(50.0)
    window.advance(109.9)
    assert window.first == 2


def test_a_long_silence_forgets_everything() -> None:
    window = Window(10)
    window.add_second(5.0)
    window.advance(1e9)
    assert (window.first, window.second) == (0, 0)
