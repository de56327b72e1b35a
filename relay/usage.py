"""The usage ledger: an SQLite file of hourly sums, by key, route, upstream, how requests ended and how their tokens are known.

Several processes may write it at once, and others read it meanwhile: hence the write-ahead log. A sum grows by what is
added, in one statement, so nobody has to know what others have written. What was added survives the process that added it
at once, and the machine after the next checkpoint.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:
    import sqlite3  # imported where it is used: most relays open no file, and it takes more than a megabyte

MODE: Final = 0o600
HOUR: Final = 3600
_APPLICATION: Final = 0x72_6C_79_75
"""`rlyu`: SQLite's mark of whose file this is."""
_VERSION: Final = 1
_WAIT_SECONDS: Final = 2.0
"""How long to wait for another process that is writing; it takes milliseconds."""
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS usage (
    hour INTEGER NOT NULL, key TEXT NOT NULL, route TEXT NOT NULL, upstream TEXT NOT NULL, result TEXT NOT NULL, source TEXT NOT NULL,
    requests INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL, cached INTEGER NOT NULL, reasoning INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    PRIMARY KEY (hour, key, route, upstream, result, source)
) WITHOUT ROWID
"""
_ADD: Final = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, input = input + excluded.input, output = output + excluded.output,
    cached = cached + excluded.cached, reasoning = reasoning + excluded.reasoning, cost = cost + excluded.cost
"""
_BY: Final[Mapping[str, str]] = {
    "key": "key",
    "route": "route",
    "upstream": "upstream",
    "source": "source",
    "day": "strftime('%Y-%m-%d', hour * 3600, 'unixepoch')",
    "hour": "strftime('%Y-%m-%dT%H:00Z', hour * 3600, 'unixepoch')",
}
_SUMS: Final[Mapping[str, str]] = {
    "requests": "sum(requests)",
    "good": "sum(requests * (result = 'good'))",
    "bad": "sum(requests * (result = 'bad'))",
    "input": "sum(input)",
    "output": "sum(output)",
    "cached": "sum(cached)",
    "reasoning": "sum(reasoning)",
    "estimated": "sum((input + output) * (source = 'estimated'))",
    "cost": "sum(cost)",
}
BY: Final = tuple(_BY)
"""What sums can be told by."""
SUMS: Final = tuple(_SUMS)
"""The columns of a report after what it is told by. `cached` is part of `input`, `reasoning` of `output`, `estimated` of both."""


class UsageBroken(Exception):
    """The ledger cannot be used; the message says why."""


class Slot(NamedTuple):
    """What is summed up together. Names are empty where there was none."""

    hour: int
    """Hours since the beginning of Unix time."""
    key: str
    route: str
    upstream: str
    result: str
    """good, bad or not_counted."""
    source: str
    """How tokens are known: reported, drained, estimated, or empty when they are not."""


class Amounts(NamedTuple):
    """What is summed up."""

    requests: int
    input: int
    output: int
    cached: int
    reasoning: int
    cost: int
    """Billionths of a US dollar."""

    def plus(self, other: "Amounts") -> "Amounts":
        """Return the sum of both."""
        return Amounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a report: the values it is told by, and the sums, in the order of SUMS."""

    names: tuple[str, ...]
    sums: tuple[int, ...]


class UsageLedger:
    """The ledger, to be written. Made by one thread and used by another, never by two at once."""

    def __init__(self, path: str) -> None:
        """Open the file, make it where there is none. Raises UsageBroken."""
        self._path = path
        with _broken_as_said(path):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, MODE))
            self._connection = _open(path)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        connection = self._connection
        ((objects,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        if objects:
            _check(connection, self._path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute(_TABLE)
        connection.execute("COMMIT")

    def add(self, sums: Mapping[Slot, Amounts], *, forget_before: int = 0) -> None:
        """Add to the sums, all or none, and forget all hours before `forget_before`. Raises UsageBroken."""
        with _broken_as_said(self._path), self._transaction() as connection:
            connection.executemany(_ADD, [(*slot, *amounts) for slot, amounts in sums.items()])
            if forget_before:
                connection.execute("DELETE FROM usage WHERE hour < ?", (forget_before,))

    @contextlib.contextmanager
    def _transaction(self) -> "Iterator[sqlite3.Connection]":
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def report(path: str, by: Sequence[str], since: int) -> list[Line]:
    """Return the sums of all hours from `since` on, told by some of BY and ordered by them. Raises UsageBroken."""
    names = [_BY[each] for each in by]
    columns = ", ".join([*names, *_SUMS.values()])
    order = ", ".join(str(index + 1) for index in range(len(names)))
    # Nothing in it comes from outside: the names are looked up in a table.
    query = f"SELECT {columns} FROM usage WHERE hour >= ? GROUP BY {order} ORDER BY {order}"  # noqa: S608
    with _broken_as_said(path), contextlib.closing(_open(path)) as connection:
        _check(connection, path)
        rows = connection.execute(query, (since,)).fetchall()
    return [Line(names=tuple(row[: len(names)]), sums=tuple(row[len(names) :])) for row in rows]


def _open(path: str) -> "sqlite3.Connection":
    import sqlite3

    uri = f"file:{quote(path)}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)


def _check(connection: "sqlite3.Connection", path: str) -> None:
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    if application != _APPLICATION:
        raise UsageBroken(f"{path} is no usage ledger")
    if version != _VERSION:
        raise UsageBroken(f"{path} was written by another version of relay")


@contextlib.contextmanager
def _broken_as_said(path: str) -> Iterator[None]:
    import sqlite3

    try:
        yield
    except sqlite3.Error as error:
        raise UsageBroken(f"{path} {'cannot be used' if Path(path).exists() else 'is not there'}: {error}") from None
    except OSError as error:
        raise UsageBroken(f"{path} cannot be made: {error.strerror}") from None
