"""The fault matrix as a page: one table row per cell, in words that are the same on every run."""

from tests.matrix.cells import Cell, Kind
from tests.matrix.run import Seen

HEAD = """\
# The fault matrix

What the official `openai` Python SDK (`max_retries=0`) sees of each fault, asked as a stream and not, with one target and with a second
one to fall back on; and how the relay counts and logs it. This page is what `make matrix` printed; a test holds it against a run.

In every cell the log line, the counters, the warnings about attempts, the headers of the answer and the requests that reached the
upstreams agree. *first* and *second* are the targets of the route, in its order; *n* is three events of a stream, or 2.3 s of an answer
without streaming: longer than one is held.

Faults by their ids: [faults.md](faults.md). Outcomes and codes: [errors.md](errors.md).
"""
TITLES = {
    Kind.MENDED: "Before the commit: another target mends it",
    Kind.BROKEN: "After the commit: an exception, never another target",
    Kind.PASSED: "Passed on as it is",
    Kind.CALLERS: "The caller's own mistake",
    Kind.LEFT: "The client leaves",
}
COLUMNS = ("fault", "request", "targets", "the SDK saw", "status", "outcome", "attempts")


def page(cells: list[Cell], seen: list[Seen]) -> str:
    """Return the whole page, in Markdown."""
    parts = [HEAD]
    for kind, title in TITLES.items():
        rows = [_row(cell, each) for cell, each in zip(cells, seen, strict=True) if cell.fault.kind is kind]
        lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows)]
        parts += [f"## {title}\n", "\n".join(lines) + "\n"]
    return "\n".join(parts)


def _row(cell: Cell, seen: Seen) -> tuple[str, ...]:
    attempts = ", ".join(f"{target}: {result}" for target, result in seen.attempts)
    return (
        cell.fault.name,
        cell.shape,
        "with fallback" if cell.has_fallback else "single",
        seen.saw if seen.error is None else f"broken cell: {type(seen.error).__name__}",
        str(seen.status) if seen.status is not None and cell.fault.leaves is None else "",
        f"`{seen.line.get('outcome', '?')}`",
        attempts,
    )
