import pytest

from relay.policy.breaker import Breaker, Cause, Health
from relay.policy.signs import ILL_AFTER, Sign, Signs, State, rest_seconds, sign_of


@pytest.mark.parametrize(
    ("status", "sign"),
    [(200, Sign.GOOD), (204, Sign.GOOD), (None, Sign.BAD), (500, Sign.BAD), (503, Sign.BAD)]
    + [(status, Sign.NONE) for status in (301, 401, 403, 404, 429)],
)
def test_only_what_speaks_of_the_upstream_is_a_sign(status: int | None, sign: Sign) -> None:
    assert sign_of(status) is sign


def test_an_upstream_is_ill_after_several_bad_signs_in_a_row_and_well_after_one_good() -> None:
    signs = Signs()
    assert signs.take(Sign.GOOD) and signs.state is State.WELL
    for _ in range(ILL_AFTER - 1):
        assert not signs.take(Sign.BAD)
    assert not signs.take(Sign.GOOD)
    changes = [signs.take(Sign.BAD) for _ in range(ILL_AFTER + 2)]
    assert changes == [False] * (ILL_AFTER - 1) + [True, False, False]
    assert signs.take(Sign.GOOD) and signs.state is State.WELL


def test_an_answer_that_says_nothing_interrupts_a_run_of_bad_ones() -> None:
    signs = Signs()
    for _ in range(5):
        for sign in [Sign.BAD] * (ILL_AFTER - 1) + [Sign.NONE]:
            signs.take(sign)
        assert signs.state is State.UNCLEAR


def test_a_rest_for_one_bad_sign_lasts_until_the_next_sign_is_in() -> None:
    assert rest_seconds(30.0, 5.0) >= 30.0 * 1.1 + 5.0


def tripped() -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        permit = breaker.begin(0.0)
        assert permit is not None
        breaker.failed(permit, 0.0, 0.0)
    assert breaker.health(1.0) is Health.COOLING
    return breaker


def test_a_good_sign_makes_the_probe_due_after_failures_and_only_one_request_makes_it() -> None:
    breaker = tripped()
    assert breaker.begin(1.0) is None
    breaker.seems_well(1.0)
    probe = breaker.begin(1.0)
    assert probe is not None and probe.is_probe
    assert breaker.begin(1.0) is None
    breaker.seems_well(1.5)
    assert breaker.begin(1.5) is None, "a sign let a second probe in"
    breaker.succeeded(probe, 2.0)
    assert breaker.health(2.0) is Health.HEALTHY


def test_bad_signs_rest_a_target_for_as_long_as_they_come_and_a_good_one_brings_it_back() -> None:
    breaker = Breaker()
    for now in (0.0, 30.0, 60.0):
        breaker.seems_ill(now, 65.0)
        assert breaker.begin(now + 1) is None
    assert breaker.rest_left(60.0) == 65.0
    breaker.seems_well(90.0)
    assert breaker.health(90.0) is Health.HEALTHY


def test_when_the_signs_stop_a_target_is_tried_again() -> None:
    breaker = Breaker()
    breaker.seems_ill(0.0, 65.0)
    assert breaker.begin(64.0) is None
    probe = breaker.begin(66.0)
    assert probe is not None and probe.is_probe


@pytest.mark.parametrize("cause", [Cause.ASKED, Cause.OPERATOR])
def test_no_sign_shortens_or_lengthens_a_rest_that_was_asked_for(cause: Cause) -> None:
    breaker = Breaker()
    breaker.rest(0.0, 40.0, cause=cause)
    breaker.seems_well(1.0)
    assert breaker.rest_left(1.0) == 39.0
    breaker.seems_ill(2.0, 500.0)
    assert breaker.rest_left(2.0) == 38.0
