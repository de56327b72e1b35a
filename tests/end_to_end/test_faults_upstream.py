"""Faults of upstreams (F1 to F30) on real sockets against a running `relay serve`: every row of the tables is one test."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end import faults_after, faults_before
from tests.end_to_end.fault_bed import Bed, Fault, made
from tests.fakes.certificates import Authority
from tests.fakes.ports import refusing_port, swallowing_port
from tests.fakes.upstream import ScriptedUpstream


def rows_of(ports: Mapping[str, int], authority: Authority, tls: Mapping[str, ScriptedUpstream]) -> list[Fault]:
    """Both tables; what exists only at run time is handed in."""
    return [
        *faults_before.connecting(ports),
        *faults_before.secured(authority, tls),
        *faults_before.stale(),
        *faults_before.before_the_answer(),
        *faults_before.error_first(),
        *faults_before.refusals(),
        *faults_before.bad_http(),
        *faults_after.error_later(),
        *faults_after.broken_streams(),
        *faults_after.old_clients(),
        *faults_after.odd_answers(),
        *faults_after.short_bodies(),
    ]


class _Nowhere:
    """Stands in for what exists only at run time, so that the names of the rows are known before."""

    url = file = ""

    def __getitem__(self, name: str) -> Any:
        return self


NAMES = [fault.name for fault in rows_of(*[_Nowhere()] * 3)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, authority: Authority) -> AsyncIterator[Bed]:
    """Every row, run."""
    async with AsyncExitStack() as stack:
        contexts = {"good": authority.server(), "wrong": authority.server("other.example"), "expired": authority.server(expired=True)}
        tls = {name: await stack.enter_async_context(ScriptedUpstream(context)) for name, context in contexts.items()}
        ports = {"refusing": stack.enter_context(refusing_port()), "swallowing": stack.enter_context(swallowing_port())}
        yield await stack.enter_async_context(made(rows_of(ports, authority, tls), shared_relay_with, others=list(tls.values())))
        for name in ("wrong", "expired"):
            assert not tls[name].requests, "a request was sent to a server that could not prove its name"


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
async def test_fault(number: int, bed: Bed) -> None:
    bed.check(bed.faults[number])


async def test_every_request_is_counted_once(bed: Bed) -> None:
    sent = sum(sum(fault.want.outcomes.values()) or 1 for fault in bed.faults)
    metrics = next(iter(bed.seen.values())).metrics
    assert metrics.sum("relay_requests_total") == sent
