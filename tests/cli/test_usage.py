"""`relay usage`: a table, JSON or CSV of a ledger, and what is said when there is none."""

import csv
import io
import json
import time
from pathlib import Path

import pytest

from relay.cli import main
from relay.usage import Amounts, Slot, UsageLedger

NOW = int(time.time() // 3600)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder and home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def ledger() -> None:
    made = UsageLedger("usage.db")
    made.add(
        {
            Slot(NOW, "alice", "fast", "mine", "good", "reported"): Amounts(1200, 3_000_000, 500, 100, 50, 1_234_567_000),
            Slot(NOW, "alice", "slow", "mine", "bad", ""): Amounts(3, 0, 0, 0, 0, 0),
            Slot(NOW - 48, "bob", "fast", "other", "good", "estimated"): Amounts(1, 7, 8, 0, 0, 0),
            Slot(NOW, "", "", "", "not_counted", ""): Amounts(9, 0, 0, 0, 0, 0),
        }
    )
    made.close()


def test_the_table_is_by_key_and_lines_up(ledger: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--store", "usage.db"]) == 0
    assert capsys.readouterr() == (
        "key    requests   good  bad      input  output  cached  reasoning  estimated  cost_usd\n"
        "-             9      0    0          0       0       0          0          0  0.00\n"
        "alice     1,203  1,200    3  3,000,000     500     100         50          0  1.23\n"
        "bob           1      1    0          7       8       0          0         15  0.00\n",
        "",
    )


def test_the_ledger_of_the_configuration_is_found_without_its_environment(ledger: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("relay.yaml").write_text('usage: {store: "${LEDGER:-usage.db}"}\nupstreams: {openai: {api_key: "${OPENAI_API_KEY}"}}\n')
    assert main(["usage", "--by", "upstream,key", "--since", "24h", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    told = [(row["upstream"], row["key"], row["requests"], row["cost_usd"]) for row in rows]
    assert told == [("", "", 9, 0.0), ("mine", "alice", 1203, 1.234567)]


def test_csv_can_be_read_by_others(ledger: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--store", "usage.db", "--by", "route", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    told = {row["route"]: (row["requests"], row["input"]) for row in rows}
    assert told == {"": ("9", "0"), "fast": ("1201", "3000007"), "slow": ("3", "0")}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--by", "keys"], 2, '--by: expected some of key, route, upstream, source, day, hour; did you mean "key"?'),
        (["--by", ""], 2, "--by: expected some of"),
        (["--since", "yesterday"], 2, "--since: expected a span such as 24h"),
        (["--since", "0s"], 2, "--since: expected a span"),
        (["--json", "--csv"], 2, "not allowed with argument"),
        ([], 2, "no ledger: let the configuration have `usage: {store: usage.db}`"),
        (["--store", "gone.db"], 1, "relay usage: gone.db is not there; a relay makes it when it starts"),
        (["--store", "other.db"], 1, "other.db cannot be used: file is not a database"),
        (["-c", "gone.yaml"], 78, "gone.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_told_is_said_on_stderr(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.db").write_text("something else " * 100)
    assert main(["usage", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert not Path("gone.db").exists()
