"""Where keys and the usage ledger stand in a configuration file, whatever else it needs: variables may be unset, routes wrong.

For the commands about them, which a person runs without the relay's environment.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from relay.config.document import Node, NotYaml, Scalar, Table, parse
from relay.config.loader import read_text
from relay.config.problems import ConfigInvalid, Problem
from relay.config.variables import expand

_STORE: Final = "store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key as it stands in the file."""

    line: int
    """Counted from 1."""
    hash: str | None = None
    """As written, variables and all; None where there is none."""
    has_previous: bool = False
    is_switched: bool = False
    """Whether it has the setting `enabled`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What those commands need of a file."""

    file: str
    store: str | None = None
    """The file of stored keys."""
    usage: str | None = None
    """The usage ledger."""
    routes: frozenset[str] = frozenset()
    keys: Mapping[str, Entry] = field(default_factory=dict)


def outline(path: str, environ: Mapping[str, str]) -> Outline:
    """Read the outline of the file at `path`. Raises ConfigInvalid when it cannot be read, or its store's name not be told."""
    try:
        root = parse(read_text(path))
    except NotYaml as error:
        problem = Problem(file=path, line=error.line + 1, column=error.column + 1, path="", message=error.message)
        raise ConfigInvalid([problem]) from None
    sections = _settings(root)
    store: str | None = None
    keys: dict[str, Entry] = {}
    for name, node in _named(sections.get("keys")):
        if name.text == _STORE and isinstance(node, Scalar):
            store = _file(path, "keys.store", node, environ)
        else:
            keys[name.text] = _entry(name, node)
    ledger = _settings(sections.get("usage")).get(_STORE)
    usage = _file(path, "usage.store", ledger, environ) if isinstance(ledger, Scalar) else None
    return Outline(file=path, store=store, usage=usage, routes=frozenset(_settings(sections.get("routes"))), keys=keys)


def _file(path: str, setting: str, node: Scalar, environ: Mapping[str, str]) -> str:
    folder = Path(path).parent
    try:
        return str((folder / expand(node.text, environ, folder)).absolute())
    except ValueError as error:
        line, column = node.place.line + 1, node.place.column + 1
        raise ConfigInvalid([Problem(file=path, line=line, column=column, path=setting, message=str(error))]) from None


def _entry(name: Scalar, node: Node) -> Entry:
    settings = _settings(node)
    written = settings.get("hash")
    return Entry(
        line=name.place.line + 1,
        hash=written.text if isinstance(written, Scalar) else None,
        has_previous="previous" in settings,
        is_switched="enabled" in settings,
    )


def _settings(node: Node | None) -> dict[str, Node]:
    return {name.text: value for name, value in _named(node)}


def _named(node: Node | None) -> Iterator[tuple[Scalar, Node]]:
    if isinstance(node, Table):
        for name, value in node.pairs():
            if isinstance(name, Scalar):
                yield name, value
