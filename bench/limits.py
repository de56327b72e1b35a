"""What a limited request costs the relay beyond an unlimited one: CPU time of admission and settlement, in this process.

The limiter alone is measured (what the bounds are about), and the whole of it: estimate, headers, limiter, settlement.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable

from relay.config.tree import Budget, Key, Limits, Period, Price, Route, Target, Timeouts, Upstream
from relay.exchange import Attempt, ClientRequest, Exchange, Operation, Outcome, Usage
from relay.gateway.admission import Admission
from relay.policy.limits import Demand, Grant, Scope
from relay.policy.routing import Router
from relay.stores import Ledger, open_ledger
from relay.wire.body import parse_body

_REQUESTS = 5_000
_ROUNDS = 3
_PLAIN = Limits(rpm=10**6, tpm=10**9, concurrency=1_000)
_FULL = Limits(rpm=10**6, tpm=10**9, concurrency=1_000, budget=Budget(amount=10**15, is_money=True, period=Period.MONTH))
_TARGET = Target(upstream=Upstream(name="mine", base_url="http://127.0.0.1/v1"), model="m")
_ROUTE = Route(name="fast", targets=(_TARGET,), timeouts=Timeouts())
_PRICES = {"mine/m": Price(input=1, output=2, cached=1)}

Run = Callable[[int], Awaitable[None]]


def report() -> str:
    """Measure and return a Markdown table, microseconds of CPU per request."""
    lines = ["| limits of the key | store | limiter alone | bound | whole |", "|---|---|---|---|---|"]
    for name, limits in (("rpm, tpm, concurrency", _PLAIN), ("the same and a budget in USD", _FULL)):
        lines.append(_row(name, limits, "one process", None, 15))
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            lines.append(_row(name, limits, "host", folder, 40))
    return "\n".join(lines)


def _row(name: str, limits: Limits, store: str, folder: str | None, bound: int) -> str:
    alone, whole = (open_ledger(None if folder is None else f"{folder}/{part}") for part in ("alone", "whole"))
    limiter = _microseconds(_limiter(alone, limits))
    all_of_it = _microseconds(_requests(whole, limits)) - _microseconds(_requests(open_ledger(None), None))
    for ledger in (alone, whole):
        ledger.close()
    return f"| {name} | {store} | {limiter:.1f} us | {bound} us | {all_of_it:.1f} us |"


def _microseconds(run: Run) -> float:
    async def timed() -> float:
        await run(_REQUESTS // 10)
        started = time.thread_time()
        await run(_REQUESTS)
        return (time.thread_time() - started) / _REQUESTS * 1e6

    return min(asyncio.run(timed()) for _ in range(_ROUNDS))


def _limiter(ledger: Ledger, limits: Limits) -> Run:
    demand = Demand(scopes=(Scope(limits=limits, key="alice"),), tokens=300, cost=400)

    async def run(count: int) -> None:
        for _ in range(count):
            grant = await ledger.admit(demand)
            assert isinstance(grant, Grant)
            ledger.settle(grant, 250, 300)

    return run


def _requests(ledger: Ledger, limits: Limits | None) -> Run:
    admission = Admission(ledger)
    key = Key(name="alice", limits=limits)
    router = Router({"fast": _ROUTE}, None)
    body = parse_body(json.dumps({"model": "fast", "messages": [{"role": "user", "content": "x" * 800}], "max_tokens": 100}).encode())
    request = ClientRequest(
        id="id",
        method="POST",
        path="/v1/chat/completions",
        query=None,
        headers=(),
        operation=Operation.CHAT,
        received_at=0.0,
        client_ip="127.0.0.1",
        body=body,
        model="fast",
        key=key,
    )

    async def run(count: int) -> None:
        for _ in range(count):
            exchange = Exchange(request=request, route=_ROUTE)
            ticket = await admission.admit(exchange, router.plan("fast", key), _PRICES)
            attempt = Attempt(target=_TARGET, started_at=0.0, sent_at=0.0)
            attempt.meter.usage = Usage(input=200, output=50)
            exchange.attempts.append(attempt)
            exchange.outcome = Outcome.COMPLETE
            admission.settle(exchange, ticket, _PRICES)

    return run


if __name__ == "__main__":
    print(report())
