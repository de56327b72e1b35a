"""YAML and environment to one frozen tree; the only room that reads either.

A file is read as events (`document`), walked once with variables expanded and places noted (`reading`), checked entry by
entry (`sections`, `models`), and joined into the tree with every reference looked up (`build`, `origins`, `tree`). What is
wrong is collected by place (`report`) and raised once, as ConfigInvalid. Without a file, `discovery` reads the environment.

What reads is imported when it is first asked for: it takes 12 MB that a process which is given its tree, or has it read by
another one (`apart`), does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from relay.config.discovery import discover
    from relay.config.loader import load
    from relay.config.problems import ConfigInvalid, Problem
    from relay.config.reference import reference
    from relay.config.schemas import schema
    from relay.config.tree import Config

__all__ = ["Config", "ConfigInvalid", "Problem", "discover", "load", "reference", "schema"]

_HOMES: Final = {
    "Config": "tree",
    "ConfigInvalid": "problems",
    "Problem": "problems",
    "discover": "discovery",
    "load": "loader",
    "reference": "reference",
    "schema": "schemas",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, above all since a module of the same name would otherwise stand in its place from now on.
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found
