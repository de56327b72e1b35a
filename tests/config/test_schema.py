"""The published schema: committed as generated, documented on every setting, true to examples, plain draft-07."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from relay.config import models, schema, telling

ROOT = Path(__file__).parents[2]
MODELS = sorted(
    {
        each
        for module in (models, telling)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, BaseModel) and each is not BaseModel
    },
    key=lambda model: model.__name__,
)
DRAFT_07 = {"$schema", "$defs", "$ref", "title", "description", "examples", "default", "type", "properties", "additionalProperties"} | {
    "required",
    "items",
    "pattern",
    "enum",
    "minimum",
    "minProperties",
    "allOf",
    "writeOnly",
}


def complaints(value: Any, node: dict[str, Any], path: str = "") -> Iterator[str]:
    """Check `value` against the keywords that our schema uses."""
    if "$ref" in node:
        yield from complaints(value, schema()["$defs"][node["$ref"].removeprefix("#/$defs/")], path)
    for inner in node.get("allOf", []):
        yield from complaints(value, inner, path)
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    named = node.get("type", list(kinds))
    allowed = [named] if isinstance(named, str) else named
    if not any(isinstance(value, kinds[kind]) for kind in allowed):
        yield f"{path}: not {named}"
    elif isinstance(value, str) and re.search(node.get("pattern", ""), value) is None:
        yield f"{path}: not {node['pattern']}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from complaints(item, node.get("items", {}), f"{path}[{index}]")
    elif isinstance(value, dict):
        if len(value) < node.get("minProperties", 0) or not value.keys() >= set(node.get("required", [])):
            yield f"{path}: something is missing"
        for name, item in value.items():
            inner = node.get("properties", {}).get(name, node.get("additionalProperties", {}))
            if inner is False:
                yield f"{path}.{name}: unknown"
            else:
                yield from complaints(item, inner, f"{path}.{name}")
    if "enum" in node and value not in node["enum"]:
        yield f"{path}: not in {node['enum']}"


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema within one."""
    yield node
    for name in ("properties", "$defs"):
        for inner in node.get(name, {}).values():
            yield from schemas(inner)
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            yield from schemas(node[name])
    for inner in node.get("allOf", []):
        yield from schemas(inner)


def test_committed_schema_is_the_generated_one() -> None:
    assert (ROOT / "config" / "relay.schema.json").read_text() == json.dumps(schema(), indent=2) + "\n"


@pytest.mark.parametrize("name", ["relay.example.yaml", "minimal.yaml"])
def test_example_fits_the_schema(name: str) -> None:
    data = yaml.load((ROOT / "config" / name).read_text(), Loader=_NoDates)
    assert list(complaints(data, schema())) == []


class _NoDates(yaml.SafeLoader):
    """Reads JSON's types only, as editors do."""


_NoDates.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith("timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_has_a_description_and_examples(model: type[BaseModel]) -> None:
    assert model.__doc__
    for name, setting in model.model_fields.items():
        assert setting.description, name
        assert setting.description.endswith("."), name
        assert setting.examples, name


def test_every_example_of_a_setting_fits_its_own_schema() -> None:
    for node in schemas(schema()):
        for value in node.get("examples", []):
            assert list(complaints(value, node)) == [], value
        if "default" in node:
            assert list(complaints(node["default"], node)) == []


def test_schema_uses_plain_draft_07() -> None:
    for node in schemas(schema()):
        assert node.keys() <= DRAFT_07
        assert "$ref" not in node or len(node) == 1


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"upstreams": {"a": {"colour": "red"}}, "routes": {"a": "a/x"}}, ".upstreams.a.colour: unknown"),
        ({"upstreams": {"a": {}}, "routes": {"a": "a"}}, ".routes.a: not"),
        ({"upstreams": {"a": {}}, "routes": {"a": 4}}, ".routes.a: not ['string', 'array', 'object']"),
        ({"upstreams": {"a": {}}, "routes": {"a": ["a/x", "a"]}}, ".routes.a[1]: not"),
        ({"upstreams": {"a": {}}, "routes": {"a": [{"weight": 2}]}}, ".routes.a[0]: something is missing"),
        ({"upstreams": {"a": {}}, "routes": {"a": {"to": "a"}}}, ".routes.a.to: not"),
        ({"upstreams": {"a": {}}, "routes": {"a": {"balance": [{"to": "a/x", "wieght": 2}]}}}, ".routes.a.balance[0].wieght: unknown"),
        ({"upstreams": {"a": {}}, "routes": {"a": {"balance": ["a/x"], "strategy": "random"}}}, ".routes.a.strategy: not in"),
        ({"upstreams": {"a": {}}, "routes": {"a": {"to": "a/x", "hedges": {}}}}, ".routes.a.hedges: unknown"),
        ({"upstreams": {"a": {"timeouts": {"total": "1 day"}}}, "routes": {"a": "a/x"}}, ".upstreams.a.timeouts.total: not"),
        ({"upstreams": {"a": {}}}, ": something is missing"),
    ],
)
def test_schema_finds_mistakes_in_the_editor(data: Any, complaint: str) -> None:
    assert any(found.startswith(complaint) for found in complaints(data, schema()))


@pytest.mark.parametrize(
    "route",
    [
        "a/x",
        ["a/x", {"to": "a/y", "timeouts": {"first_token": "30s"}}],
        {"to": "a/x", "fallback": "a/y"},
        {"to": ["a/x"], "fallback": [{"to": "a/y"}]},
        {"balance": [{"to": "a/x", "weight": 3}, "a/y"], "affinity": "header:x-id", "strategy": "fastest"},
    ],
)
def test_every_form_of_a_route_fits_the_schema(route: Any) -> None:
    assert list(complaints({"upstreams": {"a": {}}, "routes": {"a": route}}, schema())) == []


def test_every_credential_is_marked_as_one() -> None:
    marked = {
        (model.__name__, name)
        for model in MODELS
        for name, field in model.model_fields.items()
        if "writeOnly" in str(field.json_schema_extra)
    }
    assert marked == {
        ("Upstream", "api_key"),
        ("Upstream", "api_keys"),
        ("Key", "key"),
        ("Key", "hash"),
        ("PreviousHash", "hash"),
        ("Settings", "redis"),
        ("Redis", "url"),
    }
