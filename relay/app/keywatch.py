"""Follows the file of stored keys while the relay runs: a thread looks at its header, and reads it when that has changed.

A store that cannot be read leaves the keys in force as they are, and is told once.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.config.keystore import KeyStoreBroken, mark_of
from relay.config.stored import Made, with_stored
from relay.config.tree import Config, Key

LOOK_SECONDS: Final = 0.5
"""A change is in force within a second; one look takes some 20 us of a thread."""


class KeyWatch:
    """Hands the store's keys to the event loop whenever they are others."""

    def __init__(self, use: Callable[[Mapping[bytes, Key]], None], log: Any) -> None:
        """Call `use` on the loop that runs when `follow` is first called."""
        self._use = use
        self._log = log
        self._path: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_closing = False
        self._is_asked = False
        """Whether to read even what has not changed: somebody may have put older keys in force meanwhile."""
        self._mark: object = None
        self._known: Made = {}
        """What the last reading made: a change of one key costs one key, not all."""
        self._trouble: str | None = None

    def refreshed(self, config: Config) -> Config:
        """Return `config` with the keys that its store holds now: a worker may start long after its configuration was read."""
        if config.key_store is None:
            return config
        try:
            return with_stored(config, self._load(config.key_store))
        except KeyStoreBroken:  # the watch will tell it
            return config

    def _load(self, path: str) -> dict[bytes, Key]:
        from relay.config.keys import load_stored  # 12 MB with what it needs: only for who has a store

        return load_stored(path, self._known)

    def follow(self, path: str | None) -> None:
        """Watch the store at `path` from now on, none for None; what it holds now is handed over too."""
        self._path = path
        self._is_asked = True
        self._wake.set()
        if path is not None and self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="relay-keys", daemon=True)
            self._thread.start()

    def close(self, seconds: float = 2.0) -> None:
        """Stop; waits at most `seconds` for a look under way."""
        self._is_closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.clear()
            path = self._path
            if path is not None:
                self._look(path)
            self._wake.wait(LOOK_SECONDS)

    def _look(self, path: str) -> None:
        mark = (path, mark_of(path))
        if mark == self._mark and not self._is_asked:
            return
        self._is_asked = False
        try:
            keys = self._load(path)
        except KeyStoreBroken as broken:
            self._mark = None  # it may get well without any change, as when a lock is let go
            self._tell(str(broken))
            return
        self._mark = mark
        self._tell(None)
        assert self._loop is not None
        if not self._is_closing:
            self._loop.call_soon_threadsafe(self._hand_over, path, keys)

    def _hand_over(self, path: str, keys: Mapping[bytes, Key]) -> None:
        if path == self._path:
            self._use(keys)

    def _tell(self, trouble: str | None) -> None:
        if trouble == self._trouble:
            return
        if trouble is None:
            self._log.info("keys", result="ok", message="the file of keys can be read again")
        else:
            self._log.error("keys", result="refused", message=f"{trouble}; the keys in force stay")
        self._trouble = trouble
