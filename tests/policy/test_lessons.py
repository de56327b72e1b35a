"""What attempts teach, and of which prompts: sizes are tokens as guessed, whatever bytes they came in."""

import pytest

from relay.config.tree import Config, Route, Target, Timeouts, Upstream
from relay.exchange import Attempt, Exchange
from relay.policy import estimates
from relay.policy.deadlines import MIN_SAMPLES
from relay.policy.lessons import bounded, learn
from relay.policy.targets import Targets
from tests.policy.asking import ask, body

TARGET = Target(upstream=Upstream(name="u", base_url="http://x"), model="m")
TIMEOUTS = Timeouts(first_token=120.0, first_token_auto=True)
ROUTE = Route(name="r", targets=(TARGET,), timeouts=TIMEOUTS)


def exchange_with(prompt: str, *, stream: bool = True) -> Exchange:
    return Exchange(request=ask(json=body(b'{"messages":[{"role":"user","content":"%s"}]}' % prompt.encode(), stream=stream)))


def picture(size: int) -> str:
    return "what is this? data:image/png;base64," + "A" * size


@pytest.fixture
def targets() -> Targets:
    targets = Targets()
    targets.know(Config(upstreams={"u": TARGET.upstream}, routes={"r": ROUTE}))
    for _ in range(MIN_SAMPLES):
        attempt = Attempt(target=TARGET, started_at=0.0)
        attempt.sent_at = 10.0
        attempt.meter.first_content_at = 12.0
        learn(targets, attempt, exchange_with(picture(100_000)), None)
    return targets


def bound(targets: Targets, exchange: Exchange) -> float:
    return bounded(targets, TARGET, TIMEOUTS, exchange, is_last=False).first_token


def test_a_large_picture_is_no_longer_a_prompt_than_a_small_one(targets: Targets) -> None:
    assert bound(targets, exchange_with(picture(4_000_000))) == bound(targets, exchange_with(picture(1000))) < 12.0


def test_a_long_text_is_not_judged_by_pictures_of_as_many_bytes(targets: Targets) -> None:
    assert bound(targets, exchange_with("long " * 20_000)) == TIMEOUTS.first_token


def test_whole_answers_are_not_judged_by_streams(targets: Targets) -> None:
    assert bound(targets, exchange_with(picture(1000), stream=False)) == TIMEOUTS.first_token


def test_a_prompt_is_looked_through_once(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = exchange_with(picture(1000))
    first = bound(targets, exchange)
    monkeypatch.delattr(estimates, "prompt_tokens")
    assert bound(targets, exchange) == first
