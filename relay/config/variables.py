"""`${NAME}` and its kin in values: one pass over text that YAML has already been read from, so a value never adds YAML.

`${NAME}`, `${NAME:-default}`, `${NAME:?why}`, `${file:/path}`, and `$$` for a dollar sign. A bare `$NAME` is left alone.
What a variable or file holds is never looked at again for further variables, and never stands in a message.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from relay.config.problems import did_you_mean, shown

MAX_FILE: Final = 64 * 1024
_DOLLAR: Final = re.compile(r"\$\$|\$\{([^}]*)(\}?)")
_VARIABLE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::([-?])(.*))?", re.DOTALL)
_FORMS: Final = "expected ${NAME}, ${NAME:-default}, ${NAME:?why} or ${file:/path}; write $$ for a dollar sign"


def expand(text: str, environ: Mapping[str, str], folder: Path) -> str:
    """Replace every variable in `text`; relative files are looked for in `folder`.

    Raises ValueError with a message that names the variable or the file and no value.
    """
    if "$" not in text:
        return text
    return _DOLLAR.sub(lambda found: _value(found, environ, folder), text)


def read_small_file(path: Path, *, limit: int = MAX_FILE) -> str:
    """Read a text file of at most `limit` bytes, without its last line break. Raises ValueError."""
    name = shown(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"file {name} cannot be read: {error.strerror or 'unknown reason'}") from None
    if len(raw) > limit:
        raise ValueError(f"file {name} is larger than {limit // 1024} KiB")
    try:
        return raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"file {name} is not UTF-8 text") from None


def _value(found: re.Match[str], environ: Mapping[str, str], folder: Path) -> str:
    if found[0] == "$$":
        return "$"
    if not found[2]:
        raise ValueError(f"a ${{ is not closed; {_FORMS}")
    if found[1].startswith("file:"):
        name = found[1].removeprefix("file:")
        if not name or not name.isprintable():
            raise ValueError(_FORMS)
        return read_small_file(folder / name)
    variable = _VARIABLE.fullmatch(found[1])
    if variable is None:
        raise ValueError(_FORMS)
    return _from_environment(variable[1], variable[2], variable[3], environ)


def _from_environment(name: str, form: str | None, rest: str | None, environ: Mapping[str, str]) -> str:
    value = environ.get(name)
    if value:
        return value
    if form == "-":
        return rest or ""
    state = "is not set" if value is None else "is set but empty"
    if form == "?" and rest:
        raise ValueError(f"environment variable {name} {state}: {shown(rest)}")
    hint = did_you_mean(name, environ) if value is None else f"; write ${{{name}:-}} where nothing is meant"
    raise ValueError(f"environment variable {name} {state}{hint}")


def commit_of(environ: Mapping[str, str]) -> str:
    """Return the commit that RELAY_COMMIT names, `unknown` where it names none: whoever builds an image sets it."""
    commit = environ.get("RELAY_COMMIT", "")
    return commit.lower() if _COMMIT.fullmatch(commit) else "unknown"


_COMMIT: Final = re.compile(r"[0-9A-Fa-f]{7,64}")
"""A hash of Git, whole or shortened; anything else would be a label that anybody may fill."""
