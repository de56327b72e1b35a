"""Hostile files (A50): whatever the bytes, ConfigInvalid and nothing else, within bounded time."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from relay.config import ConfigInvalid, models
from relay.config.models import Settings
from tests.config.loading import ROUTE, UPSTREAM, Loading


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loading]:
    yield Loading(tmp_path_factory.mktemp("hostile"))


def check(loading: Loading, text: str | bytes) -> None:
    """Load; the only exception that may come is ConfigInvalid, with places that exist."""
    try:
        loading.load(text, {"SET": "value", "ODD": "a\nb\udcff"})
    except ConfigInvalid as invalid:
        assert 0 < len(invalid.problems) <= 50
        for problem in invalid.problems:
            assert problem.message
            assert str(problem)


BOMBS = {
    "nested lists": "a: " + "[" * 100_000,
    "nested mappings": "a: " + "{a: " * 100_000,
    "nested blocks": "\n".join(" " * depth + "a:" for depth in range(1000)),
    "nested dashes": "- " * 100_000,
    "billion laughs": "a: &a [x, x]\n" + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(20)),
    "self reference": "a: &a [*a]",
    "merge of itself": "a: &a {<<: *a}",
    "python object": "!!python/object/apply:os.system ['true']",
    "python name": "a: !!python/name:os.system",
    "many names": "{" + ", ".join(f"n{index}" for index in range(30_000)) + "}",
    "many routes": UPSTREAM + "routes:\n" + "".join(f"  r{index}: mien/x\n" for index in range(20_000)),
    "many targets": UPSTREAM + "routes: {a: [" + "mien/x, mine/x," * 20_000 + "]}",
    "many headers": "upstreams: {mine: {kind: demo, forward_headers: [" + "k," * 20_000 + "]}}",
    "many different headers": "upstreams: {openai: {colour: red, forward_headers: [" + ",".join(map(str, range(100_000))) + "]}}",
    "many items": "server: {cors_origins: [" + "x," * 50_000 + "]}",
    "many pairs of braces": "[" + "{}," * 100_000 + "]",
    "long name": "x" * 1_000_000 + ": 1",
    "long target": UPSTREAM + "routes: {a: " + "x" * 900_000 + "/y}",
    "long number": "timeouts: {total: " + "9" * 900_000 + "s}",
    "long variable": UPSTREAM + "routes: {a: '${" + "A" * 900_000 + "}'}",
    "many variables": UPSTREAM + "routes: {a: '" + "${" * 400_000 + "'}",
    "many lines in one text": UPSTREAM + "routes: {a: 'x\n" + "\n" * 900_000 + "'}",
    "too large": "#" * (2**20 + 1),
    "nothing but nulls": "\0" * 1000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bomb_is_refused_at_its_own_cost(shared: Loading, bomb: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigInvalid):
        shared.load(BOMBS[bomb])
    assert time.process_time() - began < 20  # each takes a second at most; what such a file is made for would never end


@given(raw=st.binary(max_size=300))
@example(raw=b"a: !<tag:yaml.org,2002:binary> ====")
@example(raw=b"%TAG ! tag:x,2000:\n---\n!a b")
@example(raw=b"? a\n? b\n")
@example(raw=b"\xef\xbb\xbf")
@example(raw=b"=: =\n")
def test_any_bytes_raise_nothing_else(shared: Loading, raw: bytes) -> None:
    check(shared, raw)


def words() -> st.SearchStrategy[str]:
    names = sorted(
        {name for model in _models() for name in model.model_fields} | {"mine", "openai", "fast", "*", "openai/*", "<<", "no", "1"}
    )
    values = ["mine/x", "openai/*", "5s", "1MiB", "127.0.0.1:8080", "0.0.0.0:1", "http://127.0.0.1:9/v1", "http://[", "${SET}", "${ODD}"]
    values += [
        "${UNSET}",
        "${",
        "$$",
        "sha256:" + "0" * 64,
        "9999-12-31",
        "0001-01-01T00:00:00+23:59",
        "true",
        "passthrough",
        "demo",
        "auto",
        "header:x",
        "fastest",
        "/",
        "::",
    ]
    return st.sampled_from(names + values) | st.text(max_size=12)


def _models() -> Iterator[Any]:
    return (each for each in vars(models).values() if isinstance(each, type) and issubclass(each, BaseModel) and each is not BaseModel)


def trees() -> st.SearchStrategy[Any]:
    leaves = words() | st.none() | st.booleans() | st.integers() | st.floats() | st.dates()
    nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words(), inner, max_size=4), max_leaves=12)
    return st.fixed_dictionaries({}, optional=dict.fromkeys(Settings.model_fields, nested)) | nested


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(tree=trees())
@example(tree={"upstreams": {"mine": {"base_url": "http://127.0.0.1:9/v1", "ca_file": "\0"}}, "routes": {"a": "mine/x"}})
@example(tree={"keys": {"a": {"expires": "0001-01-01T00:00:00+23:59"}, "b": {"expires": "9999-12-31"}}})
def test_any_tree_of_settings_raises_nothing_else(shared: Loading, tree: Any) -> None:
    check(shared, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


@given(raw=st.binary(min_size=1, max_size=6), at=st.integers(0, 2000))
def test_example_with_bytes_replaced_raises_nothing_else(shared: Loading, raw: bytes, at: int) -> None:
    text = (Path(__file__).parents[2] / "config" / "relay.example.yaml").read_bytes()
    place = at % len(text)
    check(shared, text[:place] + raw + text[place + len(raw) :])


def test_scalar_that_yaml_would_turn_into_something_else_stays_as_written(shared: Loading) -> None:
    config = shared.load(UPSTREAM + "routes: {'no': mine/no, '12:30': mine/12:30, '010': mine/1.10}\ndefault_model: no\n")
    assert sorted(config.routes) == ["010", "12:30", "no"]
    assert config.default_model == "no"
    assert shared.load(UPSTREAM + ROUTE + "keys: {a: {key: 0123456789}}").keys
