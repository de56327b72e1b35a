"""The same faults where a second target is left: before the commit it answers and the client notices nothing; after it, never.

A route of the configuration has one target so far, so the relay runs in the test's loop and its routes get their second one there.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.config import Config
from relay.config.tree import Target
from tests.end_to_end import faults_after, faults_before
from tests.end_to_end.fault_bed import Bed, Fault, Seen, Want, made
from tests.end_to_end.in_loop import RelayInLoop
from tests.fakes import events
from tests.fakes.ports import refusing_port, swallowing_port
from tests.fakes.scripts import Script, json_answer, sse
from tests.fakes.upstream import Peer, ScriptedUpstream

SECOND = events.chat_stream("from", " the second")
SECOND_EVENTS = [events.event({"type": "response.completed", "response": {"status": "completed"}}, name="response.completed")]
SECOND_ANSWER: dict[str, object] = {"id": "second", "choices": [{"message": {"content": "from the second"}}]}
STAYS = ("F8-total", "F9-invalid")
"""Failures before the commit that no other target could mend: the time is over, or the caller is at fault."""


def answers() -> Script:
    """What the second target says, whatever it is asked."""
    chat, responses, whole = sse(SECOND), sse(SECOND_EVENTS), json_answer(SECOND_ANSWER)

    async def script(peer: Peer) -> None:
        stream = responses if peer.request.path == "/v1/responses" else chat
        await (stream if peer.request.json().get("stream") else whole)(peer)

    return script


def falls_back(fault: Fault) -> bool:
    """Whether a row is one that another target mends: not the refusal of a credential that is the caller's own."""
    return fault.want.outcome == "upstream_failed" and not fault.name.startswith(STAYS)


def with_second(fault: Fault) -> Fault:
    """The row as it must look when a second target is left."""
    want = fault.want
    if not falls_back(fault):
        return fault
    stream = SECOND_EVENTS if fault.path == "/v1/responses" else SECOND
    body = b"".join(stream) if fault.stream else json.dumps(SECOND_ANSWER).encode()
    mended = Want(
        outcome="complete",
        status=200,
        body=body,
        results=(*want.results, "success"),
        connection="free" if want.connection == "pooled" else want.connection,
        requests=want.requests,
    )
    return replace(fault, want=mended, also=came_from_the_second(want.results[0]))


def came_from_the_second(reason: str) -> Callable[[Seen], None]:
    def also(seen: Seen) -> None:
        assert seen.response is not None
        assert seen.response.header("x-relay-upstream") == b"second"
        assert seen.response.header("x-relay-attempts") == b"2"
        line = seen.logs[-1]
        moved = {"from_upstream": seen.warnings[-1]["upstream"], "to_upstream": "second", "reason": reason}
        assert seen.metrics.sum("relay_fallbacks_total", route=line["route"]) == 1
        assert seen.metrics.sum("relay_fallbacks_total", route=line["route"], **moved) == 1
        assert line["upstream"] == "second"

    return also


def rows_of(refusing: int, swallowing: int) -> list[Fault]:
    """Every row that has one upstream and one request."""
    rows = [
        *faults_before.connecting({"refusing": refusing, "swallowing": swallowing}),
        *faults_before.before_the_answer(),
        *faults_before.error_first(),
        *faults_before.refusals(),
        *faults_before.bad_http(),
        *faults_after.error_later(),
        *faults_after.broken_streams(),
        *faults_after.odd_answers(),
        *faults_after.short_bodies(),
    ]
    return [with_second(row) for row in rows if row.talk is None]


def two_targets(config: Config) -> Config:
    """Give every route the second target."""
    second = config.upstreams["second"]
    routes = {
        name: replace(route, targets=(*route.targets, Target(upstream=second, model=route.targets[0].model)))
        for name, route in config.routes.items()
    }
    return replace(config, routes=routes)


@pytest.fixture(scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    """Every row, run."""
    directory: Path = tmp_path_factory.mktemp("fallback")
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(ScriptedUpstream())
        second.answers(answers())

        async def start(config: dict[str, Any]) -> RelayInLoop:
            config["upstreams"]["second"] = {"base_url": second.url, "api_key": "sk-second"}
            relay = await RelayInLoop(config, directory, change=two_targets).start()
            stack.push_async_callback(relay.stop)
            return relay

        faults = rows_of(stack.enter_context(refusing_port()), stack.enter_context(swallowing_port()))
        bed = await stack.enter_async_context(made(faults, start))
        yield bed
        assert len(second.requests) == sum(fault.want.results[-1] == "success" and len(fault.want.results) == 2 for fault in faults)
        assert {request.header("authorization") for request in second.requests} == {b"Bearer sk-second"}


NAMES = [fault.name for fault in rows_of(0, 0)]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
async def test_fault(number: int, bed: Bed) -> None:
    bed.check(bed.faults[number])
