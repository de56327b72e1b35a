from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.latency import FULL, SIZES, Histogram, Latencies, size_of

SECONDS = st.floats(0.0, 900.0)


@given(values=st.lists(SECONDS, min_size=1, max_size=FULL - 1), share=st.floats(0.01, 1.0))
@settings(max_examples=100, deadline=None)
def test_a_quantile_is_never_too_low_and_at_most_a_fifth_too_high(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    exact = sorted(values)[max(1, ceil(share * len(values) - 1e-9)) - 1]
    assert exact <= histogram.quantile(share) + 1e-9
    assert histogram.quantile(share) <= max(exact * 1.2, 0.02)


def test_nothing_observed_is_zero() -> None:
    assert Histogram().quantile(0.99) == 0.0


def test_memory_stays_bounded_and_the_past_fades() -> None:
    histogram = Histogram()
    for _ in range(100_000):
        histogram.observe(1.0)
        assert histogram.total < FULL
    for _ in range(8 * FULL):
        histogram.observe(0.1)
    assert histogram.quantile(0.99) < 0.13


def test_what_was_seen_once_survives_the_first_halving() -> None:
    histogram = Histogram()
    histogram.observe(60.0)
    for _ in range(FULL - 1):
        histogram.observe(1.0)
    assert histogram.total < FULL
    assert histogram.quantile(1.0) >= 60.0


def test_what_is_longer_than_the_last_bin_counts_in_it() -> None:
    histogram = Histogram()
    histogram.observe(1e9)
    histogram.observe(float("inf"))
    assert 1000 < histogram.quantile(1.0) < 1200


@given(st.integers(0, 2**40))
def test_sizes_are_powers_of_two_in_a_closed_range(prompt_tokens: int) -> None:
    size = size_of(prompt_tokens)
    assert 0 <= size < SIZES
    assert size_of(prompt_tokens + 1) >= size
    assert size_of(2 * max(prompt_tokens, 256)) == min(size + 1, SIZES - 1)


def test_a_rare_size_borrows_from_a_larger_one_never_from_a_smaller() -> None:
    latencies = Latencies()
    for _ in range(20):
        latencies.observe(100_000, 4.0)
    small, large = latencies.quantile(500, 0.5, at_least=20), latencies.quantile(1_000_000, 0.5, at_least=20)
    assert small is not None and 4.0 <= small <= 4.8
    assert large is None
