"""The course of exchanges over failing targets, under a manual clock."""

from collections.abc import Sequence

import pytest

from relay.config.tree import Config, FallbackCause, Route, Secret, Target, Timeouts, Upstream
from relay.errors import Break as Broken
from relay.errors import ConnectFailed, ConnectFault, Phase, StreamBroken, UpstreamError, UpstreamRefused, UpstreamTimeout
from relay.policy.course import Course, Step
from relay.policy.patience import Patience
from relay.policy.retries import SHARE, retry_budget
from relay.policy.routing import Choice, RoutePlan
from relay.policy.targets import Targets

DOWN = UpstreamRefused(500)
THROTTLED = UpstreamRefused(429, retry_after=1.0)


def target(name: str, *keys: str) -> Target:
    secrets = tuple(map(Secret, keys or (f"sk-{name}",)))
    several = secrets if len(secrets) > 1 else ()
    return Target(upstream=Upstream(name=name, base_url="http://x", api_key=secrets[0], api_keys=several), model="m")


class Bed:
    """Targets of one route, and a clock."""

    def __init__(self, *targets: Target, retries: int = 2) -> None:
        self.route = Route(name="fast", targets=targets, timeouts=Timeouts(), retries=retries)
        self.targets = Targets()
        self.targets.know(Config(upstreams={each.upstream.name: each.upstream for each in targets}, routes={"fast": self.route}))
        self.budget = retry_budget()
        self.now = 1000.0

    def course(self, *, can_repeat: bool = True, patience: Patience | None = None, fallback_on: Sequence[FallbackCause] = ()) -> Course:
        order = self.targets.order(self.route, None, self.now, 0.0)  # type: ignore[arg-type]  # asked for affinity only
        plan = RoutePlan(self.route, [Choice(target=each, model="m", is_mapped=True, fallback_on=frozenset(fallback_on)) for each in order])
        return Course(plan, self.targets, self.budget, patience or Patience(), can_repeat=can_repeat, chance=lambda: 0.5)

    def run(self, course: Course, *errors: UpstreamError) -> list[Step]:
        """Fail with `errors`, one after the other and the last again and again; return the steps that were made."""
        steps: list[Step] = []
        step: Step | None = course.start(self.now)
        while step is not None:
            steps.append(step)
            self.now += step.wait_seconds
            course.failed(step, errors[min(len(steps), len(errors)) - 1], self.now)
            step = course.go_on()
        course.close()
        return steps


def names(steps: Sequence[Step]) -> list[str]:
    return [step.choice.target.upstream.name for step in steps]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_dead_upstreams_cost_hardly_more_attempts_than_requests_and_come_back_with_one_probe(count: int) -> None:
    bed = Bed(*map(target, "abc"[:count]))
    attempts = early = 0
    for number in range(200 * 60):
        bed.now = 1000.0 + number / 200
        attempts += len(bed.run(bed.course(), DOWN))
        if number == 200:
            early = attempts
    assert attempts - early <= 1.1 * 200 * 59 + 3 * 59
    bed.now += 400
    trials = [bed.targets.begin(bed.route.targets[0], bed.now) for _ in range(200)]
    assert sum(trial is not None for trial in trials) == 1
    assert trials[0] is not None
    trials[0].succeeded(bed.now)
    assert bed.targets.may_try(bed.route.targets[0], bed.now)


def test_an_only_target_is_asked_again_after_a_wait_and_no_more_than_twice() -> None:
    bed = Bed(target("a"))
    steps = bed.run(bed.course(), DOWN)
    assert names(steps) == ["a", "a", "a"]
    assert [step.wait_seconds for step in steps] == [0.0, 0.05, 0.1]


