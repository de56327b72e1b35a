"""Where everything stands in one file, and the mistakes found in it so far."""

import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from relay.config.document import Place
from relay.config.excerpt import excerpt
from relay.config.lookup import field_at, names_below
from relay.config.problems import HIDDEN, MAX_PROBLEMS, ConfigInvalid, Path, Problem, closest, looks_secret, path_text

_MAX_LINE: Final = 400
"""A longer source line is not for reading, and rendering it costs more than it tells."""
_VARIABLE: Final = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


class Part(Enum):
    """What a scalar is in the file."""

    NAME = auto()
    VALUE = auto()
    HIDDEN = auto()


@dataclass(frozen=True, slots=True)
class Span:
    """A scalar of the file, to decide about when its line is to be shown."""

    place: Place
    path: Path
    part: Part
    text: str

    def may_be_shown(self) -> bool:
        """Tell whether its text may stand in a message."""
        match self.part:
            case Part.NAME:
                return may_show_name(self.path)
            case Part.VALUE:
                return self.place.line == self.place.end_line and may_show_value(self.path, self.text)
            case Part.HIDDEN:
                return False


@dataclass(slots=True, kw_only=True)
class Report:
    """Collects mistakes by path; the place and the source line are looked up when all are told."""

    file: str
    lines: list[str]
    values: dict[Path, Place] = field(default_factory=dict)
    names: dict[Path, Place] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    """Every scalar, in the order of the file."""
    broken: set[Path] = field(default_factory=set)
    """Values with a mistake already told; whatever else is found there follows from it."""
    holed: set[Path] = field(default_factory=set)
    """Mappings with a name that was refused; what is missing there may be what was meant by it."""
    warnings: list[str] = field(default_factory=list)
    _found: list[tuple[int, int, str, str]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Tell whether enough mistakes are collected."""
        return len(self._found) >= MAX_PROBLEMS

    def add(self, path: Path, message: str, *, at_name: bool = False) -> None:
        """Note a mistake of the value at `path`, or of its name."""
        if self.is_full or (path in self.broken and not at_name):
            return
        place = self.names.get(path) if at_name else None
        self.add_at(place or self._nearest(path), path, message)

    def add_at(self, place: Place | None, path: Path, message: str) -> None:
        """Note a mistake at a place of its own."""
        if not self.is_full:
            line, column = (place.line, place.column) if place is not None else (0, 0)
            self._found.append((line, column, safe_path_text(path), message))

    def warn(self, path: Path, message: str) -> None:
        """Note what is accepted but should be known."""
        place = self._nearest(path)
        where = f"{self.file}:{place.line + 1}" if place is not None else self.file
        self.warnings.append(f"{where}: {safe_path_text(path)}: {message}")

    def raise_if_any(self) -> None:
        """Raise ConfigInvalid with everything found, in the order of the file."""
        if self._found:
            raise ConfigInvalid([self._problem(*found) for found in sorted(set(self._found))])

    def _problem(self, line: int, column: int, path: str, message: str) -> Problem:
        source = self.lines[line] if line < len(self.lines) else ""
        shown = self._excerpt(source, line, column) if source.strip() and len(source) <= _MAX_LINE else ""
        return Problem(file=self.file, line=line + 1, column=column + 1, path=path, message=message, excerpt=shown)

    def _excerpt(self, source: str, line: int, column: int) -> str:
        spans = [
            (
                span.place.column if span.place.line == line else 0,
                span.place.end_column if span.place.end_line == line else len(source),
                span.may_be_shown(),
            )
            for span in self.spans
            if span.place.line <= line <= span.place.end_line
        ]
        return excerpt(source, line + 1, column, spans)

    def _nearest(self, path: Path) -> Place | None:
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path)


def may_show_name(path: Path) -> bool:
    """Tell whether the name at the end of `path` may stand in a message.

    A name that is no setting may be a credential in the wrong place (`openai: {sk-...}`), unless it looks like a setting.
    """
    name = path[-1]
    if isinstance(name, str) and looks_secret(name):
        return False
    allowed = names_below(path[:-1])
    if not isinstance(name, str) or allowed is None:
        return (len(path) == 2 and path[0] in ("upstreams", "routes", "keys", "prices")) or path[2:-1] == ("limits", "per_route")
    return name in allowed or closest(name, allowed) is not None or (len(name) <= 24 and name.replace("_", "").isalpha() and name.islower())


def may_show_value(path: Path, text: str) -> bool:
    """Tell whether a value may stand in a source line: a known setting, no secret, nothing that could hold one."""
    if _VARIABLE.fullmatch(text):
        return True
    setting = field_at(path)
    if setting is None or looks_secret(text):
        return False
    extra = setting.json_schema_extra
    is_secret = isinstance(extra, dict) and bool(extra.get("writeOnly"))
    return not is_secret and not any(char in text for char in "@?=")


def safe_path_text(path: Path) -> str:
    """Write a path for a message, hiding names that may not be shown."""
    parts: list[str | int] = []
    for length, part in enumerate(path, 1):
        is_safe = isinstance(part, int) or may_show_name(path[:length])
        parts.append(part if is_safe else HIDDEN)
    return path_text(tuple(parts))
