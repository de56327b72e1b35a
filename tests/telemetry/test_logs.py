"""The log: lines that nothing can forge, written by a thread that nobody waits for."""

import io
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.exchange import AttemptResult, Operation, Outcome, StreamMeter, Usage
from relay.telemetry import logs
from relay.telemetry.logs import MAX_VALUE, LogWriter, RequestLog, make_logger, make_request_line
from tests.telemetry.summaries import FAST, attempt, ended, head


class Stuck(io.RawIOBase):
    """A file whose reader does not read, until it is let go."""

    def __init__(self) -> None:
        self.is_free = threading.Event()
        self.has_begun = threading.Event()
        self.data = b""

    def write(self, data: Any) -> int:
        self.has_begun.set()
        self.is_free.wait(5.0)
        self.data += bytes(data)
        return len(data)


class Broken(io.RawIOBase):
    """A file on a full disk."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, data: Any) -> int:
        raise self.error


class Collected:
    """Takes the place of a writer."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def put(self, line: str | bytes) -> None:
        self.lines.append(line if isinstance(line, bytes) else line.encode())

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def json_log() -> tuple[Collected, Any, RequestLog]:
    return log_of(is_terminal=False)


def log_of(*, is_terminal: bool) -> tuple[Collected, Any, RequestLog]:
    collected = Collected()
    log = make_logger(collected, is_terminal=is_terminal)  # type: ignore[arg-type]
    return collected, log, RequestLog(log, make_request_line(collected, log, is_terminal=is_terminal))  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


# The writer


def test_lines_come_out_in_order_and_whole() -> None:
    file = io.BytesIO()
    writer = LogWriter(file)
    for number in range(1000):
        writer.put(f"line {number} é \ud800")
    writer.close()
    assert file.getvalue().decode().splitlines() == [f"line {number} é \\ud800" for number in range(1000)]
    assert writer.dropped == 0


def test_a_reader_that_does_not_read_costs_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """F43."""
    monkeypatch.setattr(logs, "QUEUE_LINES", 10)
    file = Stuck()
    writer = LogWriter(file)  # type: ignore[arg-type]
    writer.put(b"first")
    assert file.has_begun.wait(5.0)
    began = time.monotonic()
    for _ in range(1000):
        writer.put(b"more")
    writer.close(0.01)
    assert time.monotonic() - began < 10.0
    assert writer.dropped == 990
    file.is_free.set()
    until(lambda: file.data.count(b"more\n") == 10)
    assert file.data.startswith(b"first\n")


@pytest.mark.parametrize("error", [OSError(28, "full"), BrokenPipeError(), ValueError("closed file")], ids=repr)
def test_a_broken_file_costs_lines_and_nothing_else(error: Exception) -> None:
    writer = LogWriter(Broken(error))  # type: ignore[arg-type]
    writer.put(b"one")
    until(lambda: writer.dropped == 1)
    writer.put(b"two")
    writer.close()
    assert writer.dropped == 2


@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_pipe_that_somebody_has_set_not_to_block_gets_every_line_whole(buffering: int) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(writing, "wb", buffering) as file, open(reading, "rb") as reader:
        writer = LogWriter(file)  # type: ignore[arg-type]  # a raw file is one too
        lines = [b"%d " % number + b"x" * 200 for number in range(5_000)]  # many times what a pipe holds
        for line in lines:
            writer.put(line)
        got = [reader.readline().rstrip(b"\n") for _ in lines]
        writer.close()
    assert got == lines
    assert writer.dropped == 0


# Values


def test_a_line_is_json_with_time_level_and_event() -> None:
    collected, log, _ = json_log()
    log.warning("reload", message="x", number=3)
    (event,) = collected.events
    assert (event["event"], event["level"], event["message"], event["number"]) == ("reload", "warning", "x", 3)
    assert event["ts"].startswith("2")


