"""Admission against a limiter that is only a double: what is asked of it, what it is told in the end, what the caller is told."""

import json
from typing import Any

import pytest

from relay.config.tree import Budget, Key, Limits, Period, Price, Route, Target, Timeouts, Upstream
from relay.errors import ClientError
from relay.exchange import MAX_TOKENS, Attempt, AttemptResult, ClientRequest, Exchange, Operation, Outcome, Usage, UsageSource
from relay.gateway.admission import Admission, all_scopes, duration, scopes_of
from relay.policy.estimates import UNKNOWN_ANSWER
from relay.policy.limits import Demand, Grant, Limit, Refusal, Standing
from relay.policy.routing import Router
from relay.wire.body import parse_body

TARGET = Target(upstream=Upstream(name="mine", base_url="http://mine/v1"), model="m")
ROUTE = Route(name="fast", targets=(TARGET,), timeouts=Timeouts())
STAR = Route(name="*", targets=(Target(upstream=TARGET.upstream, model="*"),), timeouts=Timeouts())
TPM = Limits(tpm=10_000)
DOLLARS = Limits(budget=Budget(amount=10**12, is_money=True, period=Period.DAY))
PRICES = {"mine/m": Price(input=1.0, output=2.0, cached=1.0)}


class Limiter:
    """Grants everything, or refuses as told, and remembers."""

    def __init__(self) -> None:
        self.refusal: dict[str, Any] | None = None
        self.asked: list[Demand] = []
        self.ends: list[tuple[str, int, int]] = []
        self.debits: list[int] = []

    async def admit(self, demand: Demand) -> Grant | Refusal:
        self.asked.append(demand)
        if self.refusal is None:
            return Grant(demand)
        return Refusal(**{"scope": demand.scopes[0], "requests": None, "tokens": None, **self.refusal})

    def debit(self, grant: Grant, tokens: int) -> bool:
        self.debits.append(tokens)
        return tokens < 100

    def settle(self, grant: Grant, tokens: int, cost: int) -> None:
        self.ends.append(("settle", tokens, cost))

    def release(self, grant: Grant) -> None:
        self.ends.append(("release", 0, 0))

    def violations(self) -> list[str]:
        return []


def exchange(
    limits: Limits | None = TPM, *, route: Route = ROUTE, operation: Operation = Operation.CHAT, model: str = "fast", **body: Any
) -> Exchange:
    raw = json.dumps({"model": model, "messages": [], **body}).encode()
    request = ClientRequest(
        id="id",
        method="POST",
        path="/v1/x",
        query=None,
        headers=(),
        operation=operation,
        received_at=0.0,
        client_ip="127.0.0.1",
        body=parse_body(raw) if operation is not Operation.OTHER else None,
        model=model,
        key=Key(name="alice", limits=limits),
    )
    return Exchange(request=request, route=route)


class Bed:
    def __init__(self) -> None:
        self.limiter = Limiter()
        self.admission = Admission(self.limiter)

    async def run(self, made: Exchange, usage: Usage | None = None, *, outcome: Outcome | None = Outcome.COMPLETE, **marks: Any) -> None:
        """Admit, attempt once, settle."""
        assert made.route is not None
        plan = Router({made.route.name: made.route}, None).plan(made.request.model, made.request.key)
        ticket = await self.admission.admit(made, plan, PRICES)
        attempt = Attempt(target=made.route.targets[0], started_at=0.0, sent_at=marks.pop("sent_at", 1.0))
        attempt.result = marks.pop("result", None)
        attempt.meter.usage = usage
        for name, value in marks.items():
            setattr(attempt.meter, name, value)
        made.attempts.append(attempt)
        made.outcome = outcome
        self.admission.settle(made, ticket, PRICES)


@pytest.fixture
def bed() -> Bed:
    return Bed()


async def test_without_limits_nobody_is_asked(bed: Bed) -> None:
    made = exchange(None)
    await bed.run(made, Usage(input=5, output=6))
    assert (bed.limiter.asked, bed.limiter.ends, made.limit_headers) == ([], [], ())
    assert (made.usage, made.usage_source) == (Usage(input=5, output=6), UsageSource.REPORTED)


