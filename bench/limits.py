"""What a limited request costs the relay beyond an unlimited one: CPU time of admission and settlement, in this process.

The limiter alone is measured (what the bounds are about), and the whole of it: estimate, headers, limiter, settlement. With Redis each
request waits for its admission before the next one comes, so that no two share a system call: the dearest there is. What Redis itself takes
is not in it.
"""

import asyncio
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from bench.process import ROOT, free_port
from relay.app.process import loop_factory
from relay.config.tree import Budget, Key, Limits, Period, Price, Route, Target, Timeouts, Upstream
from relay.exchange import Attempt, ClientRequest, Exchange, Operation, Outcome, Usage
from relay.forward.ports import Limiter
from relay.gateway.admission import Admission
from relay.policy.limits import Demand, Grant, Scope
from relay.policy.routing import Router
from relay.stores import RedisLimiter, open_ledger
from relay.wire.body import parse_body

_REQUESTS = 5_000
_ROUNDS = 3
_PLAIN = Limits(rpm=10**6, tpm=10**9, concurrency=1_000)
_FULL = Limits(rpm=10**6, tpm=10**9, concurrency=1_000, budget=Budget(amount=10**15, is_money=True, period=Period.MONTH))
_PATIENT_SECONDS = 5.0
"""A bench on a busy machine shall not take its own haste for an outage."""
_UNPACKED = ROOT / ".cache/servers/usr/bin"
_TARGET = Target(upstream=Upstream(name="mine", base_url="http://127.0.0.1/v1"), model="m")
_ROUTE = Route(name="fast", targets=(_TARGET,), timeouts=Timeouts())
_PRICES = {"mine/m": Price(input=1, output=2, cached=1)}

Run = Callable[[int], Awaitable[None]]


class Store(Protocol):
    """A limiter that is used in one event loop, of one round."""

    share: float
    """Of the requests of a round; those that wait take a while."""

    async def open(self) -> Limiter:
        """Return the limiter."""

    async def close(self) -> None:
        """Let go of it."""


class _Here:
    """Counts of this machine, the same ones in every round."""

    share = 1.0

    def __init__(self, folder: str | None) -> None:
        self._ledger = open_ledger(folder)

    async def open(self) -> Limiter:
        return self._ledger

    async def close(self) -> None:
        return


class _There:
    """Counts in Redis, by a limiter of each round's own."""

    share = 0.2

    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> Limiter:
        self._limiter = RedisLimiter(self._url, 1, _PATIENT_SECONDS, open_ledger(None), lambda _: None)
        await self._limiter.start()
        return self._limiter

    async def close(self) -> None:
        assert not self._limiter.is_degraded, "Redis went away while it was measured"
        await self._limiter.aclose()
        self._limiter.close()


def report() -> str:
    """Measure and return a Markdown table, microseconds of CPU per request."""
    lines = ["| limits of the key | store | limiter alone | bound | whole |", "|---|---|---|---|---|"]
    with _redis() as server:
        for name, limits in (("rpm, tpm, concurrency", _PLAIN), ("the same and a budget in USD", _FULL)):
            lines.append(_row(name, limits, "one process", (_Here(None), _Here(None)), 15))
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                lines.append(_row(name, limits, "host", (_Here(f"{folder}/alone"), _Here(f"{folder}/whole")), 40))
            if server is None:
                lines.append(f"| {name} | Redis | not measured: no redis-server | 150 us | |")
            else:
                lines.append(_row(name, limits, "Redis", (_There(server), _There(server)), 150))
    return "\n".join(lines)


@contextmanager
def _redis() -> Iterator[str | None]:
    """Run a Redis of the bench's own; None when this machine has none."""
    program = shutil.which("redis-server") or shutil.which("redis-server", path=str(_UNPACKED))
    if program is None:
        yield None
        return
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0" if _is_up(port) else None
    finally:
        process.terminate()
        process.wait()


def _is_up(port: int) -> bool:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def _row(name: str, limits: Limits, store: str, stores: tuple[Store, Store], bound: int) -> str:
    alone, whole = stores
    limiter = _microseconds(alone, lambda found: _limiter(found, limits))
    unlimited = _microseconds(_Here(None), lambda found: _requests(found, None))
    all_of_it = _microseconds(whole, lambda found: _requests(found, limits)) - unlimited
    return f"| {name} | {store} | {limiter:.1f} us | {bound} us | {all_of_it:.1f} us |"


def _microseconds(store: Store, of: Callable[[Limiter], Run]) -> float:
    async def timed() -> float:
        run = of(await store.open())
        requests = int(_REQUESTS * store.share)
        await run(requests // 10)
        started = time.thread_time()
        await run(requests)
        taken = time.thread_time() - started
        await store.close()
        return taken / requests * 1e6

    found = []
    for _ in range(_ROUNDS):
        with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
            found.append(runner.run(timed()))
    return min(found)


def _limiter(ledger: Limiter, limits: Limits) -> Run:
    demand = Demand(scopes=(Scope(limits=limits, key="alice"),), tokens=300, cost=400)

    async def run(count: int) -> None:
        for _ in range(count):
            grant = await ledger.admit(demand)
            assert isinstance(grant, Grant)
            ledger.settle(grant, 250, 300)

    return run


def _requests(ledger: Limiter, limits: Limits | None) -> Run:
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
