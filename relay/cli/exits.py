"""What every command shares: exit codes, and where a configuration is looked for."""

import sys
from pathlib import Path
from typing import Final

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
