"""A source line as a message may show it: names and harmless values as they stand, everything else as `***`.

The rule is an allow-list, because a mistake is often *where* a secret stands (`apikey: sk-...`): what is not known to be
harmless is not shown, comments never are, and the asterisks do not tell a length.
"""

from collections.abc import Sequence
from typing import Final

_STRUCTURE: Final = frozenset("{}[],:-\"'?|> \t")
_WIDTH: Final = 160


def excerpt(source: str, line: int, column: int, spans: Sequence[tuple[int, int, bool]]) -> str:
    """Render one line with a caret.

    `line` counts from 1, `column` from 0; `spans` are (start, end, may be shown) of the scalars in the line, in order.
    """
    out, caret = _masked(source, column, spans)
    begin = max(0, caret - _WIDTH + 40)
    return f"{line:>5} | {out[begin : begin + _WIDTH].rstrip()}\n      | {' ' * (caret - begin)}^"


def _masked(source: str, column: int, spans: Sequence[tuple[int, int, bool]]) -> tuple[str, int]:
    out = ""
    caret: int | None = None
    at = 0
    pending = list(spans)
    while at < len(source):
        if caret is None and at >= column:
            caret = len(out)
        while pending and pending[0][1] <= at:
            pending.pop(0)
        if pending and pending[0][0] <= at:
            end, is_shown = pending[0][1], pending[0][2]
            text = source[at:end]
            out += "".join(char if char.isprintable() else " " for char in text) if is_shown else "***"
            at = max(end, at + 1)
        elif source[at] == "#" and not pending:
            break
        elif source[at] in _STRUCTURE:
            out += " " if source[at] == "\t" else source[at]
            at += 1
        else:
            at = _end_of_run(source, at, pending[0][0] if pending else len(source))
            out += "***"
    return out, len(out) if caret is None else caret


def _end_of_run(source: str, at: int, limit: int) -> int:
    while at < limit and source[at] not in _STRUCTURE:
        at += 1
    return at
