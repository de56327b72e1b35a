"""No caller can mint a series: random names, paths and methods leave the number of series where it was."""

import asyncio
import random
import re
import string
from collections.abc import Iterator

import pytest

from tests.conftest import RelayWith
from tests.fakes.client import RawClient
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import json_answer
from tests.fakes.upstream import ScriptedUpstream

LETTERS = string.ascii_letters + string.digits + "-_./:~"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW", "PROPFIND")
CLIENTS = 8


@pytest.fixture
async def relay(relay_with: RelayWith, upstream: ScriptedUpstream) -> RelayProcess:
    upstream.answers(json_answer({"id": "x", "object": "chat.completion", "choices": []}))
    key = "sk-relay-made-up-1"
    return await relay_with(
        {
            **config_for(upstream),
            "routes": {"fast": "mine/m", "wild/*": "mine/*"},
            "keys": {"alice": {"key": key}},
        }
    )


def word(chance: random.Random) -> str:
    return "".join(chance.choices(LETTERS, k=chance.randint(1, 40)))


def asks(count: int, seed: int) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield method, target and body of requests that nobody should be able to tell apart in the metrics."""
    chance = random.Random(seed)
    for number in range(count):
        match number % 4:
            case 0:
                yield "POST", "/v1/chat/completions", b'{"model":"%b","messages":[]}' % word(chance).replace(":", "").encode()
            case 1:
                yield "POST", "/v1/chat/completions", b'{"model":"wild/%b","stream":true,"messages":[]}' % word(chance).encode()
            case 2:
                yield chance.choice(METHODS), "/v1/" + word(chance).lstrip("/."), None
            case _:
                yield chance.choice(METHODS), f"/v1/files/{word(chance).strip('/.')}?model={word(chance)}", None


async def ask(port: int, requests: list[tuple[str, str, bytes | None]]) -> None:
    client: RawClient | None = None
    keys = ("sk-relay-made-up-1", "sk-relay-unknown")
    for number, (method, target, body) in enumerate(requests):
        if client is None:
            client = await RawClient.open(port)
        headers = [("Authorization", f"Bearer {keys[number % 50 == 0]}"), ("Content-Type", "application/json")]
        await client.request(method, target, headers, body)
        answer = await client.read_response(method=method)
        if answer.header("connection") == b"close" or client.closed_how is not None:
            await client.close()
            client = None
    if client is not None:
        await client.close()


async def series(relay: RelayProcess) -> set[str]:
    """Return the names and labels of every series, without the status that was sent, of which there are at most 500."""
    page = (await relay.get("/metrics")).body.decode()
    lines = {line.rpartition(" ")[0] for line in page.splitlines() if line and not line.startswith("#")}
    return {re.sub(r'code="\d+"', "", line) for line in lines}


async def grow(relay: RelayProcess, warm: int, count: int) -> set[str]:
    """Ask at random, after a warm-up that meets every kind of request there is; return the series that the rest added."""
    everything = list(asks(warm + count, seed=7))
    for requests in (everything[:warm], everything[warm:]):
        before = await series(relay)
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(ask(relay.port, requests[number::CLIENTS]))
        after = await series(relay)
    return after - before


async def test_random_names_paths_and_methods_add_no_series(relay: RelayProcess) -> None:
    assert await grow(relay, 800, 2_000) == set()


@pytest.mark.slow
async def test_100_000_random_names_paths_and_methods_add_no_series(relay: RelayProcess) -> None:
    assert await grow(relay, 2_000, 100_000) == set()
