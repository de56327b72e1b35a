from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from relay.policy.breaker import (
    JITTER,
    MAX_REST_SECONDS,
    PROBE_SECONDS,
    Breaker,
    Health,
    Healths,
    Permit,
    usable,
)


def begun(breaker: Breaker, now: float, *, is_forced: bool = False) -> Permit:
    permit = breaker.begin(now, is_forced=is_forced)
    assert permit is not None
    return permit


def fail(breaker: Breaker, now: float, times: int = 1, *, chance: float = 0.0, at_least: float = 0.0) -> bool:
    tripped = False
    for _ in range(times):
        tripped = breaker.failed(begun(breaker, now), now, chance, at_least=at_least)
    return tripped


def tripped_at(now: float) -> Breaker:
    breaker = Breaker()
    assert fail(breaker, now, 5)
    return breaker


def test_five_failures_in_a_row_trip_and_four_do_not() -> None:
    breaker = Breaker()
    assert not fail(breaker, 100.0, 4)
    assert breaker.health(100.0) is Health.HEALTHY
    assert fail(breaker, 100.0)
    assert breaker.health(100.0) is Health.COOLING


def test_a_success_ends_a_run_of_failures() -> None:
    breaker = Breaker()
    for _ in range(3):
        fail(breaker, 1.0, 4)
        breaker.succeeded(begun(breaker, 1.0), 1.0)
        breaker.succeeded(begun(breaker, 1.0), 1.0)
    assert breaker.health(1.0) is Health.HEALTHY


def test_half_of_twenty_in_thirty_seconds_trips_without_five_in_a_row() -> None:
    breaker = Breaker()
    tripped_after = None
    for number in range(40):
        now = 100.0 + number
        permit = begun(breaker, now)
        if number % 2 == 0:
            breaker.succeeded(permit, now)
        elif breaker.failed(permit, now, 0.0):
            tripped_after = number + 1
            break
    assert tripped_after == 20


def test_half_of_too_few_does_not_trip() -> None:
    breaker = Breaker()
    for number in range(100):
        now = 100.0 + 2 * number  # at most 16 attempts in 31 s
        permit = begun(breaker, now)
        if number % 2 == 0:
            breaker.succeeded(permit, now)
        else:
            assert not breaker.failed(permit, now, 0.0)


def test_exactly_one_of_200_concurrent_is_the_probe_after_the_rest() -> None:
    breaker = tripped_at(100.0)
    assert [breaker.begin(109.9) for _ in range(200)] == [None] * 200
    permits = [breaker.begin(110.0) for _ in range(200)]
    assert [permit is not None for permit in permits] == [True] + [False] * 199
    assert permits[0] is not None and permits[0].is_probe
    assert breaker.health(110.0) is Health.PROBING
    breaker.succeeded(permits[0], 111.0)
    assert breaker.health(111.0) is Health.HEALTHY
    assert all(breaker.begin(111.0) is not None for _ in range(200))


def test_rests_grow_with_every_failed_probe_up_to_the_cap() -> None:
    breaker = tripped_at(0.0)
    now = 0.0
    rests = []
    for _ in range(40):
        rests.append(breaker.rest_left(now))
        now += rests[-1]
        assert fail(breaker, now)
    assert rests == [min(10.0 * n, MAX_REST_SECONDS) for n in range(1, 41)]


def test_a_flapping_target_rests_longer_and_a_recovered_one_begins_anew() -> None:
    breaker = tripped_at(0.0)
    breaker.succeeded(begun(breaker, 10.0), 10.0)
    fail(breaker, 39.0, 5)
    assert breaker.rest_left(39.0) == 20.0
    breaker.succeeded(begun(breaker, 59.0), 59.0)
    fail(breaker, 89.0, 5)
    assert breaker.rest_left(89.0) == 10.0


@given(chance=st.floats(0, 1, exclude_max=True), at_least=st.floats(0, 1e6))
def test_a_rest_is_jittered_and_never_shorter_than_retry_after_up_to_a_minute(chance: float, at_least: float) -> None:
    breaker = Breaker()
    fail(breaker, 0.0, 5, chance=chance, at_least=at_least)
    rest = breaker.rest_left(0.0)
    assert min(at_least, 60.0) <= rest <= 60.0
    if at_least <= 8.0:
        assert 10.0 * (1 - JITTER) <= rest <= 10.0


def test_a_probe_without_a_verdict_leaves_its_place_to_the_next() -> None:
    breaker = tripped_at(0.0)
    breaker.abandoned(begun(breaker, 10.0))
    assert breaker.health(10.0) is Health.COOLING
    assert begun(breaker, 10.0).is_probe
    assert breaker.begin(10.0) is None


def test_a_probe_that_never_ends_gives_its_place_up_and_its_late_result_counts_for_nothing() -> None:
    breaker = tripped_at(0.0)
    lost = begun(breaker, 10.0)
    assert breaker.begin(10.0 + PROBE_SECONDS - 1) is None
    second = begun(breaker, 10.0 + PROBE_SECONDS)
    breaker.succeeded(lost, 400.0)
    assert breaker.health(400.0) is Health.PROBING
    breaker.succeeded(second, 400.0)
    assert breaker.health(400.0) is Health.HEALTHY


