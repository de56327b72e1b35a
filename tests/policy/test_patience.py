from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.patience import Patience, advice, patience_of
from tests.policy.asking import ask


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (((b"x-stainless-read-timeout", b"600"),), 599.0),
        (((b"X-Stainless-Timeout", b"60"),), 59.0),
        (((b"X-Stainless-Read-Timeout", b"2.5"),), 2.25),
        (((b"x-stainless-timeout", b"600"), (b"x-stainless-read-timeout", b"30")), 29.0),
        (((b"x-stainless-read-timeout", b"30"), (b"x-stainless-timeout", b"600")), 29.0),
        ((), inf),
        (((b"x-stainless-read-timeout", b"0"),), inf),
        (((b"x-stainless-read-timeout", b"-5"),), inf),
        (((b"x-stainless-read-timeout", b"nan"),), inf),
        (((b"x-stainless-read-timeout", b"inf"),), inf),
        (((b"x-stainless-read-timeout", b"not_given"),), inf),
        (((b"x-stainless-read-timeout", b"999999999"),), inf),
        (((b"x-stainless-read-timeout", b"9" * 5000),), inf),
        (((b"x-timeout", b"5"),), inf),
    ],
)
def test_the_deadline_comes_a_little_before_the_caller_gives_up(headers: tuple[tuple[bytes, bytes], ...], seconds: float) -> None:
    assert patience_of(ask(headers=headers, received_at=1000.0)).deadline_at == pytest.approx(1000.0 + seconds)


@pytest.mark.parametrize(("value", "count"), [(b"0", 0), (b"2", 2), (b"-1", 0), (b"x", 0), (b"9999", 100), (b"9" * 5000, 0)])
def test_the_retry_count_is_read_and_bounded(value: bytes, count: int) -> None:
    assert patience_of(ask(headers=((b"X-Stainless-Retry-Count", value),))).retry_count == count


@given(
    value=st.binary(max_size=30), name=st.sampled_from([b"x-stainless-read-timeout", b"x-stainless-timeout", b"x-stainless-retry-count"])
)
def test_no_value_raises_or_ends_before_it_began(value: bytes, name: bytes) -> None:
    patience = patience_of(ask(headers=((name, value),), received_at=1000.0))
    assert patience.deadline_at > 1000.0
    assert 0 <= patience.retry_count <= 100


def test_an_attempt_that_cannot_be_in_time_does_not_fit() -> None:
    patience = Patience(deadline_at=110.0)
    assert patience.fits(100.0, 10.0)
    assert not patience.fits(100.1, 10.0)
    assert not patience.fits(110.0, 0.0)
    assert (patience.left(104.0), patience.left(200.0)) == (6.0, 0.0)


def test_who_does_not_say_waits_for_ever() -> None:
    assert Patience().fits(1e12, 1e6)
    assert Patience().left(0.0) == inf


@pytest.mark.parametrize("helps_in", [None, 61.0, inf])
def test_asking_again_is_advised_against_unless_a_wait_helps(helps_in: float | None) -> None:
    assert advice(helps_in) == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("helps_in", "milliseconds", "seconds"),
    [(0.0, "1", "1"), (0.12, "120", "1"), (1.0, "1000", "1"), (12.3456, "12346", "13"), (60.0, "60000", "60")],
)
def test_a_wait_that_helps_is_named_in_both_units(helps_in: float, milliseconds: str, seconds: str) -> None:
    assert advice(helps_in) == {"x-should-retry": "true", "retry-after-ms": milliseconds, "retry-after": seconds}
