"""What every command shares: exit codes, standard files, and where a configuration is looked for."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final, TextIO

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
BAD_CONFIG: Final = 78
INTERRUPTED: Final = 130

PLACES: Final = ("relay.yaml", "config/relay.yaml", "~/.config/relay/relay.yaml")


def find_file() -> str | None:
    """Return the first configuration file in the usual places."""
    return next((str(path) for place in PLACES if (path := Path(place).expanduser()).is_file()), None)


def say(text: str) -> None:
    """Tell a person something that is not the command's result."""
    print(text, file=sys.stderr)


def give_up(file: TextIO) -> None:
    """Let nothing more be written to `file`, so that the interpreter does not complain of the rest at its end."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: there was none to begin with
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def hold_standard_files() -> None:
    """Let the null device stand in for standard files that were closed before the start.

    What is opened next would get their numbers, and write into a socket what was meant for people; libuv ends the process for that.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free, which is this one
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
