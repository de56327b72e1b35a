"""YAML text to nodes that know their place, by PyYAML's events: nothing is constructed, expanded or recursed into.

Plain YAML only: an alias, an anchor, a tag or a merge key is a flaw of its node, and depth is bounded, so no document
costs more than its own length. Scalars keep the text
that stands in the file: `12:30`, `010` and `no` are never read as the numbers and booleans of YAML 1.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import yaml

MAX_DEPTH: Final = 32
"""Settings nest five deep; the rest of the way is for mistakes that deserve a better message than this bound."""

_CORE: Final = "tag:yaml.org,2002:"
_BREAK: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_Loader: Final = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in the text; lines and columns count from 0, the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """A text as written, and what YAML 1.1 takes it for: str, int, float, bool, null, timestamp, merge or value."""

    place: Place
    text: str
    kind: str
    flaw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A sequence."""

    place: Place
    items: list["Node"] = field(default_factory=list)
    flaw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A mapping: names and values in the order written, repeated names included."""

    place: Place
    items: list["Node"] = field(default_factory=list)
    """Name, value, name, value, ..."""
    flaw: str = ""

    def pairs(self) -> Iterator[tuple["Node", "Node"]]:
        """Yield (name, value)."""
        return zip(self.items[::2], self.items[1::2], strict=True)


Node = Scalar | Listing | Table


class NotYaml(Exception):
    """The text cannot be read as YAML at all. `line` and `column` count from 0."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


def split_lines(text: str) -> list[str]:
    """Split where YAML 1.1 counts a line: more kinds of break than a line feed, and fewer than `str.splitlines`."""
    return _BREAK.split(text)


def parse(text: str) -> Node | None:
    """Read one document; None when it is empty. Raises NotYaml."""
    try:
        loader = _Loader(text)
        try:
            return _compose(loader)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        raise NotYaml(_syntax_message(text, error, line), line, column) from None
    except yaml.YAMLError:
        raise NotYaml("not valid YAML: it holds a control character", 0, 0) from None


def _compose(loader: "yaml.CSafeLoader | yaml.SafeLoader") -> Node | None:
    root: list[Node] = []
    open_nodes: list[list[Node]] = [root]
    documents = 0
    while loader.check_event():
        event = loader.get_event()
        match event:
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    raise _refusal("a second document begins here; one file holds one", event)
            case yaml.AliasEvent():
                open_nodes[-1].append(
                    Scalar(place=_place(event), text="", kind="str", flaw="aliases (*name) are not accepted; write it out")
                )
            case yaml.ScalarEvent():
                open_nodes[-1].append(_scalar(loader, event))
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                if len(open_nodes) > MAX_DEPTH:
                    raise _refusal(f"nested more than {MAX_DEPTH} deep", event)
                make = Table if isinstance(event, yaml.MappingStartEvent) else Listing
                node = make(place=_place(event), flaw=_flaw(event))
                open_nodes[-1].append(node)
                open_nodes.append(node.items)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                open_nodes.pop()
            case _:
                continue
    return root[0] if root else None


def _scalar(loader: "yaml.CSafeLoader | yaml.SafeLoader", event: yaml.ScalarEvent) -> Scalar:
    if event.tag is not None:
        return Scalar(place=_place(event), text=event.value, kind="", flaw=_flaw(event))
    tag: str = loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]  # the stubs leave it bare
    return Scalar(place=_place(event), text=event.value, kind=tag.removeprefix(_CORE), flaw=_flaw(event))


def _flaw(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> str:
    if event.anchor is not None:
        return "anchors (&name) are not accepted"
    if event.tag is not None:
        return "tags (!name) are not accepted"
    return ""


def _place(event: yaml.Event) -> Place:
    start, end = event.start_mark, event.end_mark
    assert start is not None and end is not None  # a parser marks every event; only hand-made ones have none
    return Place(start.line, start.column, end.line, end.column)


def _refusal(message: str, event: yaml.Event) -> NotYaml:
    place = _place(event)
    return NotYaml(message, place.line, place.column)


def _syntax_message(text: str, error: yaml.MarkedYAMLError, line: int) -> str:
    lines = split_lines(text)
    source = lines[line] if line < len(lines) else ""
    about = f"{error.context or ''} {error.problem or ''}"
    what = "".join(char for char in error.problem or "unreadable here" if char.isprintable())
    if "alias" in about:
        return 'not valid YAML: a name or value that begins with * must be quoted, such as "*"'
    if "\t" in source[: len(source) - len(source.lstrip())]:
        return "not valid YAML: the line begins with a tab; indent with spaces"
    if "${" in source and "{" in source.replace("${", ""):
        return f'not valid YAML: {what}; inside {{ }} a variable must be quoted, such as "${{NAME}}"'
    return f"not valid YAML: {what}"
