"""YAML and environment to one frozen tree; the only room that reads either.

A file is read as events (`document`), walked once with variables expanded and places noted (`reading`), checked entry by
entry (`sections`, `models`), and joined into the tree with every reference looked up (`build`, `origins`, `tree`). What is
wrong is collected by place (`report`) and raised once, as ConfigInvalid. Without a file, `discovery` reads the environment.
"""

from relay.config.discovery import discover
from relay.config.loader import load
from relay.config.problems import ConfigInvalid, Problem
from relay.config.reference import reference
from relay.config.schemas import schema
from relay.config.tree import Config

__all__ = ["Config", "ConfigInvalid", "Problem", "discover", "load", "reference", "schema"]