def test_attempts_from_before_the_trip_neither_lengthen_nor_end_the_rest() -> None:
    breaker = Breaker()
    old = [begun(breaker, 0.0) for _ in range(50)]
    fail(breaker, 1.0, 5)
    rest = breaker.rest_left(1.0)
    for number, permit in enumerate(old):
        if number % 2:
            breaker.succeeded(permit, 2.0)
        else:
            assert not breaker.failed(permit, 2.0, 0.0)
    assert breaker.rest_left(1.0) == rest
    assert (breaker.health(2.0), breaker.trips) == (Health.COOLING, 1)


def test_failures_from_before_a_recovery_do_not_count_after_it() -> None:
    breaker = Breaker()
    old = [begun(breaker, 0.0) for _ in range(20)]
    fail(breaker, 0.0, 5)
    breaker.succeeded(begun(breaker, 10.0), 10.0)
    assert not any(breaker.failed(permit, 11.0, 0.0) for permit in old)
    assert not fail(breaker, 12.0, 4)
    breaker.succeeded(begun(breaker, 12.0), 12.0)
    for _ in range(14):
        breaker.succeeded(begun(breaker, 12.0), 12.0)
    assert not fail(breaker, 12.0), "five of twenty since the recovery; what was before is forgotten"


def test_a_recovery_forgets_the_share_of_failures_before_it() -> None:
    breaker = Breaker()
    for _ in range(4):
        fail(breaker, 0.0, 4)
        breaker.succeeded(begun(breaker, 0.0), 0.0)
    # Sixteen of twenty, and the last attempt was a success: the next failure would trip.
    breaker.bring_back(1.0)
    assert not fail(breaker, 1.0, 4)


def test_a_lost_probe_that_is_abandoned_late_leaves_the_next_probe_alone() -> None:
    breaker = tripped_at(0.0)
    lost = begun(breaker, 10.0)
    begun(breaker, 10.0 + PROBE_SECONDS)
    breaker.abandoned(lost)
    assert breaker.health(10.0 + PROBE_SECONDS) is Health.PROBING


def test_a_forced_attempt_can_bring_a_resting_target_back_but_not_lengthen_its_rest() -> None:
    breaker = tripped_at(0.0)
    for _ in range(20):
        assert not breaker.failed(begun(breaker, 1.0, is_forced=True), 1.0, 0.0)
    assert breaker.rest_left(0.0) == 10.0
    forced = begun(breaker, 2.0, is_forced=True)
    assert not forced.is_probe
    breaker.succeeded(forced, 3.0)
    assert breaker.health(3.0) is Health.HEALTHY


def test_a_rest_for_a_rate_limit_ends_without_a_probe() -> None:
    breaker = Breaker()
    breaker.rest(0.0, 2.0, has_to_probe=False)
    assert breaker.health(1.9) is Health.COOLING and breaker.begin(1.9) is None
    assert breaker.health(2.0) is Health.HEALTHY
    assert all(breaker.begin(2.0) is not None for _ in range(200))


def test_a_rate_limit_does_not_shorten_a_rest_nor_spare_it_the_probe() -> None:
    breaker = tripped_at(0.0)
    breaker.rest(1.0, 2.0, has_to_probe=False)
    assert breaker.rest_left(0.0) == 10.0
    assert begun(breaker, 10.0).is_probe


def test_an_operator_rests_a_target_and_brings_it_back() -> None:
    breaker = Breaker()
    breaker.rest(0.0, 3600.0)
    assert breaker.health(3599.0) is Health.COOLING
    breaker.bring_back(3599.0)
    assert (breaker.health(3599.0), breaker.trips) == (Health.HEALTHY, 0)


def usable_of(healths: Healths, names: list[str], now: float) -> list[str]:
    return usable(names, lambda name: healths.of(name).may_try(now), lambda name: healths.of(name).rest_left(now))


def test_usable_leaves_resting_targets_out_and_keeps_the_order() -> None:
    healths = Healths()
    fail(healths.of("b"), 0.0, 5)
    assert usable_of(healths, ["a", "b", "c"], 1.0) == ["a", "c"]
    assert usable_of(healths, ["a", "b", "c"], 10.0) == ["a", "b", "c"]


def test_of_targets_that_all_rest_the_one_that_is_back_first_is_kept() -> None:
    healths = Healths()
    fail(healths.of("a"), 5.0, 5)
    fail(healths.of("b"), 0.0, 5)
    assert usable_of(healths, ["a", "b"], 6.0) == ["b"]
    assert usable_of(healths, [], 6.0) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 500)), max_size=20), st.floats(0, 600))
def test_a_route_never_loses_its_last_target(rests: list[tuple[int, float]], now: float) -> None:
    healths = Healths()
    names = ["a", "b", "c", "d"]
    for number, seconds in rests:
        healths.of(names[number]).rest(0.0, seconds)
    assert usable_of(healths, names, now)
    for name in names:
        assert usable_of(healths, [name], now) == [name]


