import random

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.deadlines import LearnedDeadline
from relay.policy.hedging import MIN_SAMPLES, WINDOW_SECONDS, delay_of
from relay.policy.latency import Latencies
from relay.policy.ration import Ration


def test_p95_is_waited_for_and_only_once_it_is_known() -> None:
    latencies = Latencies()
    for number in range(MIN_SAMPLES):
        assert delay_of(latencies, 1000) is None
        latencies.observe(1000, 5.0 if number == 0 else 0.5)
    delay = delay_of(latencies, 1000)
    assert delay is not None and 0.5 <= delay <= 0.6


def test_the_first_hedge_waits_for_twenty_requests_at_five_percent() -> None:
    ration = Ration(WINDOW_SECONDS)
    for _ in range(19):
        ration.note_request(0.0)
    assert not ration.take(0.0, 0.05)
    ration.note_request(0.0)
    assert ration.take(0.0, 0.05)
    assert not ration.take(0.0, 0.05)


@given(
    at_most=st.floats(0.001, 0.5),
    start=st.floats(0, 1e6),
    steps=st.lists(st.tuples(st.floats(0, 90), st.integers(0, 60), st.integers(0, 20)), max_size=50),
)
@settings(max_examples=200, deadline=None)
def test_hedges_stay_below_the_share_over_every_run_and_in_the_window_of_each(
    at_most: float, start: float, steps: list[tuple[float, int, int]]
) -> None:
    ration = Ration(WINDOW_SECONDS)
    now = start
    requests: list[float] = []
    hedges: list[float] = []
    for wait, asked, wanted in steps:
        now += wait
        for _ in range(asked):
            ration.note_request(now)
            requests.append(now)
        for _ in range(wanted):
            if ration.take(now, at_most):
                hedges.append(now)
                assert len(hedges) <= at_most * len(requests) + 1e-9
                lately = sum(at > now - WINDOW_SECONDS for at in hedges)
                assert lately <= at_most * sum(at > now - WINDOW_SECONDS - 1 for at in requests) + 1e-9


def test_a_steady_flow_gets_nearly_the_whole_share() -> None:
    ration = Ration(WINDOW_SECONDS)
    granted = 0
    for number in range(20_000):
        ration.note_request(number / 100)
        granted += ration.take(number / 100, 0.05)
    assert 0.045 * 20_000 <= granted <= 0.05 * 20_000


def test_the_wait_for_a_backup_stays_at_the_true_p95_although_the_slowest_are_never_seen_to_their_end() -> None:
    chance = random.Random(7)
    lesson = LearnedDeadline()
    true = sorted(chance.lognormvariate(0.0, 0.5) for _ in range(20_000))[19_000]
    hedged = 0
    for _ in range(20_000):
        takes, wait = chance.lognormvariate(0.0, 0.5), delay_of(lesson.latencies, 1000)
        if wait is not None and takes > wait + 0.1:
            hedged += 1
            lesson.beaten(1000, wait + 0.1)
        else:
            lesson.answered(1000, takes)
    wait = delay_of(lesson.latencies, 1000)
    assert wait is not None and 0.85 * true <= wait <= 1.3 * true
    assert hedged < 0.06 * 20_000
