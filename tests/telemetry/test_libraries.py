"""What libraries say is in the relay's own log, and only what may be."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from relay.telemetry.libraries import LibraryLog
from relay.telemetry.logs import make_logger
from tests.telemetry.test_logs import Collected


@pytest.fixture
def collected() -> Iterator[Collected]:
    collected = Collected()
    libraries = LibraryLog(make_logger(collected, is_terminal=False))  # type: ignore[arg-type]
    libraries.open()
    yield collected
    libraries.close()


def test_a_warning_of_a_library_is_a_line(collected: Collected) -> None:
    logging.getLogger("some.library").warning("%d connections lost", 3)
    (event,) = collected.events
    assert (event["event"], event["level"], event["logger"]) == ("library", "warning", "some.library")
    assert event["message"] == "3 connections lost"


def test_what_is_no_warning_is_left_out(collected: Collected) -> None:
    logging.getLogger("some.library").info("a detail")
    assert collected.lines == []


def test_a_credential_in_it_does_not_show(collected: Collected) -> None:
    logging.getLogger("some.library").error("refused: Authorization: Bearer %s", "sk-canary0123456789")
    assert collected.events[0]["message"] == "refused: Authorization: Bearer ***"


def test_a_record_that_does_not_fit_its_arguments_is_told_as_it_stands() -> None:
    collected = Collected()
    record = logging.LogRecord("some.library", logging.ERROR, "x.py", 1, "%d connections", ("no number",), None)
    LibraryLog(make_logger(collected, is_terminal=False)).handle(record)  # type: ignore[arg-type]
    assert collected.events[0]["message"] == "%d connections"


async def test_an_error_that_nobody_caught_is_told_with_its_stack_and_no_argument(collected: Collected) -> None:
    def received(data: bytes) -> None:
        raise RuntimeError("a bug")

    asyncio.get_running_loop().call_soon(received, b"canary-prompt")
    for _ in range(3):
        await asyncio.sleep(0)
    (event,) = collected.events
    assert (event["event"], event["level"], event["logger"]) == ("library", "error", "asyncio")
    assert "RuntimeError: a bug" in event["exception"]
    assert b"canary" not in b"".join(collected.lines)


def test_nothing_is_taken_once_it_is_closed() -> None:
    collected = Collected()
    libraries = LibraryLog(make_logger(collected, is_terminal=False))  # type: ignore[arg-type]
    libraries.open()
    libraries.close()
    logging.getLogger("some.library").warning("late")
    assert collected.lines == []