def test_a_short_retry_after_is_waited_for_and_a_long_one_is_told() -> None:
    bed = Bed(target("a"))
    assert [round(step.wait_seconds, 2) for step in bed.run(bed.course(), THROTTLED, DOWN)][:2] == [0.0, 1.05]
    bed = Bed(target("a"))
    course = bed.course()
    assert len(bed.run(course, UpstreamRefused(429, retry_after=20.0))) == 1
    assert course.advice(429) == {"x-should-retry": "true", "retry-after-ms": "20000", "retry-after": "20"}


def test_a_wait_longer_than_any_sdk_would_wait_is_no_reason_to_ask_again_and_rests_a_target_for_a_minute() -> None:
    bed = Bed(target("a"))
    course = bed.course()
    assert len(bed.run(course, UpstreamRefused(429, retry_after=3600.0))) == 1
    assert course.advice(429) == {"x-should-retry": "false"}
    assert bed.targets.rest_left(bed.route.targets[0], bed.now) == 60.0


@pytest.mark.parametrize(
    ("error", "is_repeated"),
    [
        (ConnectFailed(ConnectFault.REFUSED), True),
        (ConnectFailed(ConnectFault.TLS), False),
        (UpstreamTimeout(Phase.FIRST_TOKEN), False),
        (StreamBroken(Broken.RESET, anything=False), False),
        (UpstreamRefused(401), False),
        (UpstreamRefused(400), False),
    ],
)
def test_only_what_a_moment_may_mend_is_repeated(error: UpstreamError, is_repeated: bool) -> None:
    bed = Bed(target("a"))
    assert (len(bed.run(bed.course(), error)) > 1) is is_repeated


def test_an_sdk_that_tries_again_by_itself_a_route_without_retries_and_an_unsafe_request_get_none() -> None:
    bed = Bed(target("a"))
    assert len(bed.run(bed.course(patience=Patience(retry_count=1)), DOWN)) == 1
    assert len(bed.run(bed.course(can_repeat=False), DOWN)) == 1
    bed = Bed(target("a"), retries=0)
    assert len(bed.run(bed.course(), DOWN)) == 1


def test_a_retry_that_cannot_fit_the_callers_patience_is_not_made() -> None:
    bed = Bed(target("a"))
    assert len(bed.run(bed.course(patience=Patience(deadline_at=bed.now + 0.04)), DOWN)) == 1


def test_an_upload_that_was_not_begun_may_go_elsewhere() -> None:
    bed = Bed(target("a"), target("b"))
    course = bed.course(can_repeat=False)
    assert course.failed(course.start(bed.now), ConnectFailed(ConnectFault.REFUSED), bed.now, was_sent=False)
    step = course.go_on()
    assert step is not None and names([step]) == ["b"]
    assert not course.failed(step, DOWN, bed.now)


@pytest.mark.parametrize(("error", "states"), [(UpstreamRefused(401), (1, 1)), (THROTTLED, (1, 1))])
def test_the_next_credential_goes_before_the_next_target(error: UpstreamError, states: tuple[int, int]) -> None:
    bed = Bed(target("a", "sk-1", "sk-2"), target("b"))
    steps = bed.run(bed.course(), error, DOWN)
    assert names(steps)[:2] == ["a", "a"]
    assert [step.trial.credential for step in steps[:2]] == [Secret("sk-1"), Secret("sk-2")]
    counts = bed.targets.credentials(bed.now)["a"]
    assert (counts["healthy"], counts["cooling"]) == states
    assert bed.run(bed.course(), DOWN)[0].trial.credential == Secret("sk-2")


@pytest.mark.parametrize("is_first_to_fail", [True, False])
def test_the_next_credential_of_either_of_two_racing_attempts_goes_before_the_next_target(is_first_to_fail: bool) -> None:
    bed = Bed(target("a", "sk-1", "sk-2"), target("b"), target("c"))
    course = bed.course()
    first = course.start(bed.now)
    second = course.back_up(bed.now, lambda: True)
    assert second is not None
    failures = [(first, THROTTLED), (second, DOWN)]
    for step, error in failures if is_first_to_fail else reversed(failures):
        assert course.failed(step, error, bed.now)
    step = course.go_on()
    assert step is not None and names([step]) == ["a"] and step.trial.credential == Secret("sk-2")
    assert not course.failed(step, DOWN, bed.now)


