from relay.config.tree import Target, Timeouts, Upstream
from relay.errors import Phase
from relay.exchange import Attempt, ClientRequest, Exchange, Framing, Operation, ResponseHead, StreamMeter
from relay.policy.bounds import between_tokens_seconds, next_bound

TIMEOUTS = Timeouts(first_token=50.0, between_tokens=20.0, total=1000.0)
REQUEST = ClientRequest(
    id="1", method="POST", path="/", query=None, headers=(), operation=Operation.CHAT, received_at=0.0, client_ip="", is_stream=True
)
HEAD = ResponseHead(
    status=200,
    headers=(),
    framing=Framing.CHUNKED,
    content_length=None,
    content_type=b"text/event-stream",
    is_encoded=False,
    received_at=2.0,
)


def attempt(**marks: float) -> Attempt:
    target = Target(upstream=Upstream(name="a", base_url="http://a"), model="m")
    return Attempt(target=target, started_at=0.0, sent_at=1.0, head=HEAD, meter=StreamMeter(bytes_in=10, last_byte_at=30.0, **marks))


def bound(of: Attempt, *, is_begun: bool, deadline_at: float = 1e9) -> tuple[Phase, float]:
    return next_bound(Exchange(request=REQUEST), of, TIMEOUTS, 30.0, is_begun=is_begun, is_holding=True, deadline_at=deadline_at)


def test_silence_may_last_twice_as_long_while_only_reasoning_came() -> None:
    assert bound(attempt(), is_begun=True) == (Phase.BETWEEN_TOKENS, 50.0)
    assert bound(attempt(first_content_at=3.0, first_reasoning_at=3.0), is_begun=True) == (Phase.BETWEEN_TOKENS, 70.0)
    assert bound(attempt(first_content_at=3.0, first_reasoning_at=3.0, first_text_at=9.0), is_begun=True) == (Phase.BETWEEN_TOKENS, 50.0)
    assert between_tokens_seconds(TIMEOUTS, StreamMeter(first_text_at=1.0)) == 20.0


def test_until_an_attempts_own_answer_has_begun_its_first_event_is_awaited_and_the_caller_is_impatient() -> None:
    assert bound(attempt(), is_begun=False) == (Phase.FIRST_EVENT, 51.0)
    assert bound(attempt(), is_begun=False, deadline_at=40.0) == (Phase.CALLER, 40.0)
    assert bound(attempt(), is_begun=True, deadline_at=40.0) == (Phase.BETWEEN_TOKENS, 50.0)