async def test_where_no_tokens_are_counted_none_are_estimated(bed: Bed) -> None:
    await bed.run(exchange(Limits(rpm=5), max_tokens=100), Usage(input=5, output=6))
    assert bed.limiter.asked[0].tokens == 0


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 70, "max_tokens": 100}, 100),
        ({"max_completion_tokens": 100, "max_tokens": 70}, 100),
        ({"max_output_tokens": 80}, 80),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_tokens": 999_999_999, "n": 999_999_999}, MAX_TOKENS),
        ({"n": 3}, 3 * UNKNOWN_ANSWER),
        ({"max_tokens": "many"}, UNKNOWN_ANSWER),
        ({"max_tokens": -5}, UNKNOWN_ANSWER),
        ({}, UNKNOWN_ANSWER),
    ],
)
async def test_the_answer_is_reserved_as_the_request_bounds_it(bed: Bed, body: dict[str, Any], answer: int) -> None:
    made = exchange(**body)
    await bed.run(made)
    assert made.request.body is not None
    assert bed.limiter.asked[0].tokens == -(-len(made.request.body.raw) // 4) + answer


async def test_a_guess_of_ours_never_makes_a_request_impossible_and_a_word_of_the_callers_does(bed: Bed) -> None:
    await bed.run(exchange(Limits(tpm=100)))
    await bed.run(exchange(Limits(tpm=100), max_tokens=500))
    assert bed.limiter.asked[0].tokens == 100
    assert bed.limiter.asked[1].tokens > 500


async def test_embeddings_have_no_answer_to_reserve(bed: Bed) -> None:
    made = exchange(operation=Operation.EMBEDDINGS, input="x" * 400)
    await bed.run(made, Usage(input=90, output=0))
    assert 100 < bed.limiter.asked[0].tokens < 130
    assert bed.limiter.ends == [("settle", 90, 0)]


async def test_the_estimate_follows_what_the_model_reports(bed: Bed) -> None:
    for _ in range(40):
        await bed.run(exchange(max_tokens=1, content="x" * 4000), Usage(input=1500, output=1))
    first, last = bed.limiter.asked[0].tokens, bed.limiter.asked[-1].tokens
    assert last == pytest.approx(1500, rel=0.05)
    assert first == pytest.approx(1012, rel=0.02)


async def test_unbounded_answers_are_reserved_as_long_as_those_before_were(bed: Bed) -> None:
    for _ in range(20):
        await bed.run(exchange(), Usage(input=20, output=64))
    assert bed.limiter.asked[-1].tokens < 20 + 64 + 20


async def test_several_answers_at_once_are_each_as_long_as_those_before_were(bed: Bed) -> None:
    for _ in range(20):
        await bed.run(exchange(n=4), Usage(input=20, output=4 * 64))
    await bed.run(exchange())
    assert 4 * 64 < bed.limiter.asked[-2].tokens < 4 * (64 + 20) + 20
    assert bed.limiter.asked[-1].tokens < 20 + 64 + 20


@pytest.mark.parametrize(
    ("usage", "marks", "ends", "source"),
    [
        (Usage(input=10, output=20), {}, ("settle", 30, 0), UsageSource.REPORTED),
        (Usage(input=0, output=0), {"content_events": 5}, ("settle", 0, 0), UsageSource.REPORTED),
        (None, {"content_events": 5}, ("settle", 14, 0), UsageSource.ESTIMATED),
        (None, {"bytes_in": 400}, ("settle", 109, 0), UsageSource.ESTIMATED),
        (None, {"bytes_in": 400, "outcome": Outcome.UPSTREAM_FAILED}, ("settle", 0, 0), None),
        (None, {"content_events": 2, "outcome": Outcome.CLIENT_GONE}, ("settle", 11, 0), UsageSource.ESTIMATED),
        (None, {"result": AttemptResult.CANCELLED, "outcome": None}, ("settle", 9, 0), UsageSource.ESTIMATED),
        (None, {"sent_at": None, "outcome": Outcome.UPSTREAM_FAILED}, ("release", 0, 0), None),
        (None, {"sent_at": None, "result": AttemptResult.CANCELLED, "outcome": None}, ("release", 0, 0), None),
    ],
    ids=["reported", "zero", "stream", "json", "failed", "left", "left early", "unsent", "left before it was sent"],
)
async def test_what_is_settled(
    bed: Bed, usage: Usage | None, marks: dict[str, Any], ends: tuple[str, int, int], source: UsageSource | None
) -> None:
    made = exchange()
    assert made.request.body is not None
    assert len(made.request.body.raw) == 33
    await bed.run(made, usage, **marks)
    assert bed.limiter.ends == [ends]
    assert made.usage_source is source
    assert made.debit is None


async def test_money_is_reserved_and_settled_by_the_price_of_the_model(bed: Bed) -> None:
    await bed.run(exchange(DOLLARS, max_tokens=100), Usage(input=10, output=20, cached=5))
    demand = bed.limiter.asked[0]
    assert demand.cost == 1000 * (demand.tokens - 100) + 2000 * 100
    assert bed.limiter.ends == [("settle", 30, 10_000 + 40_000)]


async def test_money_is_reserved_for_the_dearest_target_that_may_answer(bed: Bed) -> None:
    dear = Target(upstream=Upstream(name="dear", base_url="http://dear/v1"), model="m")
    route = Route(name="fast", targets=(TARGET,), fallbacks=(dear,), timeouts=Timeouts())
    plan = Router({"fast": route}, None).plan("fast", None)
    prices = {**PRICES, "dear/m": Price(input=10.0, output=20.0, cached=10.0)}
    await bed.admission.admit(exchange(DOLLARS, max_tokens=100), plan, prices)
    demand = bed.limiter.asked[0]
    assert demand.cost == 10_000 * (demand.tokens - 100) + 20_000 * 100
    with pytest.raises(ClientError, match="budget_exhausted"):
        await bed.admission.admit(exchange(DOLLARS, max_tokens=100), plan, PRICES)


@pytest.mark.parametrize("operation", [Operation.CHAT, Operation.OTHER])
async def test_a_budget_in_money_admits_no_model_without_a_price(bed: Bed, operation: Operation) -> None:
    with pytest.raises(ClientError) as raised:
        await bed.run(exchange(DOLLARS, route=STAR, model="unheard-of", operation=operation))
    assert (raised.value.code, raised.value.headers) == ("budget_exhausted", {"x-should-retry": "false"})
    await bed.run(exchange(DOLLARS, route=STAR, model="m"), Usage(input=1, output=0))
    assert bed.limiter.ends == [("settle", 1, 1000)], "the model that the caller named has the price"


@pytest.mark.parametrize(
    ("wait", "headers"),
    [
        (1, {"retry-after": "1", "retry-after-ms": "1", "x-should-retry": "true"}),
        (0, {"retry-after": "1", "retry-after-ms": "1", "x-should-retry": "true"}),
        (59_001, {"retry-after": "60", "retry-after-ms": "59001", "x-should-retry": "true"}),
        (60_001, {"retry-after": "61", "retry-after-ms": "60001", "x-should-retry": "false"}),
        (None, {"x-should-retry": "false"}),
    ],
)
async def test_what_a_refused_caller_is_told(bed: Bed, wait: int | None, headers: dict[str, str]) -> None:
    bed.limiter.refusal = {"limit": Limit.TPM, "wait_ms": wait, "tokens": Standing(100, 7, 1200)}
    made = exchange()
    with pytest.raises(ClientError) as raised:
        await bed.run(made)
    assert (raised.value.code, raised.value.headers) == ("rate_limit_tpm", headers)
    assert made.refused_by == "tpm"
    assert dict(made.limit_headers) == {
        b"x-ratelimit-limit-tokens": b"100",
        b"x-ratelimit-remaining-tokens": b"7",
        b"x-ratelimit-reset-tokens": b"1.2s",
    }


async def test_tokens_can_be_debited_while_they_flow(bed: Bed) -> None:
    made = exchange()
    plan = Router({"fast": ROUTE}, None).plan("fast", made.request.key)
    await bed.admission.admit(made, plan, PRICES)
    assert made.debit is not None
    assert (made.debit(10), made.debit(100)) == (True, False)
    prompt = bed.limiter.asked[0].tokens - UNKNOWN_ANSWER
    assert bed.limiter.debits == [prompt + 10, prompt + 100]


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, b"0ms"),
        (20, b"20ms"),
        (1000, b"1s"),
        (1200, b"1.2s"),
        (59_999, b"59.999s"),
        (60_000, b"1m0s"),
        (90_500, b"1m30.5s"),
        (600_000, b"10m0s"),
    ],
)
def test_durations_are_written_as_go_writes_them(milliseconds: int, text: bytes) -> None:
    assert duration(milliseconds) == text