def test_a_credential_that_no_other_can_stand_in_for_is_not_offered_again_after_a_race() -> None:
    bed = Bed(target("a"), target("b"), target("c"))
    course = bed.course()
    first = course.start(bed.now)
    second = course.back_up(bed.now, lambda: True)
    assert second is not None
    assert course.failed(first, THROTTLED, bed.now) and course.failed(second, DOWN, bed.now)
    step = course.go_on()
    assert step is not None and names([step]) == ["c"]


def test_where_all_credentials_rest_the_target_does() -> None:
    bed = Bed(target("a", "sk-1", "sk-2"), target("b"))
    bed.run(bed.course(), UpstreamRefused(401), UpstreamRefused(401), DOWN)
    assert not bed.targets.may_try(bed.route.targets[0], bed.now)
    assert {standing.name: standing.health.value for standing in bed.targets.standings(bed.now)}["a/m"] == "cooling"
    assert names(bed.run(bed.course(), DOWN))[0] == "b"
    bed.targets.know(Config(upstreams={"a": target("a", "sk-1", "sk-new").upstream}, routes={"fast": bed.route}))
    assert bed.targets.credentials(bed.now)["a"]["healthy"] == 1


@pytest.mark.parametrize("cause", FallbackCause)
def test_refusals_of_the_request_fall_back_only_where_that_is_asked_for(cause: FallbackCause) -> None:
    code = {"context_length": "context_length_exceeded", "content_policy": "content_filter"}[cause.value]
    bed = Bed(target("a"), target("b"))
    assert names(bed.run(bed.course(), UpstreamRefused(400, code=code))) == ["a"]
    assert names(bed.run(bed.course(fallback_on=[cause]), UpstreamRefused(400, code=code))) == ["a", "b"]


def test_a_refusal_that_only_its_message_tells_is_known_by_it() -> None:
    bed = Bed(target("a"), target("b"))
    error = UpstreamRefused(400, message="This model's maximum context length is 8192 tokens.")
    assert names(bed.run(bed.course(fallback_on=[FallbackCause.CONTEXT_LENGTH]), error)) == ["a", "b"]


def test_a_resend_of_a_third_attempt_takes_no_second_token() -> None:
    bed = Bed(*map(target, "abc"))
    course = bed.course()
    step = course.start(bed.now)
    for _ in range(2):
        assert course.failed(step, DOWN, bed.now)
        step = course.go_on() or step
    assert course.failed(step, StreamBroken(Broken.RESET, anything=False), bed.now, was_reused=True)
    # Three tokens at least in a window: the third attempt took one, its resend none.
    assert [bed.budget.take(bed.now, SHARE) for _ in range(3)] == [True, True, False]


def test_with_a_backup_under_way_a_failure_decides_nothing_and_the_callers_mistake_everything() -> None:
    bed = Bed(*map(target, "abc"))
    course = bed.course()
    first = course.start(bed.now)
    second = course.back_up(bed.now, lambda: True)
    assert second is not None and names([second]) == ["b"]
    assert course.failed(first, DOWN, bed.now) and course.go_on() is None
    assert not course.failed(second, UpstreamRefused(400), bed.now)


def test_a_removed_target_leaves_nothing_behind() -> None:
    bed = Bed(target("a"), target("b"))
    course = bed.course()
    step = course.start(bed.now)
    bed.targets.know(
        Config(
            upstreams={"b": bed.route.targets[1].upstream},
            routes={"fast": Route(name="fast", targets=bed.route.targets[1:], timeouts=Timeouts())},
        )
    )
    course.failed(step, DOWN, bed.now)
    bed.targets.answered(bed.route.targets[0], 1.0)
    assert [standing.name for standing in bed.targets.standings(bed.now)] == ["b/m"]
