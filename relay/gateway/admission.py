"""Whether a request may be served now: what it will use is estimated and reserved, and settled when it is known.

Requests for which no limit is configured pass without a look at their size. One that no attempt was sent for gives its place back.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil
from typing import Final

import msgspec

from relay.config.tree import Key, Limits, OnLimit, Price, Route
from relay.errors import ClientError
from relay.exchange import (
    JSON_OPERATIONS,
    MAX_TOKENS,
    Attempt,
    AttemptResult,
    ClientRequest,
    Exchange,
    Operation,
    Outcome,
    Usage,
    UsageSource,
)
from relay.forward.ports import Limiter
from relay.policy.estimates import Answers, Ratios, cost_of, estimate_of, price_of, said_answer
from relay.policy.limits import Demand, Grant, Limit, Refusal, Scope, Standing
from relay.policy.patience import MAX_ADVISED_SECONDS
from relay.policy.routing import RoutePlan, resolve

MAX_KNOWN: Final = 4_096
"""Pairs of key and route whose scopes are kept ready."""

_CODES: Final[Mapping[Limit, str]] = {
    Limit.RPM: "rate_limit_rpm",
    Limit.TPM: "rate_limit_tpm",
    Limit.CONCURRENCY: "concurrency_limited",
    Limit.BUDGET: "budget_exhausted",
}
_TELLS_WHEN_ASKED: Final = frozenset({Operation.CHAT, Operation.COMPLETIONS})
_NEVER: Final = "This request asks for more than the limit allows at all: shorten it, or ask for a shorter answer (`max_tokens`)."
_UNPRICED: Final = "This key has a budget in US dollars, and the relay knows no price for a model that may answer this."


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """The scopes of one key on one route."""

    key: Key | None
    route: Route
    scopes: tuple[Scope, ...]
    counts_tokens: bool
    counts_money: bool
    most_tokens: int | None
    """The least of the limits of tokens: more can never be reserved."""


@dataclass(slots=True, kw_only=True)
class Ticket:
    """What an admitted request was granted."""

    grant: Grant
    allowance: Allowance


class Admission:
    """Admits requests, and settles them."""

    __slots__ = ("_answers", "_known", "_limiter", "_ratios")

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._ratios = Ratios()
        self._answers = Answers()
        self._known: dict[tuple[str | None, str], Allowance] = {}

    async def admit(self, exchange: Exchange, plan: RoutePlan, prices: Mapping[str, Price]) -> Ticket | None:
        """Reserve what the request will use; None when nothing limits it.

        Raises ClientError: rate_limit_rpm, rate_limit_tpm, concurrency_limited, budget_exhausted.
        """
        key, route = exchange.request.key, plan.route
        exchange.adds_usage = route.always_asks_usage and _can_add_usage(exchange.request)
        if route.limits is None and (key is None or (key.limits is None and not key.route_limits)):
            return None
        allowance = self._allowance(key, route)
        if not allowance.scopes:
            return None
        demand, prompt = self._demand(exchange, plan, allowance, prices)
        answer = await self._limiter.admit(demand)
        exchange.limit_headers = _standing_headers(answer.requests, answer.tokens)
        if isinstance(answer, Refusal):
            exchange.refused_by = answer.scope.prefix + answer.limit.value
            raise _refusal(answer)
        if allowance.counts_tokens:
            exchange.adds_usage = _can_add_usage(exchange.request)
            exchange.debit = partial(self._debit, answer, prompt)
            if answer.demand.tokens < demand.tokens and exchange.request.body is not None:
                exchange.answer_bound = (answer.demand.tokens - prompt) // exchange.request.body.answers
                exchange.is_rewritten = "clamp"
        return Ticket(grant=answer, allowance=allowance)

    def settle(self, exchange: Exchange, ticket: Ticket | None, prices: Mapping[str, Price]) -> list[str]:
        """Take note of what was used, at the end of the upstream's part; return the accounting identities that do not hold."""
        exchange.debit = None
        self._note_usage(exchange)
        if prices and exchange.usage is not None:
            exchange.cost = cost_of(price_of(prices, "/".join(_served_by(exchange))), exchange.usage)
        lost = self._note_lost(exchange, prices) if len(exchange.attempts) > 1 else 0
        if ticket is None:
            return []
        if not any(attempt.sent_at is not None for attempt in exchange.attempts):
            self._limiter.release(ticket.grant)
            return self._limiter.violations()
        usage = exchange.usage
        tokens = cost = 0
        if usage is not None and ticket.allowance.counts_tokens:
            self._learn(exchange, ticket, usage)
            tokens = usage.input + usage.output
            if ticket.allowance.counts_money:
                cost = exchange.cost
        if lost and ticket.allowance.counts_tokens:
            tokens += lost
            if ticket.allowance.counts_money:
                cost += sum(attempt.lost_cost for attempt in exchange.attempts)
        self._limiter.settle(ticket.grant, tokens, cost)
        return self._limiter.violations()

    # Before

    def _allowance(self, key: Key | None, route: Route) -> Allowance:
        name = (None if key is None else key.name, route.name)
        known = self._known.get(name)
        if known is not None and known.key is key and known.route is route:
            return known
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        made = self._known[name] = _allowance_of(key, route)
        return made

    def _demand(self, exchange: Exchange, plan: RoutePlan, allowance: Allowance, prices: Mapping[str, Price]) -> tuple[Demand, int]:
        """Return what to ask for, and the tokens of the prompt as this model's reports would have it."""
        request = exchange.request
        choice = plan.left[0]
        upstream, model = choice.target.upstream.name, choice.model or ""
        price = _dearest(plan, prices) if allowance.counts_money else None
        if not allowance.counts_tokens or request.operation not in JSON_OPERATIONS or request.body is None:
            return Demand(scopes=allowance.scopes, tokens=0), 0
        prompt = self._ratios.correct(upstream, model, estimate_of(exchange))
        answer = said_answer(request)
        if answer is None and plan.route.on_limit is OnLimit.STOP and request.is_stream:
            # It is counted as it flows, and stops in time.
            answer = 0
        if answer is None:
            answer = min(self._answers.expect(plan.route.name) * request.body.answers, MAX_TOKENS)
            if allowance.most_tokens is not None:
                # A guess of ours must not be what makes a request impossible.
                answer = max(0, min(answer, allowance.most_tokens - prompt))
        cost = cost_of(price, Usage(input=prompt, output=answer)) if price is not None else 0
        answer_cost = ceil(1000 * price.output) if price is not None else 0
        least = prompt + request.body.answers if answer and plan.route.on_limit is OnLimit.CLAMP else 0
        demand = Demand(scopes=allowance.scopes, tokens=prompt + answer, cost=cost, least=least, answer_cost=answer_cost)
        return demand, prompt

    def _debit(self, grant: Grant, prompt: int, answer: int) -> bool:
        return self._limiter.debit(grant, prompt + answer)

    # After

    def _note_usage(self, exchange: Exchange) -> None:
        """Say what was used, and how that is known: reported, or guessed where an answer came without a report."""
        last = exchange.attempts[-1] if exchange.attempts else None
        if last is None:
            return
        meter = last.meter
        if meter.usage is not None:
            exchange.usage = meter.usage
            exchange.usage_source = UsageSource.DRAINED if exchange.is_drained else UsageSource.REPORTED
            return
        body = exchange.request.body
        is_answered = meter.content_events > 0 or (exchange.outcome is Outcome.COMPLETE and meter.bytes_in > 0)
        # The upstream bills the prompt of a caller who has left before the answer: leaving is no way around a budget.
        is_left = last.result is AttemptResult.CANCELLED and last.sent_at is not None
        if body is None or not (is_answered or is_left):
            return
        upstream, model = _served_by(exchange)
        output = meter.flowed_tokens or meter.content_events or (0 if said_answer(exchange.request) == 0 else _tokens_of_json(last))
        exchange.usage = Usage(input=self._ratios.correct(upstream, model, estimate_of(exchange)), output=output)
        exchange.usage_source = UsageSource.ESTIMATED

    def _note_lost(self, exchange: Exchange, prices: Mapping[str, Price]) -> int:
        """Say what attempts used that another one beat: nobody reports it, and it may be billed; return the tokens of all.

        They had read the prompt. A stream that had brought content would have won, so of its answer nothing had come; of a whole
        answer what had come counts. What was made and never sent, only that upstream knows.
        """
        total = 0
        body = exchange.request.body
        for attempt in exchange.attempts:
            if not attempt.is_beaten or attempt.sent_at is None or body is None:
                continue
            upstream, model = _called(exchange, attempt)
            is_whole = attempt.head is not None and not attempt.head.is_event_stream
            output = _tokens_of_json(attempt) if is_whole else attempt.meter.content_events
            attempt.lost = Usage(input=self._ratios.correct(upstream, model, estimate_of(exchange)), output=output)
            attempt.lost_cost = cost_of(price_of(prices, f"{upstream}/{model}"), attempt.lost) if prices else 0
            total += attempt.lost.input + output
        return total

    def _learn(self, exchange: Exchange, ticket: Ticket, usage: Usage) -> None:
        if exchange.usage_source is UsageSource.ESTIMATED:
            return
        upstream, model = _served_by(exchange)
        self._ratios.learn(upstream, model, estimated=estimate_of(exchange), reported=usage.input)
        if exchange.outcome is Outcome.COMPLETE and usage.output:
            answers = 1 if exchange.request.body is None else exchange.request.body.answers
            self._answers.learn(ticket.allowance.route.name, -(-usage.output // answers))


def scopes_of(key: Key | None, route: Route) -> tuple[Scope, ...]:
    """Return the scopes that hold for `key` on `route`, those with limits only."""
    scopes = []
    if key is not None:
        if key.limits is not None:
            scopes.append(Scope(limits=key.limits, key=key.name))
        if route.name in key.route_limits:
            scopes.append(Scope(limits=key.route_limits[route.name], key=key.name, route=route.name))
    if route.limits is not None:
        scopes.append(Scope(limits=route.limits, route=route.name))
    return tuple(scopes)


def all_scopes(keys: Iterable[Key], routes: Iterable[Route]) -> Iterator[Scope]:
    """Yield every scope with limits. Takes as long as keys and routes add up to: there may be ten thousand of them, and hundreds."""
    for key in keys:
        if key.limits is not None:
            yield Scope(limits=key.limits, key=key.name)
        for name, limits in key.route_limits.items():
            yield Scope(limits=limits, key=key.name, route=name)
    for route in routes:
        if route.limits is not None:
            yield Scope(limits=route.limits, route=route.name)


def _dearest(plan: RoutePlan, prices: Mapping[str, Price]) -> Price:
    """Return the highest price of those that may serve the request: a fallback must not cost what was not reserved, or nothing at all."""
    found = [price_of(prices, f"{choice.target.upstream.name}/{choice.model or ''}") for choice in plan.left]
    known = [price for price in found if price is not None]
    if len(known) < len(found):
        raise ClientError("budget_exhausted", message=_UNPRICED, headers={"x-should-retry": "false"})
    return max(known, key=lambda price: (price.output, price.input))


def _allowance_of(key: Key | None, route: Route) -> Allowance:
    scopes = scopes_of(key, route)
    limits = [scope.limits for scope in scopes]
    bounds = [bound for each in limits for bound in _token_bounds(each)]
    return Allowance(
        key=key,
        route=route,
        scopes=scopes,
        counts_tokens=any(each.tpm is not None or each.budget is not None for each in limits),
        counts_money=any(each.budget is not None and each.budget.is_money for each in limits),
        most_tokens=min(bounds, default=None),
    )


def _token_bounds(limits: Limits) -> list[int]:
    bounds = [] if limits.tpm is None else [limits.tpm]
    if limits.budget is not None and not limits.budget.is_money:
        bounds.append(limits.budget.amount)
    return bounds


def _can_add_usage(request: ClientRequest) -> bool:
    """Tell whether the answer is a stream that says what it used only when asked to, and nobody asked."""
    body = request.body
    return body is not None and body.stream and not body.include_usage and request.operation in _TELLS_WHEN_ASKED


def _served_by(exchange: Exchange) -> tuple[str, str]:
    """Return the upstream and the model's name there of the last attempt."""
    return _called(exchange, exchange.attempts[-1])


def _called(exchange: Exchange, attempt: Attempt) -> tuple[str, str]:
    target = attempt.target
    model = target.model or ""
    if model.endswith("*") and exchange.route is not None:
        model = resolve(exchange.route, target, exchange.request.model).model or ""
    return target.upstream.name, model


def _tokens_of_json(attempt: Attempt) -> int:
    """Guess the tokens of a whole answer that reports none."""
    return ceil(attempt.meter.bytes_in / 4)


def _refusal(refusal: Refusal) -> ClientError:
    wait = refusal.wait_ms
    if wait is None:
        return ClientError(_CODES[refusal.limit], message=_NEVER, headers={"x-should-retry": "false"})
    milliseconds = max(1, wait)
    headers = {
        "retry-after": str(-(-milliseconds // 1000)),
        "retry-after-ms": str(milliseconds),
        # SDKs sleep through longer waits, or ignore them and ask at once.
        "x-should-retry": "true" if milliseconds <= MAX_ADVISED_SECONDS * 1000 else "false",
    }
    return ClientError(_CODES[refusal.limit], headers=headers)


def _standing_headers(requests: Standing | None, tokens: Standing | None) -> tuple[tuple[bytes, bytes], ...]:
    """Say how the caller's limits stand, in the words of OpenAI's API: `x-ratelimit-reset-*` is a duration such as 1.2s or 6m0s."""
    lines: tuple[tuple[bytes, bytes], ...] = ()
    if requests is not None:
        lines = (
            (b"x-ratelimit-limit-requests", b"%d" % requests.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % requests.remaining),
            (b"x-ratelimit-reset-requests", duration(requests.reset_ms)),
        )
    if tokens is not None:
        lines += (
            (b"x-ratelimit-limit-tokens", b"%d" % tokens.limit),
            (b"x-ratelimit-remaining-tokens", b"%d" % tokens.remaining),
            (b"x-ratelimit-reset-tokens", duration(tokens.reset_ms)),
        )
    return lines


@lru_cache(64)  # right after an admission it is always the whole minute
def duration(milliseconds: int) -> bytes:
    """Write a duration as Go does, which is what OpenAI sends: 20ms, 1.2s, 6m0s."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = (b"%d.%03d" % divmod(rest, 1000)).rstrip(b"0").rstrip(b".")
    return b"%dm%bs" % (minutes, seconds) if minutes else seconds + b"s"
