"""The usage ledger: sums that add up whoever writes them, reports by anything, and every way to be broken told."""

import multiprocessing
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.usage import BY, SUMS, Amounts, Line, Slot, UsageBroken, UsageLedger, report

HOUR = 490_000
"""2025-11-24T16:00Z."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "usage.db")


def slot(**more: object) -> Slot:
    given = {"hour": HOUR, "key": "alice", "route": "fast", "upstream": "mine", "result": "good", "source": "reported", **more}
    return Slot(**given)  # type: ignore[arg-type]  # each test gives what fits


def amounts(requests: int = 1, input: int = 10, output: int = 5, cached: int = 2, reasoning: int = 1, cost: int = 7) -> Amounts:
    return Amounts(requests, input, output, cached, reasoning, cost)


def column(lines: list[Line], name: str) -> list[int]:
    return [line.sums[SUMS.index(name)] for line in lines]


def test_sums_grow_and_survive_the_ledger(path: str) -> None:
    for _ in range(3):
        ledger = UsageLedger(path)
        ledger.add({slot(): amounts(), slot(key="bob"): amounts(requests=2)})
        ledger.close()
    lines = report(path, ["key"], 0)
    assert [line.names for line in lines] == [("alice",), ("bob",)]
    assert column(lines, "requests") == [3, 6]
    assert column(lines, "input") == [30, 30]
    assert [column(lines, name)[0] for name in ("output", "cached", "reasoning", "cost")] == [15, 6, 3, 21]


def test_only_the_owner_may_read_the_ledger(path: str) -> None:
    ledger = UsageLedger(path)
    ledger.add({slot(): amounts()})
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in Path(path).parent.iterdir()}
    ledger.close()
    assert set(modes) >= {"usage.db", "usage.db-wal"}
    assert set(modes.values()) == {0o600}


def test_a_report_tells_by_anything_from_any_hour_on(path: str) -> None:
    ledger = UsageLedger(path)
    ledger.add(
        {
            slot(): amounts(),
            slot(hour=HOUR + 1, route="slow", result="bad", source=""): amounts(input=0, output=0),
            slot(hour=HOUR + 24, key="", upstream="other", result="not_counted", source="estimated"): amounts(),
        }
    )
    ledger.close()
    assert [line.names for line in report(path, ["day"], 0)] == [("2025-11-24",), ("2025-11-25",)]
    assert [line.names[0] for line in report(path, ["hour"], HOUR + 1)] == ["2025-11-24T17:00Z", "2025-11-25T16:00Z"]
    assert [line.names for line in report(path, ["route", "key"], 0)] == [("fast", ""), ("fast", "alice"), ("slow", "alice")]
    by_upstream = report(path, ["upstream"], 0)
    assert (column(by_upstream, "good"), column(by_upstream, "bad"), column(by_upstream, "requests")) == ([1, 0], [1, 0], [2, 1])
    assert column(by_upstream, "estimated") == [0, 15]
    for by in BY:
        assert sum(column(report(path, [by], 0), "requests")) == 3
    assert report(path, ["key"], HOUR + 25) == []


def test_hours_before_are_forgotten_and_no_others(path: str) -> None:
    ledger = UsageLedger(path)
    ledger.add({slot(hour=HOUR + number): amounts() for number in range(10)})
    ledger.add({}, forget_before=HOUR + 7)
    ledger.close()
    assert sum(column(report(path, ["key"], 0), "requests")) == 3


def _write(path: str, key: str) -> None:
    ledger = UsageLedger(path)
    for _ in range(50):
        ledger.add({slot(): amounts(), slot(key=key): amounts()})
    ledger.close()


def test_processes_that_write_at_once_lose_nothing(path: str) -> None:
    """They also make the file at once."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, f"key-{number}")) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    lines = report(path, ["key"], 0)
    assert dict(zip((line.names[0] for line in lines), column(lines, "requests"), strict=True)) == {
        "alice": 200,
        **{f"key-{number}": 50 for number in range(4)},
    }


SLOTS = st.builds(
    Slot,
    st.integers(HOUR, HOUR + 3),
    st.sampled_from(["", "alice", "bob", "O'Brien; DROP TABLE usage"]),
    st.sampled_from(["", "fast", "openai/*"]),
    st.just("mine"),
    st.sampled_from(["good", "bad", "not_counted"]),
    st.sampled_from(["", "reported", "estimated"]),
)
AMOUNTS = st.builds(Amounts, *[st.integers(0, 2**40)] * 6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(SLOTS, AMOUNTS, max_size=5), max_size=5))
def test_nothing_is_lost_however_it_is_told(tmp_path_factory: pytest.TempPathFactory, batches: list[dict[Slot, Amounts]]) -> None:
    path = str(tmp_path_factory.mktemp("ledger") / "usage.db")
    ledger = UsageLedger(path)
    for batch in batches:
        ledger.add(batch)
    ledger.close()
    every = [each for batch in batches for each in batch.values()]
    for by in (["key"], ["day", "route"], list(BY)):
        lines = report(path, by, 0)
        assert len({line.names for line in lines}) == len(lines)
        for name in Amounts._fields:
            assert sum(column(lines, name)) == sum(getattr(each, name) for each in every)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"something else " * 100, "cannot be used: file is not a database"), (None, "cannot be used: unable to open database file")],
    ids=["text", "folder"],
)
def test_what_is_no_ledger_is_refused(path: str, content: bytes | None, said: str) -> None:
    if content is None:
        Path(path).mkdir()
        said = "cannot be made: Is a directory"
    else:
        Path(path).write_bytes(content)
    with pytest.raises(UsageBroken, match=said):
        UsageLedger(path)


def test_another_database_is_left_as_it_is(path: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (name TEXT)")
    connection.commit()
    connection.close()
    before = Path(path).read_bytes()
    for use in (lambda: UsageLedger(path).close(), lambda: report(path, ["key"], 0)):
        with pytest.raises(UsageBroken, match="is no usage ledger"):
            use()
    assert Path(path).read_bytes() == before


def test_a_ledger_of_a_later_version_is_refused(path: str) -> None:
    UsageLedger(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UsageBroken, match="another version"):
        UsageLedger(path)


def test_a_missing_folder_and_a_missing_ledger_are_told(path: str) -> None:
    with pytest.raises(UsageBroken, match="cannot be made: No such file or directory"):
        UsageLedger(f"{path}/no/usage.db")
    with pytest.raises(UsageBroken, match="is not there"):
        report(path, ["key"], 0)


def test_a_failed_batch_leaves_nothing_half_written_and_can_be_repeated(path: str) -> None:
    ledger = UsageLedger(path)
    batch = {slot(): amounts(), slot(key="bob"): Amounts(None, 0, 0, 0, 0, 0)}  # type: ignore[arg-type]  # NOT NULL refuses it
    with pytest.raises(UsageBroken):
        ledger.add(batch)
    assert report(path, ["key"], 0) == []
    ledger.add({slot(): amounts()})
    ledger.close()
    assert column(report(path, ["key"], 0), "requests") == [1]