def test_with_every_upstream_dead_a_request_costs_about_one_attempt_and_recovery_one_probe() -> None:
    healths = Healths()
    names = ["a", "b", "c"]
    attempts = requests = 0
    now = 1000.0
    for _ in range(200 * 60):
        now += 1 / 200
        requests += 1
        # The first fallback is free, more is for the budget, which this test leaves out.
        for name in usable_of(healths, names, now)[:2]:
            breaker = healths.of(name)
            attempts += 1
            breaker.failed(begun(breaker, now, is_forced=True), now, 0.5)
    assert attempts <= 1.1 * requests + 3 * 60
    now += MAX_REST_SECONDS
    for name in names:
        breaker = healths.of(name)
        permits = [breaker.begin(now) for _ in range(200)]
        assert sum(permit is not None for permit in permits) == 1
        assert permits[0] is not None
        breaker.succeeded(permits[0], now)
    assert usable_of(healths, names, now) == names


def test_a_new_configuration_forgets_what_is_gone_and_keeps_what_is_known() -> None:
    healths = Healths()
    fail(healths.of("a"), 0.0, 5)
    healths.of("b")
    healths.keep(["a", "c"])
    (standing,) = healths.standings(1.0)
    assert (standing.name, standing.health, standing.rest_seconds, standing.trips) == ("a", Health.COOLING, 9.0, 1)


class BreakerLife(RuleBasedStateMachine):
    """200 callers, any order of ends, a clock that only goes forward: at most one live probe, no unbounded rest, no lost place."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 1000.0
        self.open: list[Permit] = []
        self.probe: tuple[Permit, float] | None = None

    @rule(seconds=st.one_of(st.floats(0, 1), st.floats(0, 20), st.floats(0, 400)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=permits, is_forced=st.booleans())
    def begin(self, is_forced: bool) -> Any:
        may_try = self.breaker.may_try(self.now)
        permit = self.breaker.begin(self.now, is_forced=is_forced)
        assert (permit is not None) == (may_try or is_forced)
        if permit is not None and permit.is_probe:
            assert self.probe is None or self.now >= self.probe[1] + PROBE_SECONDS
            self.probe = (permit, self.now)
        return permit

    @rule()
    @precondition(lambda self: self.breaker.health(self.now) is not Health.HEALTHY)
    def two_hundred_at_once(self) -> None:
        permits = [permit for permit in (self.breaker.begin(self.now) for _ in range(200)) if permit is not None]
        assert len(permits) <= 1
        if permits:
            assert permits[0].is_probe
            self.probe = (permits[0], self.now)

    @rule(permit=consumes(permits))
    def succeed(self, permit: Permit | None) -> None:
        if permit is not None:
            is_current = permit.epoch == self.breaker._epoch
            self.breaker.succeeded(permit, self.now)
            if is_current:
                assert self.breaker.health(self.now) is Health.HEALTHY
                self.probe = None

    @rule(permit=consumes(permits), chance=st.floats(0, 1, exclude_max=True), at_least=st.floats(0, 1000))
    def fail(self, permit: Permit | None, chance: float, at_least: float) -> None:
        if permit is not None and self.breaker.failed(permit, self.now, chance, at_least=at_least):
            assert self.breaker.health(self.now) is Health.COOLING
            assert self.breaker.rest_left(self.now) + 1e-6 >= 8.0 and self.breaker.rest_left(self.now) <= MAX_REST_SECONDS + 1e-6
            self.probe = None

    @rule(permit=consumes(permits))
    def abandon(self, permit: Permit | None) -> None:
        if permit is not None:
            self.breaker.abandoned(permit)
            if self.probe is not None and permit is self.probe[0]:
                self.probe = None

    @rule(seconds=st.floats(0, 60), has_to_probe=st.booleans())
    def rest(self, seconds: float, has_to_probe: bool) -> None:
        before = self.breaker.rest_left(self.now)
        self.breaker.rest(self.now, seconds, has_to_probe=has_to_probe)
        assert self.breaker.rest_left(self.now) >= min(before, seconds) - 1e-6
        self.probe = None

    @rule()
    def bring_back(self) -> None:
        self.breaker.bring_back(self.now)
        assert self.breaker.may_try(self.now)
        self.probe = None

    @invariant()
    def somebody_may_try_in_bounded_time(self) -> None:
        assert self.breaker.rest_left(self.now) <= MAX_REST_SECONDS + 1e-6
        later = self.now + MAX_REST_SECONDS + PROBE_SECONDS
        assert self.breaker.may_try(later)

    @invariant()
    def the_state_says_what_may_be_tried(self) -> None:
        match self.breaker.health(self.now):
            case Health.HEALTHY:
                assert self.breaker.may_try(self.now)
            case Health.PROBING:
                assert not self.breaker.may_try(self.now)
            case Health.COOLING:
                assert self.breaker.may_try(self.now) == (self.breaker.rest_left(self.now) <= 0)


TestBreakerLife = BreakerLife.TestCase
TestBreakerLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("health", list(Health))
def test_a_state_has_a_word_for_metrics(health: Health) -> None:
    assert health.value == health.name.lower()
