"""The records: the table of states, and what a summary makes of an exchange."""

from itertools import product

import pytest

from relay.config.tree import Route, Target, Timeouts, Upstream
from relay.exchange import (
    BAD,
    GOOD,
    TRANSITIONS,
    Attempt,
    ClientRequest,
    Exchange,
    Operation,
    Outcome,
    State,
    Usage,
    summarize,
)

TARGET = Target(upstream=Upstream(name="mine", base_url="http://mine/v1"), model="m")
LEGAL = {
    (State.RECEIVED, State.TRYING),
    (State.RECEIVED, State.ENDED),
    (State.TRYING, State.COMMITTED),
    (State.TRYING, State.ENDED),
    (State.COMMITTED, State.ENDED),
}


def exchange(state: State = State.RECEIVED) -> Exchange:
    request = ClientRequest(
        id="1",
        method="POST",
        path="/v1/x",
        query=None,
        headers=(),
        operation=Operation.CHAT,
        received_at=10.0,
        client_ip="",
        is_stream=True,
    )
    return Exchange(request=request, state=state)


@pytest.mark.parametrize(("start", "end"), list(product(State, State)), ids=lambda state: state.value)
def test_only_the_steps_of_the_table_can_be_made(start: State, end: State) -> None:
    made = exchange(start)
    if (start, end) in LEGAL:
        made.move(end)
        assert made.state is end
    else:
        with pytest.raises(ValueError, match="no step from"):
            made.move(end)
        assert made.state is start


def test_every_state_is_in_the_table_and_leads_to_the_end() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(State.ENDED in TRANSITIONS[state] for state in State if state is not State.ENDED)


def test_no_outcome_is_good_and_bad() -> None:
    assert not GOOD & BAD
    assert {outcome.value for outcome in Outcome} >= {"complete", "client_gone", "upstream_cut"}


def test_an_exchange_that_never_got_anywhere() -> None:
    summary = summarize(exchange(), 12.5)
    assert (summary.outcome, summary.status, summary.duration_seconds) == (Outcome.INTERNAL_ERROR, 499, 2.5)
    assert (summary.route, summary.upstream, summary.attempts, summary.usage) == (None, None, (), None)
    assert summary.ttft_seconds is summary.inter_token_seconds is summary.overhead is None


def test_a_summary_is_about_the_last_attempt_and_the_client() -> None:
    made = exchange()
    first, last = Attempt(target=TARGET, started_at=10.25), Attempt(target=TARGET, started_at=11.0, sent_at=11.5)
    made.attempts += [first, last]
    made.route = Route(name="fast", targets=(TARGET,), timeouts=Timeouts())
    made.outcome, made.status, made.bytes_out = Outcome.COMPLETE, 200, 7
    made.first_content_written_at = 13.5
    first.meter.usage = Usage(input=100, output=100)
    meter = last.meter
    meter.first_content_at, meter.last_content_at, meter.content_events = 13.0, 15.0, 5
    meter.usage, meter.finish_reason = Usage(input=3, output=4), "stop"
    summary = summarize(made, 16.0)
    assert (summary.ttft_seconds, summary.inter_token_seconds) == (3.5, 0.5)
    assert summary.overhead is not None and summary.overhead.seconds == 0.25 + 0.5
    assert (summary.usage, summary.finish_reason) == (Usage(input=3, output=4), "stop")
    assert (summary.route, summary.upstream, summary.bytes_out, summary.is_stream) == ("fast", "mine", 7, True)
    assert summary.attempts == (first, last)


@pytest.mark.parametrize("events", [0, 1])
def test_there_is_no_gap_between_fewer_than_two_events(events: int) -> None:
    made = exchange()
    made.attempts.append(Attempt(target=TARGET, started_at=10.0))
    made.attempts[0].meter.content_events = events
    made.attempts[0].meter.first_content_at = 11.0
    assert summarize(made, 12.0).inter_token_seconds is None