@given(st.text(max_size=2000))
def test_no_value_can_forge_a_line_or_an_escape_code(text: str) -> None:
    """A45."""
    collected, log, _ = json_log()
    log.info("event", value=text)
    (line,) = collected.lines
    assert b"\n" not in line
    value = json.loads(line)["value"]
    assert value.isprintable()
    assert len(value) <= 10 * MAX_VALUE


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\x1b[31mred", "\x00", "\u2028", "\u202e", "\ud800"])
def test_control_characters_are_made_visible(text: str, is_terminal: bool) -> None:
    """A45."""
    collected, log, request_log = log_of(is_terminal=is_terminal)
    log.info("event", value=text)
    request_log.ended(*ended(model=text, client_ip=text))
    for line in collected.lines:
        assert text.encode("utf-8", "surrogatepass") not in line
        assert b"\n" not in line


def test_long_values_are_cut() -> None:
    collected, log, request_log = json_log()
    log.info("event", value="x" * 5000)
    request_log.ended(*ended(model="y" * 5000, client_ip="z" * 5000))
    assert collected.events[0]["value"] == "x" * MAX_VALUE
    assert collected.events[1]["model"] == "y" * MAX_VALUE
    assert collected.events[1]["client_ip"] == "z" * MAX_VALUE


# The lines about exchanges


def test_a_request_is_one_line() -> None:
    collected, _, log = json_log()
    meter = StreamMeter(usage=Usage(input=3, output=4, cached=1), finish_reason="stop")
    log.began()
    exchange, summary = ended(Outcome.COMPLETE, attempt(meter=meter, head=head(200)))
    log.routed(exchange)
    log.ended(exchange, summary)
    (event,) = collected.events
    assert event["event"] == "request" and event["level"] == "info"
    expected = {
        "request_id": "id-1",
        "operation": "chat",
        "key": "alice",
        "route": "fast",
        "upstream": "mine",
        "model": "fast",
        "attempts": 1,
        "status": 200,
        "outcome": "complete",
        "error_code": None,
        "phase": "done",
        "stream": True,
        "upstream_status": 200,
        "duration_ms": 2000.0,
        "tokens_in": 3,
        "tokens_out": 4,
        "tokens_cached": 1,
        "tokens_source": "reported",
        "finish_reason": "stop",
        "client_ip": "127.0.0.1",
    }
    assert {name: event[name] for name in expected} == expected


def test_a_request_tells_where_it_was_sent_first() -> None:
    collected, _, log = json_log()
    first, second = FAST.targets
    failed = attempt(first, AttemptResult.HTTP_5XX, started_at=10.1)
    log.ended(*ended(Outcome.COMPLETE, failed, attempt(second, started_at=10.5)))
    log.ended(*ended(Outcome.COMPLETE, failed, attempt(first, started_at=10.5)))
    log.ended(*ended(Outcome.COMPLETE, attempt(first)))
    lines = [event["fallback_from"] for event in collected.events if event["event"] == "request"]
    assert lines == ["mine/m", None, None]


@pytest.mark.parametrize(("cost", "told"), [(0, None), (1_250_000, 0.00125)])
def test_a_request_tells_what_it_cost(cost: int, told: float | None) -> None:
    collected, _, log = json_log()
    exchange, summary = ended(Outcome.COMPLETE, attempt())
    log.ended(exchange, replace(summary, cost=cost))
    assert collected.events[0]["cost_usd"] == told


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_key_in_the_words_of_others_does_not_show(is_terminal: bool) -> None:
    collected, log, request_log = log_of(is_terminal=is_terminal)
    secret = "sk-canary0123456789"
    meter = StreamMeter(finish_reason=f"stop {secret}")
    request_log.ended(*ended(Outcome.COMPLETE, attempt(meter=meter), model=f"gpt {secret}"))
    log.warning("event", message=f"no access with {secret}")
    try:
        raise ValueError(f"bad header Authorization: Bearer {secret}")
    except ValueError as error:
        log.error("event", exc_info=error)
    text = b"\n".join(collected.lines).decode()
    assert "gpt sk-***" in text and "no access with sk-***" in text and "Bearer ***" in text
    assert "canary" not in text


def test_each_failed_attempt_is_a_warning_before_the_request() -> None:
    collected, _, log = json_log()
    attempts = (
        attempt(result=AttemptResult.HTTP_5XX, head=head(500)),
        attempt(result=AttemptResult.CONNECT_ERROR, error_code="upstream_connect_error"),
        attempt(result=AttemptResult.SUCCESS),
        attempt(result=AttemptResult.CANCELLED),
        attempt(result=None),
    )
    log.ended(*ended(Outcome.COMPLETE, *attempts))
    assert [event["event"] for event in collected.events] == ["attempt_failed", "attempt_failed", "request"]
    first = collected.events[0]
    assert (first["level"], first["result"], first["upstream_status"], first["upstream"]) == ("warning", "http_5xx", 500, "mine")


def test_a_404_of_an_upstream_hints_at_the_configuration() -> None:
    collected, _, log = json_log()
    log.ended(*ended(Outcome.UPSTREAM_FAILED, attempt(result=AttemptResult.HTTP_4XX, head=head(404))))
    assert "configuration" in collected.events[0]["hint"]


@pytest.mark.parametrize(
    ("outcome", "marks", "bytes_out", "phase"),
    [
        (Outcome.INVALID_REQUEST, None, 0, "request"),
        (Outcome.UPSTREAM_FAILED, {"sent_at": None}, 0, "connect"),
        (Outcome.UPSTREAM_FAILED, {}, 0, "wait"),
        (Outcome.UPSTREAM_CUT, {}, 10, "stream"),
        (Outcome.COMPLETE, {}, 10, "done"),
    ],
)
def test_the_line_tells_how_far_the_request_had_come(outcome: Outcome, marks: dict[str, Any] | None, bytes_out: int, phase: str) -> None:
    from msgspec.structs import replace

    collected, _, log = json_log()
    exchange, summary = ended(outcome, *([] if marks is None else [attempt(**marks)]))
    log.ended(exchange, replace(summary, bytes_out=bytes_out))
    assert collected.events[-1]["phase"] == phase


def test_lists_of_models_are_no_line() -> None:
    collected, _, log = json_log()
    log.ended(*ended(operation=Operation.MODELS))
    assert collected.lines == []


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_bug_is_told_with_its_stack(is_terminal: bool) -> None:
    """F46."""
    collected, _, log = log_of(is_terminal=is_terminal)
    exchange, _ = ended(Outcome.INTERNAL_ERROR)
    try:
        raise RuntimeError("a bug")
    except RuntimeError as error:
        log.crashed(exchange, error)
    text = b"\n".join(collected.lines).decode()
    assert "internal_error" in text and "id-1" in text
    assert "RuntimeError: a bug" in text and "test_logs.py" in text


def test_a_terminal_gets_readable_lines() -> None:
    collected, _, log = log_of(is_terminal=True)
    log.ended(*ended(Outcome.COMPLETE, attempt()))
    (line,) = collected.lines
    assert b"request" in line and b"outcome" in line and b"complete" in line
    assert not line.startswith(b"{")


def test_lines_of_several_processes_do_not_mix_on_a_pipe() -> None:
    """What is shared is written in pieces that a pipe takes as one, each of whole lines."""
    pieces: list[bytes] = []

    class File(io.BytesIO):
        def write(self, data: Any) -> int:
            pieces.append(bytes(data))
            return len(data)

    writer = LogWriter(File(), is_shared=True)
    lines = [b'{"n":%d,"text":"%b"}' % (number, b"x" * (number * 37 % 900)) for number in range(200)]
    lines[50] = b"y" * 10_000
    for line in lines:
        writer.put(line)
    writer.close()
    assert b"".join(pieces) == b"".join(line + b"\n" for line in lines)
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert all(len(piece) <= 4096 or piece.count(b"\n") == 1 for piece in pieces)
