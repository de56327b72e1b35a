"""A file to a tree: read, walked once, checked entry by entry, joined; all mistakes are told at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from relay.config.build import build
from relay.config.document import split_lines
from relay.config.listening import read_override
from relay.config.problems import ConfigInvalid, Problem
from relay.config.reading import BROKEN, read
from relay.config.report import Report
from relay.config.sections import validate
from relay.config.tree import Config

MAX_BYTES: Final = 2**20
"""A file for thousands of keys; more is not a configuration."""


def load(path: str, environ: Mapping[str, str], *, listen: str | None = None, reads_store: bool = True) -> Config:
    """Read `path`, with variables from `environ`; `listen` is the command line's word on where to listen; stored keys are left out
    unless `reads_store`.

    Relative file names in it begin at its folder. Raises ConfigInvalid, and nothing else, whatever the file holds.
    """
    override = read_override(listen, environ)
    text = read_text(path)
    report = Report(file=path, lines=split_lines(text))
    folder = Path(path).parent
    data = read(text, report, environ, folder)
    if data is BROKEN:
        report.raise_if_any()
    return build(validate(data, report), report, override=override, environ=environ, folder=folder, reads_store=reads_store)


def read_text(path: str) -> str:
    """Return the text of a configuration file. Raises ConfigInvalid."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigInvalid([Problem(file=path, path="", message=f"cannot be read: {reason or 'not a file name'}")]) from None
    if len(raw) > MAX_BYTES:
        raise ConfigInvalid([Problem(file=path, path="", message="is larger than 1 MiB")])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigInvalid([Problem(file=path, line=line, column=1, path="", message="is not UTF-8 text")]) from None
