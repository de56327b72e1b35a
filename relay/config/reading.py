"""One walk over the nodes of a file: names checked, variables expanded, places noted; plain data comes out.

The data is made of dicts, lists, text and None. A value with a mistake becomes BROKEN and is told once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final

from relay.config.document import Listing, Node, NotYaml, Place, Scalar, Table, parse
from relay.config.lookup import home_of, names_below
from relay.config.problems import Path, did_you_mean
from relay.config.report import Part, Report, Span, safe_path_text
from relay.config.variables import expand

BROKEN: Final = object()
_BARE: Final = re.compile(r"\$[A-Z_][A-Z0-9_]*")
"""What a shell would take for a variable."""
_FEW: Final = 8
"""As many names as one reads in a message."""
_TABLES: Final = frozenset({("upstreams",), ("routes",), ("keys",), ("prices",)})
_WORDS: Final[Mapping[str, str]] = {"bool": "a boolean", "int": "a number", "float": "a number", "timestamp": "a date", "null": "nothing"}


def read(text: str, report: Report, environ: Mapping[str, str], folder: FilePath) -> object:
    """Return the data of `text`; what is wrong goes into `report`."""
    try:
        root = parse(text)
    except NotYaml as error:
        report.add_at(Place(error.line, error.column, error.line, error.column), (), error.message)
        return BROKEN
    if root is None or (isinstance(root, Scalar) and root.kind == "null"):
        report.add_at(None, (), "the file is empty; it needs at least `upstreams` and `routes`")
        return BROKEN
    return _Walk(report=report, environ=environ, folder=folder).value(root, ())


def _instead(name: str, path: Path, allowed: Sequence[str]) -> str:
    """Tell what was likely meant by a name that is no setting of the mapping at `path`."""
    home = home_of(name, path)
    if home is not None and not _is_slip(name, allowed):
        return f"; it belongs under `{safe_path_text(home)}`" if home else "; it belongs at the top of the file, beside `upstreams`"
    return did_you_mean(name, allowed) or (f"; here are {', '.join(allowed)}" if len(allowed) <= _FEW else "")


def _is_slip(name: str, allowed: Sequence[str]) -> bool:
    """Tell whether `name` is a neighbour's but for a plural: who writes `timeout` where `timeouts` may stand means that."""
    return f"{name}s" in allowed or (name.endswith("s") and name[:-1] in allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    report: Report
    environ: Mapping[str, str]
    folder: FilePath

    def value(self, node: Node, path: Path) -> object:
        self.report.values[path] = node.place
        if node.flaw:
            return self._broken(node, path, node.flaw)
        match node:
            case Scalar():
                return self._scalar(node, path)
            case Listing():
                return [self.value(item, (*path, index)) for index, item in enumerate(node.items)]
            case Table():
                return self._table(node, path)

    def _scalar(self, node: Scalar, path: Path) -> object:
        self.report.spans.append(Span(node.place, path, Part.VALUE, node.text))
        if node.kind == "null":
            if path in _TABLES or names_below(path) is not None:
                return {}  # `ollama:` says as much as `ollama: {}`
            return self._broken(node, path, "has no value")
        if _BARE.fullmatch(node.text):
            self.report.warn(path, "is taken as it stands; a variable is written ${NAME}, and $$ is a dollar sign")
        try:
            return expand(node.text, self.environ, self.folder)
        except ValueError as error:
            return self._broken(node, path, str(error))

    def _table(self, table: Table, path: Path) -> object:
        data: dict[str, object] = {}
        for name, value in table.pairs():
            inner = (*path, name.text) if isinstance(name, Scalar) else path
            if not isinstance(name, Scalar) or name.flaw:
                self.report.add_at(name.place, path, name.flaw or "a name must be text")
                continue
            self.report.spans.append(Span(name.place, inner, Part.NAME, name.text))
            flaw = self._name_flaw(name, inner, data)
            if flaw:
                self.report.add_at(name.place, inner, flaw)
                self.report.holed.add(path)
                self._hide(value)
                continue
            self.report.names[inner] = name.place
            data[name.text] = self.value(value, inner)
        return data

    def _name_flaw(self, name: Scalar, path: Path, before: Mapping[str, object]) -> str:
        if name.kind != "str":
            what = _WORDS.get(name.kind)
            if what is None:
                return "merge keys (<<) are not accepted; write it out"
            return f"YAML reads this name as {what}; put it in quotes"
        if name.text in before:
            return f"appears twice; the first is on line {self.report.names[path].line + 1}"
        allowed = names_below(path[:-1])
        if allowed is not None and name.text not in allowed:
            return "unknown setting" + ("" if self.report.is_full else _instead(name.text, path[:-1], allowed))
        return ""

    def _broken(self, node: Node, path: Path, message: str) -> object:
        self.report.add_at(node.place, path, message)
        self.report.broken.add(path)
        self._hide(node)
        return BROKEN

    def _hide(self, node: Node) -> None:
        """Note the scalars of a value that is not read, so that none of them is shown."""
        match node:
            case Scalar():
                self.report.spans.append(Span(node.place, (), Part.HIDDEN, ""))
            case Listing() | Table():
                for item in node.items:
                    self._hide(item)
