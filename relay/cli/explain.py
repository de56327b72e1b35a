"""What would become of a request, told from the configuration alone: which route, which targets, in which order, by which rules.

Nothing is called and nothing is learned here: what depends on the upstreams' health or on what was measured is told as a rule.
The rules are read off the tables that decide (routes, refusals, repeats), so that what is told is what is done.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from relay.config.tree import AffinityKind, Config, FallbackCause, Key, Kind, Limits, Route, Strategy, Target
from relay.errors import ClientError, error_answer
from relay.exchange import ClientRequest, JsonBody, Operation
from relay.policy.backoff import CAP_SECONDS
from relay.policy.refusals import CONSEQUENCES, Fallback
from relay.policy.retries import MAX_ATTEMPTS, MAX_TRIES, is_repeatable
from relay.policy.routing import Router, may_use
from relay.wire.body import parse_body

_STRATEGIES: Final[Mapping[Strategy, str]] = {
    Strategy.ORDERED: "tried in order",
    Strategy.WEIGHTED: "one is chosen by weight, then the others",
    Strategy.LEAST_BUSY: "the one with the fewest requests for its weight, then the others",
    Strategy.FASTEST: "the one whose first token came soonest of late, then the others; a few requests explore",
}
_FAILURES: Final = ("no connection", "no content in time", "an unusable answer", "an error as the first event by what it says")
"""What always lets another target be tried, besides refusals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One target that may be tried. Durations are seconds."""

    target: str
    """upstream/model, the model as it is sent."""
    address: str
    is_fallback: bool
    share: float | None
    """Part of the requests that begin here, where weights decide."""
    connect: float
    first_token: float
    first_token_auto: bool
    between_tokens: float
    concurrency: int | None = None
    """Calls at once that its upstream is given."""
    queue: int | None = None
    """Requests that may wait for a turn there; None where nothing is bounded."""
    queue_wait: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that can be said without a network. Where `refusal` is set, the caller gets that error and nothing is tried."""

    model: str | None
    refusal: str | None = None
    """The code of the error."""
    reason: str
    """Why this route, or why none."""
    route: str | None = None
    order: str = ""
    steps: tuple[Step, ...] = ()
    total: float | None = None
    write: float | None = None
    repeatable: bool | None = None
    """Whether the request may be sent twice; None when no request was given."""
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return what json.dumps takes."""
        return asdict(self)

    def text(self) -> str:
        """Return lines for a person."""
        head = f"{self.model or '(no model)'} -> " + (f"error {self.refusal}" if self.refusal else f"route {self.route}")
        lines = [f"{head}: {self.reason}"]
        numbered = list(enumerate(self.steps, 1))
        for is_fallback, title in ((False, self.order), (True, "when those have failed, in order")):
            shown = [line for number, step in numbered if step.is_fallback is is_fallback for line in _step_lines(number, step)]
            lines += [f"  {title}:", *shown] if shown else []
        if self.total is not None and self.write is not None:
            lines.append(
                f"  whole exchange: total {_duration(self.total)}, a client that reads nothing is cut after {_duration(self.write)}"
            )
        lines += [f"  {line}" for line in self.rules]
        lines += [f"  note: {line}" for line in self.notes]
        return "\n".join(lines)


def explain(config: Config, model: str | None, key_name: str | None, request: bytes | None, *, unix_time: float) -> Explanation:
    """Tell what would become of a request for `model` (None: the one that `request`, a JSON body, names) by the key `key_name`.

    Raises LookupError when there is no such key.
    """
    key = None if key_name is None else _key(config, key_name)
    try:
        if key is not None and not _is_valid(key, unix_time):
            raise ClientError("invalid_api_key", message=f"The key {key.name} is disabled or has expired.")
        body = None if request is None else parse_body(request)
        asked = model if model is not None or body is None else body.model
        name = config.default_model if asked is None else asked
        route = Router(config.routes, config.default_model).plan(asked, None).route
        if not may_use(key, route):
            raise ClientError("route_not_allowed", message=f"The key {key_name} may not use the route {route.name}.")
    except ClientError as error:
        asked_for = config.default_model if model is None else model
        return Explanation(model=asked_for, refusal=error.code, reason=error_answer(error).message)
    repeatable = None if body is None else is_repeatable(_request(body, key))
    return Explanation(
        model=name,
        route=route.name,
        reason=_reason(config, name, route, is_default=asked is None),
        order=_order(route),
        steps=tuple(_steps(route, name)),
        total=route.timeouts.total,
        write=route.timeouts.write,
        repeatable=repeatable,
        rules=tuple(_rules(route, name, repeatable)),
        notes=(*_key_notes(config, route, key, unix_time), *_limit_notes(route, key), *_notes(route, model, body)),
    )


def _key(config: Config, name: str) -> Key:
    for key in config.keys.values():
        if key.name == name:
            return key
    names = config.key_names
    raise LookupError(f"no key named {name!r}; there are {', '.join(names)}" if names else "the configuration has no keys")


def _is_valid(key: Key, unix_time: float) -> bool:
    return key.is_enabled and (key.expires_at is None or key.expires_at > unix_time)


def _request(body: JsonBody, key: Key | None) -> ClientRequest:
    return ClientRequest(
        id="",
        method="POST",
        path="/v1/chat/completions",
        query=None,
        headers=(),
        operation=Operation.CHAT,
        received_at=0.0,
        client_ip="",
        body=body,
        model=body.model,
        key=key,
        is_stream=body.stream,
    )


def _reason(config: Config, name: str | None, route: Route, *, is_default: bool) -> str:
    if name is None:
        return "requests that name no model go to the catch-all"
    matching = [other.name for other in config.routes.values() if other.is_wildcard and name.startswith(other.name[:-1])]
    others = ", ".join(sorted(other for other in matching if other != route.name))
    if not route.is_wildcard:
        why = "the name is its own" + (f", which goes before {others}" if others else "")
    elif route.name == "*":
        why = "no other route matches"
    else:
        why = "the longest pattern that matches" + (f", before {others}" if others else "")
    return f"{why} (the default model, for the request names none)" if is_default else why


def _order(route: Route) -> str:
    if len(route.targets) == 1:
        return "the only target" if not route.fallbacks else "first"
    if route.affinity.kind is AffinityKind.NONE:
        return _STRATEGIES[route.strategy]
    return f"a conversation stays on one (affinity {route.affinity}); without one to tell: {_STRATEGIES[route.strategy]}"


def _steps(route: Route, name: str | None) -> Iterator[Step]:
    weights = sum(target.weight for target in route.targets)
    for target in route.all_targets:
        upstream = target.upstream
        timeouts = target.timeouts or route.timeouts
        is_fallback = target in route.fallbacks
        is_shared = route.strategy is Strategy.WEIGHTED and not is_fallback
        yield Step(
            target=f"{upstream.name}/{_model_at(route, target, name) or ''}".rstrip("/"),
            address=upstream.base_url or upstream.kind.value,
            is_fallback=is_fallback,
            share=target.weight / weights if is_shared else None,
            connect=timeouts.connect,
            first_token=timeouts.first_token,
            first_token_auto=timeouts.first_token_auto,
            between_tokens=timeouts.between_tokens,
            concurrency=upstream.limits.concurrency,
            queue=None if upstream.limits.concurrency is None else upstream.limits.queue,
            queue_wait=None if upstream.limits.concurrency is None else upstream.limits.queue_wait,
        )


def _model_at(route: Route, target: Target, name: str | None) -> str | None:
    """Return the name that is sent to `target`, asked of the router itself."""
    alone = replace(route, targets=(target,), fallbacks=())
    choice = Router({route.name: alone}, None).plan(name, None).next()
    return None if choice is None else choice.model


def _rules(route: Route, name: str | None, repeatable: bool | None) -> Iterator[str]:
    after: dict[bool, list[str]] = {True: list(_FAILURES), False: []}
    for refusal, consequence in CONSEQUENCES.items():
        match consequence.falls_back:
            case Fallback.MAPPED:
                falls_back = any(not (target.model or "*").endswith("*") for target in route.all_targets)
                word = f"{refusal.value} (for a name from the configuration)" if falls_back else refusal.value
            case Fallback.ASKED:
                falls_back = FallbackCause(refusal.value) in route.fallback_on
                word = refusal.value
            case _:
                falls_back = consequence.falls_back is Fallback.ALWAYS
                word = refusal.value
        after[falls_back].append(word)
    if len(route.all_targets) > 1:
        yield f"the next target after: {', '.join(after[True])}"
        yield f"never after: {', '.join(after[False])}, or once the answer has begun"
        yield f"at most {MAX_ATTEMPTS} attempts that send anything, and {MAX_TRIES} targets looked at"
    if route.retries and repeatable is not False:
        times = "once" if route.retries == 1 else "twice"
        yield f"the same target again, at most {times}, where no other was there to be tried, if the wait is {CAP_SECONDS:g} s at most"
    if route.hedge is not None:
        wait = "the learned p95 of its first token" if route.hedge.after is None else _duration(route.hedge.after)
        yield f"a backup attempt on another target after {wait}, for at most {route.hedge.at_most * 100:g}% of requests"
    if route.heartbeat is not None:
        yield f"comments into a silent stream after {_duration(route.heartbeat.after)}, every {_duration(route.heartbeat.every)}"
    match repeatable:
        case True:
            yield "the request is safe to repeat"
        case False:
            yield "the request is not safe to repeat: once any of it was sent, no other attempt is made"
        case None:
            yield "a request that stores, starts or uploads something is sent once"


def _key_notes(config: Config, route: Route, key: Key | None, unix_time: float) -> Iterator[str]:
    if config.asks_for_key and key is None:
        names = sorted({each.name for each in config.keys.values() if may_use(each, route) and _is_valid(each, unix_time)})
        yield f"a key is needed; keys that may use this route: {', '.join(names) or 'none'}"


def _limit_notes(route: Route, key: Key | None) -> Iterator[str]:
    found = [("this route, for all callers together", route.limits)]
    if key is not None:
        found = [("this key", key.limits), ("this key on this route", key.route_limits.get(route.name)), *found]
    for whose, limits in found:
        if limits is not None:
            yield f"limits of {whose}: {', '.join(_limit_words(limits))}"


def _limit_words(limits: Limits) -> Iterator[str]:
    if limits.rpm is not None:
        yield f"{limits.rpm} requests a minute"
    if limits.tpm is not None:
        yield f"{limits.tpm} tokens a minute"
    if limits.concurrency is not None:
        yield f"{limits.concurrency} at once"
    if limits.budget is not None:
        budget = limits.budget
        amount = f"{budget.amount / 10**9:g} USD" if budget.is_money else f"{budget.amount} tokens"
        yield f"{amount} a {budget.period.value}"


def _notes(route: Route, model: str | None, body: JsonBody | None) -> Iterator[str]:
    if body is not None and body.model is not None and model is not None and body.model != model:
        yield f"the request itself names {body.model}; what is explained is {model}"
    if body is not None and body.previous_response_id is not None:
        yield "the request continues a response: it goes to the upstream that made it, and to no other"
    for name in sorted({target.upstream.name for target in route.all_targets if target.upstream.is_passthrough}):
        yield f"{name} gets the caller's own credential"
    for name, count in sorted({(target.upstream.name, len(target.upstream.api_keys)) for target in route.all_targets}):
        if count > 1:
            yield f"{name} has {count} credentials: the next is used while one is throttled or refused, before another target"
    for name in sorted({target.upstream.name for target in route.all_targets if target.upstream.kind is Kind.DEMO}):
        yield f"{name} is simulated"


def _step_lines(number: int, step: Step) -> Iterator[str]:
    share = "" if step.share is None else f", {step.share:.0%} of requests"
    yield f"    {number}. {step.target}  ({step.address}){share}"
    learned = ", or sooner once learned" if step.first_token_auto else ""
    first = f"connect {_duration(step.connect)}, first token {_duration(step.first_token)}{learned}"
    yield f"       {first}, between tokens {_duration(step.between_tokens)}"
    if step.concurrency is not None and step.queue is not None and step.queue_wait is not None:
        yield f"       at most {step.concurrency} calls at once; {step.queue} more wait for a turn, up to {_duration(step.queue_wait)}"


def _duration(seconds: float) -> str:
    """Write seconds as the configuration does."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
