import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.exchange import ClientRequest, Operation
from relay.policy.retries import MINIMUM, SHARE, WINDOW_SECONDS, is_repeatable, needs_budget, retry_budget
from tests.policy.asking import ask, body


def test_three_retries_are_free_and_the_fourth_needs_traffic() -> None:
    budget = retry_budget()
    assert [budget.take(0.0, SHARE) for _ in range(5)] == [True, True, True, False, False]
    for _ in range(40):
        budget.note_request(1.0)
    assert [budget.take(1.0, SHARE) for _ in range(3)] == [True, False, False]


def test_a_spent_budget_is_whole_again_after_the_window() -> None:
    budget = retry_budget()
    while budget.take(0.0, SHARE):
        pass
    assert not budget.take(10.0, SHARE)
    assert budget.take(11.0, SHARE)


@given(steps=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 30), st.integers(0, 10)), max_size=60), start=st.floats(0, 1e6))
@settings(max_examples=150, deadline=None)
def test_no_ten_seconds_hold_more_retries_than_the_share_or_the_minimum(steps: list[tuple[float, int, int]], start: float) -> None:
    budget = retry_budget()
    now = start
    requests: list[float] = []
    retries: list[float] = []
    for wait, asked, wanted in steps:
        now += wait
        for _ in range(asked):
            budget.note_request(now)
            requests.append(now)
        for _ in range(wanted):
            if budget.take(now, SHARE):
                retries.append(now)
                lately = sum(at > now - WINDOW_SECONDS for at in retries)
                asked_lately = sum(at > now - WINDOW_SECONDS - 1 for at in requests)
                assert lately <= max(MINIMUM, SHARE * asked_lately)


def test_two_hundred_requests_a_second_that_all_want_a_retry_get_a_tenth() -> None:
    budget = retry_budget()
    granted = 0
    for number in range(200 * 60):
        now = number / 200
        budget.note_request(now)
        granted += budget.take(now, SHARE)
    assert granted <= SHARE * 200 * 60 + MINIMUM
    assert granted >= 0.9 * SHARE * 200 * 60


@pytest.mark.parametrize(("sent", "is_needed"), [(0, False), (1, False), (2, True)])
def test_the_first_fallback_is_free(sent: int, is_needed: bool) -> None:
    assert needs_budget(sent) is is_needed


@pytest.mark.parametrize(
    ("request_", "is_safe"),
    [
        (ask(json=body()), True),
        (ask(json=body(), operation=Operation.COMPLETIONS), True),
        (ask(json=body(), operation=Operation.EMBEDDINGS), True),
        (ask(json=body(), operation=Operation.RESPONSES), True),
        (ask(json=body(store=True)), False),
        (ask(json=body(background=True), operation=Operation.RESPONSES), False),
        (ask(), False),
        (ask(opaque=b"{}", operation=Operation.OTHER), False),
        (ask(operation=Operation.OTHER), False),
        (ask(method="DELETE", operation=Operation.OTHER), False),
        (ask(method="GET", operation=Operation.OTHER), True),
        (ask(method="HEAD", operation=Operation.MODELS), True),
        (ask(method="GET", operation=Operation.REALTIME), False),
    ],
    ids=[
        *("chat", "completions", "embeddings", "responses", "stored", "background", "body not at hand", "batch", "upload"),
        *("delete", "read", "head", "realtime"),
    ],
)
def test_only_reads_and_plain_generations_are_repeated(request_: ClientRequest, is_safe: bool) -> None:
    assert is_repeatable(request_) is is_safe
