"""From plain data to checked settings, entry by entry, so that one mistake hides no other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from relay.config import models, telling
from relay.config.flow import flow
from relay.config.lookup import example_at
from relay.config.problems import Path
from relay.config.report import Report
from relay.config.values import name_flaw, parse_model, parse_text, route_name_flaw

_M = TypeVar("_M", bound=BaseModel)

_KINDS: Final[Mapping[str, str]] = {
    "model_type": "expected settings, as `name: value`",
    "list_type": "expected a list such as [a, b]",
    "missing": "is missing",
}
"""What pydantic's own complaints are called here; all others come from our parsers."""
_LONG: Final = 80
"""An example that does not fit a line helps nobody."""
_SHAPES: Final[Mapping[str, str]] = {_KINDS["model_type"]: "expected settings", _KINDS["list_type"]: "expected a list"}
"""Those that are better told with the example of the very setting."""


@dataclass(slots=True, kw_only=True)
class Draft:
    """Every entry of a file by itself; None for one with a mistake."""

    server: models.Server = field(default_factory=models.Server)
    timeouts: models.Timeouts = field(default_factory=models.Timeouts)
    metrics: telling.Metrics = field(default_factory=telling.Metrics)
    tracing: telling.Tracing = field(default_factory=telling.Tracing)
    logging: telling.Logging = field(default_factory=telling.Logging)
    upstreams: dict[str, models.Upstream | None] = field(default_factory=dict)
    routes: dict[str, models.Route | None] = field(default_factory=dict)
    keys: dict[str, models.Key | None] = field(default_factory=dict)
    key_routes: dict[str, list[object]] = field(default_factory=dict)
    """The routes that each key names, also of a key with another mistake."""
    prices: dict[str, models.Prices | None] = field(default_factory=dict)
    key_store: str | None = None
    """File of stored keys, as written."""
    usage: models.Usage | None = None
    default_model: str | None = None
    state_dir: str | None = None
    redis: models.Redis | None = None
    has_keys: bool = False
    """Whether keys were meant, be they right or wrong."""


def validate(data: object, report: Report) -> Draft:
    """Check every entry of `data`; mistakes go into `report`."""
    draft = Draft()
    if not isinstance(data, dict):
        report.add((), "expected settings, as `name: value`")
        return draft
    draft.server = _model(models.Server, data.get("server", {}), ("server",), report) or draft.server
    draft.timeouts = _model(models.Timeouts, data.get("timeouts", {}), ("timeouts",), report) or draft.timeouts
    draft.metrics = _model(telling.Metrics, data.get("metrics", {}), ("metrics",), report) or draft.metrics
    draft.tracing = _model(telling.Tracing, data.get("tracing", {}), ("tracing",), report) or draft.tracing
    draft.logging = _model(telling.Logging, data.get("logging", {}), ("logging",), report) or draft.logging
    for name, entry in _entries(data, "upstreams", report):
        _check_name(name_flaw(name), ("upstreams", name), report)
        draft.upstreams[name] = _model(models.Upstream, entry, ("upstreams", name), report)
    for name, entry in _entries(data, "routes", report):
        _check_name(route_name_flaw(name), ("routes", name), report)
        draft.routes[name] = _model(models.Route, entry, ("routes", name), report)
    for name, entry in _entries(data, "keys", report):
        if name == "store" and isinstance(entry, str):
            draft.key_store = _text(entry, ("keys", name), parse_text, report)
            continue
        _check_name(name_flaw(name), ("keys", name), report)
        draft.keys[name] = _model(models.Key, entry, ("keys", name), report)
        named = entry.get("routes") if isinstance(entry, dict) else None
        draft.key_routes[name] = named if isinstance(named, list) else []
    for name, entry in _entries(data, "prices", report):
        draft.prices[name] = _model(models.Prices, entry, ("prices", name), report)
    draft.has_keys = bool(data.get("keys"))
    if "usage" in data:
        draft.usage = _model(models.Usage, data["usage"], ("usage",), report)
    if "default_model" in data:
        draft.default_model = _text(data["default_model"], ("default_model",), parse_model, report)
    if "state_dir" in data:
        draft.state_dir = _text(data["state_dir"], ("state_dir",), parse_text, report)
    if data.get("redis", "") != "":  # `redis: ${REDIS_URL:-}` is how it is left out on one machine
        draft.redis = _model(models.Redis, data["redis"], ("redis",), report)
    _check_required(data, report)
    return draft


def _entries(data: Mapping[str, object], section: str, report: Report) -> list[tuple[str, object]]:
    found = data.get(section, {})
    if isinstance(found, dict):
        return list(found.items())
    report.add((section,), "expected names, each with its settings")
    return []


def _check_name(flaw: str | None, path: Path, report: Report) -> None:
    if flaw is not None:
        report.add(path, flaw, at_name=True)


def _check_required(data: Mapping[str, object], report: Report) -> None:
    if data.get("upstreams", {}) == {}:
        report.add(("upstreams",), 'no upstream: add one, such as `openai: {api_key: "${OPENAI_API_KEY}"}`')
    if data.get("routes", {}) == {}:
        report.add(("routes",), 'no route: add one, such as `"*": openai/*`, so that something can be called')


def _model(model: type[_M], entry: object, path: Path, report: Report) -> _M | None:
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        for each in error.errors(include_url=False, include_input=False):
            place = (*path, *_as_written(entry, each["loc"]))
            if each["type"] != "missing" or place[:-1] not in report.holed:
                report.add(place, _with_example(complaint(each), place))
        return None


def _with_example(message: str, path: Path) -> str:
    shape = _SHAPES.get(message)
    example = example_at(path) if shape is not None else None
    return message if example is None or len(flow(example)) > _LONG else f"{shape} such as {flow(example)}"


def complaint(each: ErrorDetails) -> str:
    """Say in our words what is wrong with a value."""
    cause = each.get("ctx", {}).get("error")
    return str(cause) if cause is not None else _KINDS.get(each["type"], "is not acceptable here")


def _as_written(entry: object, location: Path) -> Path:
    """Drop the parts of a location that stand in a section's full form only, not in the shorter one that was written."""
    place: list[str | int] = []
    for part in location:
        if isinstance(entry, dict) and isinstance(part, str):
            place.append(part)
            entry = entry.get(part)
        elif isinstance(entry, list) and isinstance(part, int):
            place.append(part)
            entry = entry[part]
    return tuple(place)


def _text(entry: object, path: Path, parse: Callable[[object], str], report: Report) -> str | None:
    try:
        return parse(entry)
    except ValueError as error:
        report.add(path, str(error))
        return None
