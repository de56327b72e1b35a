"""Tables for people: columns as wide as their widest cell, numbers to the right."""

from collections.abc import Sequence


def table(names: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    """Return the lines of a table; integers stand at the right of their column, with their thousands parted."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    is_number = [bool(rows) and all(isinstance(row[index], int) for row in rows) for index in range(len(names))]
    widths = [max(len(row[index]) for row in [list(names), *cells]) for index in range(len(names))]
    lines = []
    for row in [list(names), *cells]:
        parts = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, is_number, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)
