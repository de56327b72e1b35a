"""What may stand at a place of the file, looked up in the models: which names, which setting."""

from types import UnionType
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from relay.config.models import Route, Settings, Target
from relay.config.problems import Path

_MAY_BE_SHORT: Final = (Route, Target)
"""Sections that may be written as one text."""
_KEY_STORE: Final = ("keys", "store")
"""A text here is the name of a file, not a key."""


def names_below(path: Path) -> tuple[str, ...] | None:
    """Return the settings that may stand in the mapping at `path`; None where names are free or nothing is known."""
    inner, _ = _find(path)
    return tuple(inner.model_fields) if _is_model(inner) else None


def home_of(name: str, path: Path) -> Path | None:
    """Return where the setting `name` belongs that stands by mistake in the mapping at `path`; None if it is nobody's.

    Close by goes before far away: `first_token` on a route is meant for the timeouts of that route.
    """
    around = [(*path, below) for below in names_below(path) or ()] + [(), *((top,) for top in Settings.model_fields)]
    return next((place for place in around if name in (names_below(place) or ())), None)


def example_at(path: Path) -> object:
    """Return an example of the whole section or list at `path`, None where there is none."""
    inner, field = _find(path)
    if field is None or not path or path[-1] not in (names_below(path[:-1]) or ()):
        return None
    return next((each for each in field.examples or () if isinstance(each, list if get_origin(inner) is list else dict)), None)


def field_at(path: Path) -> FieldInfo | None:
    """Return the setting whose single value, or list of them, stands at `path`; None for a section and for no setting."""
    inner, field = _find(path)
    if inner in _MAY_BE_SHORT or path == _KEY_STORE:
        return field
    is_section = _is_model(inner) or get_origin(inner) is dict
    return None if inner is None or is_section else field


def _find(path: Path) -> tuple[Any, FieldInfo | None]:
    """Return the type of what stands at `path`, None for nothing, and the setting that it is or belongs to."""
    inner: Any = Settings
    field: FieldInfo | None = None
    for part in path:
        if isinstance(part, int):
            inner = Target if inner is Route else get_args(inner)[0] if get_origin(inner) is list else None
        elif get_origin(inner) is dict:
            inner = get_args(inner)[1]
        elif _is_model(inner):
            field = inner.model_fields.get(part)
            inner = None if field is None else _without_none(field.annotation)
        else:
            inner = None
        if inner is None:
            return None, None
    return inner, field


def _is_model(inner: Any) -> bool:
    return isinstance(inner, type) and issubclass(inner, BaseModel)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) is not UnionType:
        return annotation
    return next(each for each in get_args(annotation) if each is not type(None))
