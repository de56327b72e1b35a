"""The file of stored keys: an SQLite database that `relay keys` writes and a running relay reads.

It holds each key's settings as the configuration would have them, its hash included; the key itself is nowhere. The journal is
SQLite's plain one, not a write-ahead log: everything is in one file, so that its mode says who may read it, it can be mounted
by itself and read-only, and its header alone tells that something has changed. Nobody writes often enough to need more.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    import sqlite3  # imported where it is used: most relays open no file, and it takes more than a megabyte

MODE: Final = 0o600
_APPLICATION: Final = 0x72_6C_6B_79
"""`rlky`: SQLite's mark of whose file this is."""
_VERSION: Final = 1
_READ_SECONDS: Final = 1.0
_WRITE_SECONDS: Final = 5.0
"""How long to wait for another command that is writing."""
_HEADER_BYTES: Final = 100
"""SQLite's header; byte 24 begins a counter that every commit changes (file format 1.3.7)."""
_TABLE: Final = "CREATE TABLE keys (name TEXT PRIMARY KEY, id TEXT NOT NULL, settings TEXT NOT NULL, created_at INTEGER NOT NULL)"


class KeyStoreBroken(Exception):
    """The store cannot be used; the message says why and what to do, and holds no secret."""


class KeyExists(Exception):
    """There is a key of that name already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """One key as stored."""

    name: str
    id: str
    """The public part of the key that was issued last."""
    settings: Mapping[str, object] = field(repr=False)
    """What would stand under its name in the configuration, as text."""
    created_at: int
    """Unix time."""


def read_store(path: str) -> list[StoredKey]:
    """Return every key, by name. Raises KeyStoreBroken."""
    with _broken_as_said(path), contextlib.closing(_open(path, _READ_SECONDS)) as connection:
        rows = connection.execute("SELECT name, id, settings, created_at FROM keys ORDER BY name").fetchall()
        return [StoredKey(name=name, id=id_, settings=json.loads(settings), created_at=at) for name, id_, settings, at in rows]


def read_settings(path: str) -> list[tuple[str, str]]:
    """Return the name of every key and its settings as they are stored, by name. Raises KeyStoreBroken."""
    with _broken_as_said(path), contextlib.closing(_open(path, _READ_SECONDS)) as connection:
        return connection.execute("SELECT name, settings FROM keys ORDER BY name").fetchall()


def parse_settings(path: str, text: str) -> Mapping[str, object]:
    """Return stored settings as what the configuration would have. Raises KeyStoreBroken."""
    with _broken_as_said(path):
        settings: Mapping[str, object] = json.loads(text)
        return settings


def mark_of(path: str) -> tuple[int, bytes] | None:
    """Return what changes whenever the store does; None when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return os.fstat(file.fileno()).st_ino, file.read(_HEADER_BYTES)
    except OSError:
        return None


def store_flaw(path: str) -> str | None:
    """Tell what is unwise about the store's file, or None."""
    mode = stat.S_IMODE(Path(path).stat().st_mode)
    return f"{path} may be read by others than its owner: chmod 600 it" if mode & 0o077 else None


class KeyStore:
    """The store, to be changed. Every method is one transaction and raises KeyStoreBroken."""

    def __init__(self, path: str) -> None:
        self._path = path

    def create(self) -> None:
        """Make the file where there is none; only its owner may read it."""
        import sqlite3

        with _broken_as_said(self._path):
            try:
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, MODE))
            except FileExistsError:
                return
            with contextlib.closing(sqlite3.connect(self._path, timeout=_WRITE_SECONDS)) as connection, connection:
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.execute(_TABLE)

    def add(self, key: StoredKey) -> None:
        """Add a key. Raises KeyExists."""
        import sqlite3

        with self._change() as connection:
            try:
                connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (key.name, key.id, _encode(key.settings), key.created_at))
            except sqlite3.IntegrityError:
                raise KeyExists from None

    def replace(self, key: StoredKey) -> None:
        """Give a key that is there other settings and the id of the key issued last."""
        with self._change() as connection:
            connection.execute("UPDATE keys SET id = ?, settings = ? WHERE name = ?", (key.id, _encode(key.settings), key.name))

    @contextlib.contextmanager
    def _change(self) -> "Iterator[sqlite3.Connection]":
        with _broken_as_said(self._path), contextlib.closing(_open(self._path, _WRITE_SECONDS)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection


def _open(path: str, seconds: float) -> "sqlite3.Connection":
    """Open a store that is there. Also to read it: what a killed writer left half done has to be rolled back."""
    import sqlite3

    connection = sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=seconds)
    try:
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        if application != _APPLICATION:
            raise KeyStoreBroken(f"{path} is no file of keys")
        if version != _VERSION:
            raise KeyStoreBroken(f"{path} was written by another version of relay")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _broken_as_said(path: str) -> Iterator[None]:
    import sqlite3

    try:
        yield
    except sqlite3.Error as error:
        if not Path(path).exists():
            raise KeyStoreBroken(f"{path} is not there; make it with its first key: relay keys new NAME --store {path}") from None
        raise KeyStoreBroken(f"{path} cannot be used: {error}") from None
    except OSError as error:
        raise KeyStoreBroken(f"{path} cannot be made: {error.strerror}") from None
    except ValueError:
        raise KeyStoreBroken(f"{path} holds a key whose settings cannot be read") from None


def _encode(settings: Mapping[str, object]) -> str:
    return json.dumps(settings, separators=(",", ":"))
