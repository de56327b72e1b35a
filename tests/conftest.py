"""Fixtures of the test bed: scripted upstreams, raw clients and running relays, each with its end taken care of.

Tests and fixtures of one module share an event loop, so that a module can share one relay and one upstream between all its cases.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.certificates import Authority
from tests.fakes.client import RawClient
from tests.fakes.redis import RedisFront
from tests.fakes.relay import RelayProcess
from tests.fakes.upstream import ScriptedUpstream
from tests.servers import RedisServer, running_redis

RelayWith = Callable[..., Awaitable[RelayProcess]]
Connect = Callable[..., Awaitable[RawClient]]

# Properties are about what happens, not about how long it takes on a machine that has other things to do.
# Where hypothesis sees CI it has a profile of its own that says the same and repeats the same examples.
if settings.get_current_profile_name() == "default":
    settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("relay")


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream for one test."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def shared_upstream() -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream for all tests of a module: give each case a model of its own."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open raw connections, `await connect(port)`; they are closed when the test is over."""
    async with AsyncExitStack() as stack:

        async def open_client(port: int, **options: Any) -> RawClient:
            return await stack.enter_async_context(await RawClient.open(port, **options))

        yield open_client


@pytest.fixture
async def relay_with(tmp_path: Path) -> AsyncIterator[RelayWith]:
    """Start relays, `await relay_with(config)`; each is stopped when the test is over, and must end well."""
    async with _relays(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
async def shared_relay_with(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayWith]:
    """Start relays that live as long as the module; each is stopped then, and must end well."""
    async with _relays(tmp_path_factory.mktemp("relay")) as start:
        yield start


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private certificate authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis for the whole run."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """A real Redis that knows nothing yet."""
    shared_redis.ask("FLUSHALL")
    return shared_redis


@pytest.fixture
async def front(redis: RedisServer) -> AsyncIterator[RedisFront]:
    """A way to `redis` that can be made to fail."""
    async with RedisFront(redis.port) as front:
        yield front


class _relays:
    """The relays of one fixture."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[tuple[RelayProcess, bool]] = []

    async def __aenter__(self) -> RelayWith:
        return self._start

    async def _start(self, config: str | Mapping[str, Any], *, is_quiet: bool = True, **options: Any) -> RelayProcess:
        relay = RelayProcess(config, self._directory, **options)
        await relay.start()
        self._started.append((relay, is_quiet))
        return relay

    async def __aexit__(self, *exc: object) -> None:
        failures = []
        for relay, is_quiet in self._started:
            try:
                await relay.stop(is_quiet=is_quiet)
            except AssertionError as failure:
                failures.append(failure)
            finally:
                relay.kill()
        if failures and exc[0] is None:
            raise failures[0]
