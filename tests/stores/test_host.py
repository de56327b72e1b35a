"""Limits shared by the processes of one machine: exact between them, and nothing lost with a process that is killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.config.tree import Budget, Limits, Period
from relay.policy.accounts import ACCOUNT_CELLS
from relay.policy.limits import Demand, Grant, Refusal, Scope
from relay.stores.host import SPIN_SECONDS, WAIT_SECONDS, HostTable, StateFileUnusable
from relay.stores.ledger import Ledger
from relay.stores.table import Full

ROOT = Path(__file__).parents[2]


class Worker:
    """One of several processes on the same limits."""

    def __init__(self, directory: Path, told: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "tests.stores.worker", str(directory), json.dumps(told)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> int:
        self.tell(line)
        return int(self.hear())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(directory: Path, count: int, **told: Any) -> Iterator[list[Worker]]:
    crew = [Worker(directory, told) for _ in range(count)]
    try:
        for each in crew:
            assert each.hear() == "ready"
        yield crew
    finally:
        for each in crew:
            each.close()


def together(crew: list[Worker], line: str) -> list[int]:
    for each in crew:
        each.tell(line)
    return [int(each.hear()) for each in crew]


def test_four_processes_let_exactly_the_limit_in(tmp_path: Path) -> None:
    with workers(tmp_path, 4, rpm=100) as crew:
        for attempt in range(3):
            together(crew, f"scope {attempt}")
            assert sum(together(crew, "admit 400")) == 100


def test_four_processes_never_hold_more_slots_than_there_are(tmp_path: Path) -> None:
    with workers(tmp_path, 4, concurrency=3) as crew:
        most = together(crew, "churn 3000")
        assert max(most) == 3
        assert together(crew, "sweep") == [0] * 4
        assert sum(together(crew, "admit 5")) == 3


def test_slots_of_a_killed_process_come_back_with_the_next_sweep(tmp_path: Path) -> None:
    with workers(tmp_path, 3, concurrency=10, budget=1000) as (first, second, third):
        assert (first.ask("admit 10"), second.ask("admit 1")) == (10, 0)
        first.kill()
        assert second.ask("admit 1") == 0, "not before anybody looks"
        assert third.ask("sweep") == 0
        assert second.ask("admit 20") == 10
        assert together([second, third], "sweep") == [0, 0]


def test_a_process_that_is_only_stopped_keeps_what_it_holds(tmp_path: Path) -> None:
    with workers(tmp_path, 2, concurrency=10) as (first, second):
        assert first.ask("admit 10") == 10
        first.process.send_signal(signal.SIGSTOP)
        assert second.ask("sweep") == 0
        assert second.ask("admit 1") == 0
        first.process.send_signal(signal.SIGCONT)
        assert first.ask("settle") == 10
        assert second.ask("admit 20") == 10


def test_a_process_killed_with_the_lock_in_hand_leaves_right_sums(tmp_path: Path) -> None:
    with workers(tmp_path, 2, concurrency=10) as (first, second):
        assert (first.ask("admit 4"), second.ask("admit 2")) == (4, 2)
        assert first.ask("die") == 0
        first.kill()
        assert second.ask("sweep") == 0
        assert second.ask("admit 20") == 8


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_process_stopped_with_the_lock_in_hand_holds_nobody_up(tmp_path: Path, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.stores.host.START_WAIT_SECONDS", 0.1)
    with workers(tmp_path, 3, concurrency=10, budget=1000) as (first, second, third):
        assert (first.ask("admit 4"), second.ask("admit 2")) == (4, 2)
        assert first.ask("die") == 0
        first.process.send_signal(signal.SIGSTOP)
        # Of the four slots left nobody may have more than a third, rounded down.
        assert (second.ask("admit 500"), third.ask("admit 500")) == (1, 1)
        assert second.ask("settle") == 3
        assert second.ask("admit 500") == 3, "what it gave back, and its part of the rest"
        assert (second.ask("sweep"), third.ask("sweep")) == (0, 0), "the books balance all the same"
        assert max(second.ask("longest"), third.ask("longest")) < 10 * SPIN_SECONDS * 1000
        with pytest.raises(StateFileUnusable, match="does not go on"):
            HostTable(tmp_path)
        if goes_on:
            first.tell("go on")
            first.process.send_signal(signal.SIGCONT)
            assert first.ask("sweep") == 0
        else:
            first.kill()
        # Both have to enter what they let in before anybody admits from the whole.
        assert together([second, third], "sweep") == [0, 0]
        assert together([second, third], "sweep") == [0, 0], "a killed one's slots are free now"
        assert third.ask("admit 20") == (2 if goes_on else 6)
        assert second.ask("settle") == 3
        assert third.ask("admit 20") == 3
        assert together([second, third], "sweep") == [0, 0]


def test_whoever_lets_requests_in_by_itself_keeps_the_others_from_the_whole_until_it_has_said_so(tmp_path: Path) -> None:
    with workers(tmp_path, 3, rpm=9) as (first, second, third):
        assert (first.ask("admit 1"), third.ask("admit 1")) == (1, 1)
        assert first.ask("die") == 0
        assert second.ask("admit 500") == 2, "a third of the rest"
        second.process.send_signal(signal.SIGSTOP)
        first.tell("go on")
        began_at = time.monotonic()
        third.tell("admit 1")
        time.sleep(WAIT_SECONDS / 5)
        second.process.send_signal(signal.SIGCONT)
        assert second.ask("sweep") == 0
        assert third.hear() == "1"
        assert third.ask("admit 500") == 4, "what the second let in counts"
        assert time.monotonic() - began_at < 10 * WAIT_SECONDS


def test_a_process_that_counts_by_itself_and_is_stopped_holds_nobody_up_for_long(tmp_path: Path) -> None:
    with workers(tmp_path, 3, rpm=9) as (first, second, third):
        assert (first.ask("admit 3"), first.ask("die")) == (3, 0)
        assert second.ask("admit 500") == 2
        second.process.send_signal(signal.SIGSTOP)
        first.tell("go on")
        assert third.ask("admit 2") == 2, "after a moment"
        second.process.send_signal(signal.SIGCONT)
        assert second.ask("sweep") == 0
        assert third.ask("admit 500") == 2


def test_what_was_spent_and_the_running_minute_survive_a_restart(tmp_path: Path) -> None:
    with workers(tmp_path, 1, rpm=5, budget=7) as (only,):
        assert only.ask("admit 3") == 3
        only.kill()
    with workers(tmp_path, 1, rpm=5, budget=7) as (only,):
        assert only.ask("admit 5") == 2, "the minute goes on"
    with workers(tmp_path, 1, budget=7) as (only,):
        assert only.ask("admit 5") == 2, "three of the killed one and two of the next are spent"


class Clock:
    def __init__(self) -> None:
        self.now = 10_000_000

    def __call__(self) -> int:
        return self.now


LIMITED = Demand(scopes=(Scope(limits=Limits(rpm=1, budget=Budget(amount=2, is_money=False, period=Period.MONTH)), key="a"),), tokens=1)


async def test_minutes_end_with_the_machines_restart_and_budgets_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("relay.stores.host.monotonic_ms", clock)
    for expected in (Grant, Grant, Refusal):
        ledger = Ledger(HostTable(tmp_path), now=clock)
        answer = await ledger.admit(LIMITED)
        assert isinstance(answer, expected)
        if isinstance(answer, Grant):
            assert isinstance(await ledger.admit(LIMITED), Refusal)
            ledger.settle(answer, 1, 0)
        ledger.close()
        clock.now //= 10
    assert isinstance(answer, Refusal)
    assert answer.limit == "budget"


async def test_many_accounts_are_found_again_by_another_process(tmp_path: Path) -> None:
    scopes = [Scope(limits=Limits(rpm=1), key=f"key-{number}") for number in range(150)]
    first, second = Ledger(HostTable(tmp_path)), Ledger(HostTable(tmp_path))
    for index, scope in enumerate(scopes):
        asker = (first, second)[index % 2]
        assert isinstance(await asker.admit(Demand(scopes=(scope,), tokens=0)), Grant)
    for scope in scopes:
        for ledger in (first, second):
            assert isinstance(await ledger.admit(Demand(scopes=(scope,), tokens=0)), Refusal)
    room, whole = (tmp_path / "limits").stat().st_blocks * 512, 150 * 8 * ACCOUNT_CELLS
    assert whole <= room <= whole + 2 * 2**20, "accounts have their room before anything is counted in it, and nothing else has any"
    first.close()
    second.close()


def test_files_are_for_nobody_else_to_read(tmp_path: Path) -> None:
    table = HostTable(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in (tmp_path / "new").iterdir()} == {0o600}
    table.close()


def test_a_full_disk_stops_a_start_with_a_message_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _no_room)
        with pytest.raises(StateFileUnusable, match="limits: No space left on device"):
            HostTable(tmp_path)
    HostTable(tmp_path).close()


def test_a_disk_that_is_full_later_has_no_account_for_newcomers_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = HostTable(tmp_path)
    table.enter()
    table.account("key:before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _no_room)
        table.account("key:before").cells[0] += 1
        with pytest.raises(Full):
            table.account("key:late")
    assert table.account("key:late").cells[0] == 0
    table.leave()
    used = 512 * (tmp_path / "limits").stat().st_blocks
    assert used >= 2 * 8 * ACCOUNT_CELLS  # what could be written to has its room already
    table.close()


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("content", [b"short", b"x" * 100_000])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "limits").write_bytes(content)
    with pytest.raises(StateFileUnusable, match="move it away"):
        HostTable(tmp_path)
    assert (tmp_path / "limits").read_bytes() == content
