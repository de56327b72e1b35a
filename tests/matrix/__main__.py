"""`python -m tests.matrix [--write]`: run the fault matrix and print its table; exit code 1 when a cell is not as it has to be."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fakes.relay import ROOT, RelayProcess
from tests.matrix.run import check, matrix_run
from tests.matrix.silence import check_written
from tests.matrix.table import page

PAGE = ROOT / "docs/fault-matrix.md"


def main() -> int:
    """Run, print, and check."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description="Run the fault matrix and print its table.")
    parser.add_argument("--write", action="store_true", help="write docs/fault-matrix.md too")
    options = parser.parse_args()
    text, failures = asyncio.run(_run())
    print(text)
    if options.write:
        PAGE.write_text(text)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


async def _run() -> tuple[str, list[str]]:
    with tempfile.TemporaryDirectory() as name:
        relays: list[RelayProcess] = []

        async def start(config: dict[str, Any]) -> RelayProcess:
            relay = RelayProcess(config, Path(name))
            relays.append(relay)
            return await relay.start()

        try:
            async with matrix_run(Path(name), start) as matrix:
                failures = []
                for cell, seen in zip(matrix.cells, matrix.seen, strict=True):
                    try:
                        check(cell, seen)
                    except Exception as error:
                        failures.append(f"{cell.name}: {type(error).__name__}: {error}; {seen.saw}; {seen.attempts}; {seen.line}")
                for place, data in matrix.written.items():
                    try:
                        check_written(place, data)
                    except AssertionError as error:
                        failures.append(f"{place}: {error}")
                return page(matrix.cells, matrix.seen), failures
        finally:
            for relay in relays:
                relay.kill()


if __name__ == "__main__":
    sys.exit(main())
