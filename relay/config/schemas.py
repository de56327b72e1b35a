"""The JSON Schema of the configuration file, made from the models, for editors.

yaml-language-server reads draft-07: `$defs` is only a place to point to, nothing stands beside a `$ref`, and no keyword
is newer than the draft.
"""

from typing import Any

from relay.config.models import Settings


def schema() -> dict[str, Any]:
    """Return the schema of `relay.yaml`: descriptions and examples on every setting."""
    made: dict[str, Any] = _plain(Settings.model_json_schema())
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "relay configuration", **made}


def _plain(node: Any) -> Any:
    """Rewrite what draft-07 does not say: titles made of names, nullable values, keywords beside a `$ref`."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "$defs"):
            result[key] = {name: _plain(inner) for name, inner in value.items()}
        elif key == "anyOf":
            (only,) = (inner for inner in value if inner != {"type": "null"})
            result.update(_plain(only))
        elif key in ("examples", "default"):
            result[key] = value
        elif key != "title":
            result[key] = _plain(value)
    if "$ref" in result and len(result) > 1:
        result["allOf"] = [{"$ref": result.pop("$ref")}]
    return result
