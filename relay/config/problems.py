"""What is wrong with a configuration, and where: collected while it is read, told all at once, sorted by place.

A message never holds a value that could be a secret; the source line under it is shown through `excerpt`.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

Path = tuple[str | int, ...]
"""Where a setting stands: names of mappings and positions in lists, from the top."""

MAX_PROBLEMS: Final = 50
"""More than anyone reads; bounds the work a hostile file can cause."""
HIDDEN: Final = "***"
_MAX_NAME: Final = 64
_MAX_SEARCH: Final = 512
"""No message shows as much of anything; the search takes quadratic time."""
_CREDENTIAL: Final = re.compile(r"(?:^|[^A-Za-z0-9])(?:sk|pk|rk|gsk|xai|tgp|AIza)[-_A-Z0-9]|(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{40,}")
"""Prefixes that vendors give their keys, and long runs with a digit in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake. `line` and `column` count from 1; 0 for a mistake that stands in no file."""

    file: str
    line: int = 0
    column: int = 0
    path: str
    message: str
    excerpt: str = ""
    """The source line with every secret and comment left out, and a caret below; empty where none is shown."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        head = ": ".join(part for part in (where, self.path, self.message) if part)
        return f"{head}\n{self.excerpt}" if self.excerpt else head


class ConfigInvalid(Exception):
    """The configuration cannot be used; `problems` are all its mistakes, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = list(problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        if self.problems:
            count = len(self.problems)
            number = "1 problem" if count == 1 else f"{count} problems" if count < MAX_PROBLEMS else f"{count} problems, and perhaps more"
            lines.append(f"{self.problems[0].file}: {number}")
        return "\n".join(lines)

    __repr__ = __str__


def looks_secret(text: str) -> bool:
    """Tell whether `text` has the look of a credential, wherever it stands: people swap `api_key` and its neighbours."""
    return _CREDENTIAL.search(text[:_MAX_SEARCH]) is not None


def shown(name: str) -> str:
    """Return `name` fit for one line of a message: short, printing, and not if it looks like a credential."""
    if looks_secret(name):
        return HIDDEN
    text = "".join(char if char.isprintable() else "?" for char in name[: _MAX_NAME + 1])
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."


def path_text(path: Path) -> str:
    """Write a path as `upstreams.local.timeouts` or `cors_origins[1]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{shown(part)}" if text else shown(part)
    return text


def closest(word: str, words: Iterable[str]) -> str | None:
    """Return the one of `words` that `word` was most likely meant to be, or None."""
    if len(word) > _MAX_NAME:  # difflib takes quadratic time
        return None
    matches = difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.7)
    return matches[0] if matches else None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for a close one of `words`, else nothing."""
    match = closest(word, words)
    return f'; did you mean "{shown(match)}"?' if match is not None else ""
