"""The composition root: makes every part, starts them, drains and stops them.

`application` puts the parts together, `reloading` swaps a configuration, `pages` are the relay's own paths, `listening`
binds the addresses, `process` is a relay as a process of its own with its signals.
"""

from relay.app.application import App
from relay.app.process import run

__all__ = ["App", "run"]