def test_all_scopes_are_those_of_any_key_on_any_route() -> None:
    routes = [Route(name=name, targets=(TARGET,), timeouts=Timeouts(), limits=limits) for name, limits in (("a", TPM), ("b", None))]
    keys = [
        Key(name="plain"),
        Key(name="limited", limits=TPM),
        Key(name="both", limits=TPM, route_limits={"a": DOLLARS, "b": TPM}),
    ]
    found = {scope.name: scope.limits for scope in all_scopes(keys, routes)}
    assert found == {scope.name: scope.limits for key in (None, *keys) for route in routes for scope in scopes_of(key, route)}


async def test_of_attempts_that_were_beaten_the_prompt_is_settled_and_what_had_come_of_a_whole_answer(bed: Bed) -> None:
    both = Limits(tpm=10_000, budget=DOLLARS.budget)
    ex = exchange(both, max_tokens=10)
    plan = Router({ROUTE.name: ROUTE}, None).plan(ex.request.model, ex.request.key)
    ticket = await bed.admission.admit(ex, plan, PRICES)
    prompt = bed.limiter.asked[0].tokens - 10
    beaten, unsent, won = (Attempt(target=TARGET, started_at=0.0, sent_at=sent_at) for sent_at in (1.0, None, 1.0))
    beaten.is_beaten = unsent.is_beaten = True
    won.meter.usage = Usage(input=20, output=5)
    ex.attempts = [beaten, unsent, won]
    ex.outcome = Outcome.COMPLETE
    bed.admission.settle(ex, ticket, PRICES)
    assert (beaten.lost, unsent.lost, won.lost) == (Usage(input=prompt, output=0), None, None)
    assert beaten.lost_cost == prompt * 1000
    assert bed.limiter.ends == [("settle", 25 + prompt, ex.cost + prompt * 1000)]
    assert ex.usage == Usage(input=20, output=5), "what is told of the answer is the answer's"
