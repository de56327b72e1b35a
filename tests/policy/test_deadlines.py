import random

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.deadlines import FLOOR_SECONDS, MIN_SAMPLES, LearnedDeadline

CONFIGURED = 120.0


def learned(pairs: list[tuple[int, float]]) -> LearnedDeadline:
    deadline = LearnedDeadline()
    for size, seconds in pairs:
        deadline.answered(size, seconds)
    return deadline


def test_the_configured_value_counts_until_twenty_answers_came() -> None:
    deadline = LearnedDeadline()
    for _ in range(MIN_SAMPLES - 1):
        deadline.answered(1000, 2.0)
    assert deadline.seconds(1000, 77.0, is_last=False) == 77.0
    deadline.answered(1000, 2.0)
    assert 8.0 <= deadline.seconds(1000, 77.0, is_last=False) <= 9.6


def test_short_prompts_teach_nothing_about_long_ones() -> None:
    deadline = learned([(1000, 0.3)] * 500)
    assert deadline.seconds(1000, CONFIGURED, is_last=False) == FLOOR_SECONDS
    assert deadline.seconds(400_000, CONFIGURED, is_last=False) == CONFIGURED


@given(
    seed=st.integers(0, 2**32),
    per_thousand_tokens=st.floats(0.01, 0.25),
    base=st.floats(0.05, 1.0),
    spread=st.floats(1.0, 2.0),
)
@settings(max_examples=60, deadline=None)
def test_no_valid_100k_token_prompt_is_cut_while_stalled_1k_prompts_leave_early(
    seed: int, per_thousand_tokens: float, base: float, spread: float
) -> None:
    chance = random.Random(seed)
    deadline = LearnedDeadline()

    def takes(tokens: int) -> float:
        return (base + per_thousand_tokens * tokens / 1000) * chance.uniform(1.0, spread)

    for _ in range(600):
        tokens = int(10 ** chance.uniform(2, 5.1))
        seconds = takes(tokens)
        limit = deadline.seconds(tokens, CONFIGURED, is_last=False)
        assert seconds <= limit, f"cut a valid prompt of {tokens} tokens"
        deadline.answered(tokens, seconds)
    for _ in range(50):
        assert takes(100_000) <= deadline.seconds(100_000, CONFIGURED, is_last=False)
    stalled = deadline.seconds(1000, CONFIGURED, is_last=False)
    assert stalled <= max(FLOOR_SECONDS, 4 * 1.2 * spread * (base + per_thousand_tokens * 2.1)) < 0.2 * CONFIGURED


def test_a_target_that_became_slow_for_good_is_learned_again() -> None:
    deadline = learned([(1000, 1.0)] * 500)
    answers = 0
    for _ in range(100):
        if deadline.seconds(1000, CONFIGURED, is_last=False) >= 20.0:
            deadline.answered(1000, 20.0)
            answers += 1
        else:
            deadline.cut(1000)
    assert answers >= 50
    assert deadline.seconds(1000, CONFIGURED, is_last=False) >= 20.0


def test_scattered_stalls_leave_the_deadline_where_it_was() -> None:
    deadline = learned([(1000, 1.0)] * 500)
    before = deadline.seconds(1000, CONFIGURED, is_last=False)
    for number in range(1000):
        if number % 20 == 0:
            deadline.cut(1000)
        else:
            deadline.answered(1000, 1.0)
    assert deadline.seconds(1000, CONFIGURED, is_last=False) == before


def test_the_last_target_gets_twice_the_time() -> None:
    deadline = learned([(1000, 2.0)] * 20)
    assert deadline.seconds(1000, CONFIGURED, is_last=True) == 2 * deadline.seconds(1000, CONFIGURED, is_last=False)


@given(
    answers=st.lists(st.tuples(st.integers(1, 10**7), st.floats(0.001, 1000)), max_size=80),
    cuts=st.integers(0, 2000),
    size=st.integers(1, 10**7),
    is_last=st.booleans(),
    configured=st.floats(0.1, 600),
)
@settings(deadline=None)
def test_a_deadline_is_between_the_floor_and_the_configured_one(
    answers: list[tuple[int, float]], cuts: int, size: int, is_last: bool, configured: float
) -> None:
    deadline = learned(answers)
    for _ in range(cuts):
        deadline.cut(size)
    seconds = deadline.seconds(size, configured, is_last=is_last)
    assert min(FLOOR_SECONDS, configured) <= seconds <= configured
    assert seconds == deadline.seconds(size, configured, is_last=is_last)
