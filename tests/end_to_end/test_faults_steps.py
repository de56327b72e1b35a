"""A chunk wakes no task: a thousand events on one stream cost fewer than 20 steps of the relay's tasks, whatever the loop.

The relay runs in a thread with a loop of its own, whose task factory wraps every coroutine and counts how often it is resumed.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, Self
from unittest import mock

import pytest
import uvloop

from tests.end_to_end.in_loop import RelayInLoop
from tests.fakes import events
from tests.fakes.client import RawClient, Response
from tests.fakes.relay import config_for
from tests.fakes.scripts import EVENT_STREAM, LAST_CHUNK, Script, head
from tests.fakes.upstream import Peer, ScriptedUpstream

EVENTS = 1000
MAX_STEPS = 20
START_SECONDS = 10.0
REST_SECONDS = 0.1
"""Long enough for a task to have taken every step that it can take without a cause."""
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Steps(Coroutine[Any, Any, Any]):
    """A coroutine that counts how often it is resumed."""

    def __init__(self, inner: Coroutine[Any, Any, Any], count: Callable[[], None]) -> None:
        self._inner = inner
        self._count = count

    def send(self, value: Any) -> Any:
        self._count()
        return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        self._count()
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("a task resumes it by `send`")


class CountedRelay:
    """A relay in a thread, on a loop of the given kind."""

    def __init__(self, relay: RelayInLoop, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._relay = relay
        self._loop_factory = loop_factory
        self._thread = threading.Thread(target=self._run)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event
        self._patch = mock.patch.object(asyncio, "Task", self._make_task_class())
        self.steps = 0

    async def __aenter__(self) -> Self:
        # A task factory alone would miss the tasks that a library makes itself, to start them eagerly.
        self._patch.start()
        self._thread.start()
        assert await asyncio.to_thread(self._started.wait, START_SECONDS)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join)
        self._patch.stop()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(lambda loop, coroutine, **options: asyncio.Task(coroutine, loop=loop, **options))
        self._stop = asyncio.Event()
        await self._relay.start()
        self._started.set()
        await self._stop.wait()
        await self._relay.stop()

    def _make_task_class(self) -> type[asyncio.Task[Any]]:
        relay = self

        class CountedTask(asyncio.Task[Any]):
            def __init__(self, coroutine: Any, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
                is_counted = loop is relay._loop
                super().__init__(Steps(coroutine, relay._take_step) if is_counted else coroutine, loop=loop, **options)

        return CountedTask

    def _take_step(self) -> None:
        self.steps += 1


def in_step(client: RawClient, pieces: list[bytes]) -> Script:
    """Send each event when the client has the one before, so that none shares a read with another."""

    async def script(peer: Peer) -> None:
        await peer.send(head(200, [*EVENT_STREAM, ("Transfer-Encoding", "chunked")]))
        for piece in pieces:
            seen = client.received_bytes
            await peer.send_chunk(piece)
            while client.received_bytes == seen and not peer.is_gone:
                await asyncio.sleep(0)
        await peer.send(LAST_CHUNK)

    return script


async def stream(upstream: ScriptedUpstream, directory: Path, kind: str, *, count: int) -> tuple[int, Response]:
    """Relay one stream of `count` events; return the steps that it cost, from the request to the end, and the answer."""
    pieces = [events.content(f"token {number}") for number in range(count - 1)] + [events.DONE]
    relay = RelayInLoop(config_for(upstream), directory)
    async with CountedRelay(relay, LOOPS[kind]) as counted, await relay.connect() as client:
        upstream.answers(in_step(client, pieces))
        await asyncio.sleep(REST_SECONDS)
        before = counted.steps
        await client.post("/v1/chat/completions", {"model": "any", "stream": True})
        response = await client.read_response()
        await relay.wait_log()
        await asyncio.sleep(REST_SECONDS)
        steps = counted.steps - before
        await relay.assert_identities()
    assert response.body == b"".join(pieces)
    return steps, response


@pytest.mark.parametrize("kind", list(LOOPS))
async def test_a_thousand_events_take_fewer_than_20_task_steps(kind: str, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    steps, response = await stream(upstream, tmp_path, kind, count=EVENTS)
    assert len(response.chunks) == EVENTS, "events came together, so that the count proves nothing"
    assert 0 < steps < MAX_STEPS


@pytest.mark.parametrize("kind", list(LOOPS))
async def test_the_steps_of_a_stream_do_not_grow_with_its_events(kind: str, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    few, _ = await stream(upstream, tmp_path, kind, count=10)
    many, _ = await stream(upstream, tmp_path, kind, count=200)
    assert few == many
