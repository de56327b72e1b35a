"""The observer of the usage ledger: what it sums up, what waits while the file fails, what is dropped and counted."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from relay.exchange import Operation, Outcome, Usage
from relay.telemetry import usage
from relay.telemetry.usage import UsageLog
from relay.usage import Amounts, Slot, UsageBroken
from tests.telemetry.summaries import attempt, ended

HOUR = 490_000


class Ledger:
    """Stands in for the file; adds wait while it is held, and fail while it is broken."""

    def __init__(self) -> None:
        self.sums: dict[Slot, Amounts] = {}
        self.forgotten: list[int] = []
        self.is_broken = False
        self.is_closed = False
        self.tries = threading.Semaphore(0)

    def add(self, sums: Mapping[Slot, Amounts], *, forget_before: int = 0) -> None:
        self.tries.release()
        if self.is_broken:
            raise UsageBroken("disk full")
        for slot, amounts in sums.items():
            before = self.sums.get(slot)
            self.sums[slot] = amounts if before is None else before.plus(amounts)
        if forget_before:
            self.forgotten.append(forget_before)

    def close(self) -> None:
        self.is_closed = True


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", fields))

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append(("error", fields))


class Bed:
    def __init__(self) -> None:
        self.ledger, self.log, self.now = Ledger(), Log(), HOUR * 3600.0
        self.usage = UsageLog(self.open, 24, self.log, unix_time=lambda: self.now)

    def open(self) -> Any:
        return self.ledger

    def written(self) -> dict[Slot, Amounts]:
        """Stop, and return all sums."""
        self.usage.close()
        return self.ledger.sums

    def wait_tries(self, count: int) -> None:
        for _ in range(count):
            assert self.ledger.tries.acquire(timeout=20)


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    monkeypatch.setattr(usage, "BATCH_SECONDS", 0.01)
    bed = Bed()
    yield bed
    bed.usage.close()


def used(**tokens: int) -> Any:
    made = attempt()
    made.meter.usage = Usage(**tokens)
    return made


def test_an_exchange_is_summed_up_with_its_names_and_tokens(bed: Bed) -> None:
    for _ in range(3):
        bed.usage.ended(*ended(Outcome.COMPLETE, used(input=10, output=5, cached=4, reasoning=2)))
    assert bed.written() == {Slot(HOUR, "alice", "fast", "mine", "good", "reported"): Amounts(3, 30, 15, 12, 6, 0)}
    assert bed.ledger.is_closed


@pytest.mark.parametrize(
    ("outcome", "result"), [(Outcome.COMPLETE, "good"), (Outcome.UPSTREAM_CUT, "bad"), (Outcome.CLIENT_GONE, "not_counted")]
)
def test_every_ending_counts_in_its_class(bed: Bed, outcome: Outcome, result: str) -> None:
    bed.usage.ended(*ended(outcome, attempt()))
    assert bed.written() == {Slot(HOUR, "alice", "fast", "mine", result, ""): Amounts(1, 0, 0, 0, 0, 0)}


def test_what_never_came_far_has_no_names(bed: Bed) -> None:
    bed.usage.ended(*ended(Outcome.UNAUTHORIZED, status=401, route=None, key=None))
    assert bed.written() == {Slot(HOUR, "", "", "", "not_counted", ""): Amounts(1, 0, 0, 0, 0, 0)}


def test_lists_of_models_are_nobodys_usage(bed: Bed) -> None:
    bed.usage.ended(*ended(Outcome.COMPLETE, operation=Operation.MODELS, route=None))
    assert bed.written() == {}


def test_old_hours_are_forgotten_once_an_hour(bed: Bed) -> None:
    bed.wait_tries(1)
    bed.usage.ended(*ended(Outcome.COMPLETE))
    bed.wait_tries(1)
    bed.now += 3600
    bed.wait_tries(1)
    bed.usage.ended(*ended(Outcome.COMPLETE))
    bed.written()
    assert bed.ledger.forgotten == [HOUR - 24, HOUR - 23]


def test_a_ledger_that_fails_keeps_sums_waiting_and_is_told_once(bed: Bed) -> None:
    bed.ledger.is_broken = True
    for _ in range(5):
        bed.usage.ended(*ended(Outcome.COMPLETE, used(input=1, output=1)))
        bed.wait_tries(2)
    bed.ledger.is_broken = False
    bed.wait_tries(1)
    assert bed.written() == {Slot(HOUR, "alice", "fast", "mine", "good", "reported"): Amounts(5, 5, 5, 0, 0, 0)}
    assert [(level, fields["result"]) for level, fields in bed.log.lines] == [("error", "waiting"), ("info", "ok")]
    assert "disk full" in bed.log.lines[0][1]["message"]
    assert bed.usage.dropped == 0


def test_a_ledger_that_cannot_be_opened_yet_is_opened_when_it_can(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = threading.Semaphore(0)

    def refuse() -> Any:
        tries.release()
        raise UsageBroken("no such folder")

    other = Bed.__new__(Bed)
    other.ledger, other.log = Ledger(), Log()
    other.usage = UsageLog(refuse, 24, other.log, unix_time=lambda: HOUR * 3600.0)
    other.usage.ended(*ended(Outcome.COMPLETE))
    assert all(tries.acquire(timeout=20) for _ in range(3))
    monkeypatch.setattr(other.usage, "_open", other.open)
    assert [amounts.requests for amounts in other.written().values()] == [1]
    assert [fields["result"] for _, fields in other.log.lines] == ["waiting", "ok"]


def test_sums_that_wait_are_bounded_and_the_rest_is_counted(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "WAITING_SLOTS", 3)
    bed.ledger.is_broken = True
    for number in range(5):
        bed.usage.ended(*ended(Outcome.COMPLETE, key=f"key-{number}"))
    bed.wait_tries(3)
    bed.usage.ended(*ended(Outcome.COMPLETE, key="key-0"))
    bed.wait_tries(2)
    assert bed.usage.dropped == 2
    bed.ledger.is_broken = False
    sums = bed.written()
    assert {slot.key: amounts.requests for slot, amounts in sums.items()} == {"key-0": 2, "key-1": 1, "key-2": 1}


def test_the_queue_is_bounded_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "BATCH_SECONDS", 3600.0)
    monkeypatch.setattr(usage, "QUEUE_ENTRIES", 10)
    bed = Bed()
    for _ in range(15):
        bed.usage.ended(*ended(Outcome.COMPLETE))
    assert bed.usage.dropped == 5
    assert [amounts.requests for amounts in bed.written().values()] == [10]
