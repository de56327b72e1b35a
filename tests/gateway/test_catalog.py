"""GET /v1/models: the configured names, the upstreams' own lists behind wildcards, and nothing that a key may not use."""

import asyncio
import json
from collections.abc import Mapping

import pytest

from relay.config.tree import Config, Key, Route, Target, Timeouts, Upstream
from relay.errors import ClientError
from relay.gateway import catalog as module
from relay.gateway.catalog import LIST_SECONDS, Catalog

MINE = Upstream(name="mine", base_url="http://mine/v1")
OTHER = Upstream(name="other", base_url="http://other/v1")
LISTS = {
    "mine": b'{"object":"list","data":[{"id":"a","object":"model","created":5,"owned_by":"me","extra":{"x":[1]}},'
    b'{"id":"gpt-1"},{"id":"fast"}]}',
    "other": b'{"data":[{"id":"vendor/x"},{"id":"vendor/"},{"id":"y"}]}',
}


class Bed:
    """A catalog over upstreams that answer from memory."""

    def __init__(self, routes: Mapping[str, tuple[Upstream, str | None]], lists: Mapping[str, bytes | None] = LISTS) -> None:
        self.fetched: list[str] = []
        self.lists = dict(lists)
        made = {
            name: Route(name=name, targets=(Target(upstream=upstream, model=model),), timeouts=Timeouts())
            for name, (upstream, model) in routes.items()
        }
        self.catalog = Catalog(Config(upstreams={"mine": MINE, "other": OTHER}, routes=made), self._fetch)

    async def _fetch(self, upstream: Upstream, path: str) -> bytes | None:
        assert path == "/v1/models"
        self.fetched.append(upstream.name)
        await asyncio.sleep(0)
        return self.lists.get(upstream.name)

    async def names(self, key: Key | None = None) -> list[str]:
        answer = json.loads(await self.catalog.answer(key, None))
        assert answer["object"] == "list"
        assert all({"id", "object", "created", "owned_by"} <= set(entry) for entry in answer["data"])
        return [entry["id"] for entry in answer["data"]]


async def test_literal_routes_need_no_upstream() -> None:
    bed = Bed({"fast": (MINE, "m"), "slow": (OTHER, "n")})
    assert await bed.names() == ["fast", "slow"]
    assert bed.fetched == []


async def test_a_wildcard_lists_its_upstreams_models_by_the_names_that_reach_them() -> None:
    assert await Bed({"*": (MINE, "*")}).names() == ["a", "gpt-1", "fast"]
    assert await Bed({"mine/*": (MINE, "*")}).names() == ["mine/a", "mine/gpt-1", "mine/fast"]
    assert await Bed({"gpt-*": (MINE, "gpt-*")}).names() == ["gpt-1"]
    assert await Bed({"v/*": (OTHER, "vendor/*")}).names() == ["v/x"]


async def test_a_wildcard_with_a_fixed_target_lists_nothing() -> None:
    bed = Bed({"fixed-*": (MINE, "one")})
    assert await bed.names() == []
    assert bed.fetched == []


async def test_an_upstream_behind_several_wildcards_is_asked_once() -> None:
    bed = Bed({"mine/*": (MINE, "*"), "*": (MINE, "*"), "other/*": (OTHER, "*")})
    names = await bed.names()
    assert sorted(bed.fetched) == ["mine", "other"]
    assert {"mine/a", "a", "other/y"} <= set(names)
    assert len(names) == len(set(names))


async def test_a_list_is_kept_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    bed = Bed({"*": (MINE, "*")})
    await bed.names()
    clock[0] += LIST_SECONDS - 1
    await bed.names()
    assert bed.fetched == ["mine"]
    clock[0] += 2
    bed.lists["mine"] = b'{"data":[{"id":"new"}]}'
    assert await bed.names() == ["new"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"<html>",
        b"[]",
        b"7",
        b"{}",
        b'{"data":{}}',
        b'{"data":[1,null,{"id":3},{"name":"x"},"s"]}',
        b"[" * 5000,
        b'{"data":' + b"[" * 5000,
    ],
)
async def test_an_upstream_without_a_usable_list_is_left_out(body: bytes | None) -> None:
    assert await Bed({"fast": (OTHER, "m"), "*": (MINE, "*")}, {"mine": body}).names() == ["fast"]


async def test_an_upstream_that_does_not_answer_is_left_out_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_SECONDS", 0.01)
    routes = {"*": Route(name="*", targets=(Target(upstream=MINE, model="*"),), timeouts=Timeouts())}

    async def hang(upstream: Upstream, path: str) -> bytes | None:
        await asyncio.get_running_loop().create_future()
        return None

    async with asyncio.timeout(1.0):
        answer = await Catalog(Config(upstreams={"mine": MINE}, routes=routes), hang).answer(None, None)
    assert json.loads(answer)["data"] == []


async def test_a_key_sees_what_it_may_use() -> None:
    bed = Bed({"fast": (MINE, "m"), "other/*": (OTHER, "*"), "*": (MINE, "*")})
    assert await bed.names(Key(name="k", routes=frozenset({"fast"}))) == ["fast"]
    assert bed.fetched == []
    assert await bed.names(Key(name="k", routes=frozenset({"other/*"}))) == ["other/vendor/x", "other/vendor/", "other/y"]
    assert await bed.names(Key(name="k", routes=frozenset())) == []


async def test_a_name_that_another_route_takes_is_not_listed_for_a_wildcard() -> None:
    bed = Bed({"fast": (OTHER, "m"), "*": (MINE, "*")})
    assert await bed.names(Key(name="k", routes=frozenset({"*"}))) == ["a", "gpt-1"]
    assert await bed.names() == ["fast", "a", "gpt-1"]


async def test_an_upstreams_own_members_of_an_entry_pass() -> None:
    entry = json.loads(await Bed({"x/*": (MINE, "*")}).catalog.answer(None, "x/a"))
    assert entry == {"id": "x/a", "object": "model", "created": 5, "owned_by": "me", "extra": {"x": [1]}}


@pytest.mark.parametrize("wanted", ["nope", "", "FAST", "other/y"])
async def test_a_model_that_is_unknown_or_not_for_this_key_is_not_found(wanted: str) -> None:
    bed = Bed({"fast": (MINE, "m"), "other/*": (OTHER, "*")})
    key = Key(name="k", routes=frozenset({"fast"}))
    with pytest.raises(ClientError) as caught:
        await bed.catalog.answer(key, wanted)
    assert caught.value.code == "model_not_found"
    assert json.loads(await bed.catalog.answer(key, "fast"))["id"] == "fast"
