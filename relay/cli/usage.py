"""`relay usage`: what was used, from the ledger that a relay writes."""

import argparse
import csv
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from relay.cli.exits import FAILED, OK, USAGE, find_file, say
from relay.cli.tables import table
from relay.cli.written import parse_span
from relay.config.outline import Outline, outline
from relay.config.problems import did_you_mean
from relay.usage import BY, HOUR, SUMS, Line, UsageBroken, report

_ABOUT: Final = (
    "Tell what was used, in sums by hour. cached is part of input, reasoning part of output; estimated is what of both was not"
    " reported by an upstream."
)
_BILLION: Final = 1_000_000_000
"""A ledger has billionths of a dollar."""


def add_parser(commands: Any) -> None:
    """Add `usage` to the commands."""
    usage = commands.add_parser("usage", help="tell what was used, by key, route, upstream or day", description=_ABOUT)
    usage.add_argument("--by", metavar="A,B", default="key", help=f"what to tell it by, of {', '.join(BY)} (default: key)")
    usage.add_argument("--since", metavar="SPAN", default="7d", help="how far to go back: 24h, 7d (default: 7d)")
    how = usage.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON")
    how.add_argument("--csv", action="store_true", help="as CSV")
    usage.add_argument("-c", "--config", metavar="FILE", help="configuration file")
    usage.add_argument("--store", metavar="FILE", help="file of the ledger; default: the one that the configuration names")
    usage.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    by = [word.strip() for word in options.by.split(",")]
    unknown = next((word for word in by if word not in BY), None)
    if unknown is not None:
        return _refuse(f"--by: expected some of {', '.join(BY)}{did_you_mean(unknown, BY)}")
    span = parse_span(options.since)
    if not span:
        return _refuse("--since: expected a span such as 24h, 7d or 30d")
    file: str | None = options.config or find_file()
    found = outline(file, os.environ) if file is not None and options.store is None else Outline(file="")
    if options.store is not None:
        found = replace(found, usage=options.store)
    if found.usage is None:
        return _refuse("no ledger: let the configuration have `usage: {store: usage.db}`, or name one with --store")
    if not Path(found.usage).exists():
        say(f"relay usage: {found.usage} is not there; a relay makes it when it starts")
        return FAILED
    try:
        lines = report(found.usage, by, int(time.time() - span) // HOUR)
    except UsageBroken as broken:
        say(f"relay usage: {broken}")
        return FAILED
    _print(by, lines, as_json=options.json, as_csv=options.csv)
    return OK


def _refuse(message: str) -> int:
    say(f"relay usage: {message}")
    return USAGE


def _print(by: Sequence[str], lines: Sequence[Line], *, as_json: bool, as_csv: bool) -> None:
    names = (*by, *("cost_usd" if name == "cost" else name for name in SUMS))
    rows = [(*line.names, *line.sums[:-1], line.sums[-1] / _BILLION) for line in lines]
    if as_json:
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
    elif as_csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
        print(text.getvalue(), end="")
    else:
        print(table(names, [_cells(line) for line in lines]))


def _cells(line: Line) -> tuple[str | int, ...]:
    return (*(name or "-" for name in line.names), *line.sums[:-1], f"{line.sums[-1] / _BILLION:.2f}")
