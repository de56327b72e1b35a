"""The log: one line per request when it is over, one warning per failed attempt, and what the process itself has to say.

Lines are JSON, or readable on a terminal. They go to stderr through a bounded queue and a thread, so that a blocked
pipe or a full disk never stops a stream; lines that find the queue full are counted and dropped (F43).
Keys, credentials, prompts and answers are in no line (a switch in `prompts` adds lines that have the latter two); values are at most 512
characters of escaped text, and what looks like a credential in the words of others is taken out.
"""

import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, BinaryIO, Final

import msgspec
import structlog

from relay.exchange import Attempt, AttemptResult, ClientRequest, Exchange, Outcome, Summary
from relay.telemetry.redaction import redact

QUEUE_LINES: Final = 10_000
BATCH_SECONDS: Final = 0.01
"""How long the writer waits for more lines before it writes."""
MAX_VALUE: Final = 512
PIPE_BYTES: Final = 4096
"""What Linux writes into a pipe without mixing it with what others write (PIPE_BUF); POSIX promises 512."""


class LogWriter:
    """Writes lines in a thread of its own, in batches: a thread that wakes for each line would take turns with the streams."""

    def __init__(self, file: BinaryIO, *, is_shared: bool = False) -> None:
        """Write to `file`; when it `is_shared` with other processes, in pieces that a pipe does not mix with theirs."""
        self.dropped = 0
        self._is_shared = is_shared
        self._file = file
        # Putting costs next to nothing, and wakes the thread only when it waits: an Event costs ten times as much.
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="relay-log", daemon=True)
        self._thread.start()

    def put(self, line: str | bytes) -> None:
        """Queue one line, or count it as dropped."""
        if self._lines.qsize() >= QUEUE_LINES:
            self.dropped += 1
            return
        self._lines.put(line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace"))

    def close(self, seconds: float = 2.0) -> None:
        """Write what is queued, for at most `seconds`."""
        self._lines.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            first = self._lines.get()
            if first is not None:
                time.sleep(BATCH_SECONDS)
            taken = [first, *(self._lines.get() for _ in range(self._lines.qsize()))]
            is_last = None in taken
            lines = [line for line in taken if line is not None]
            for piece in _pieces(lines) if self._is_shared else (lines,):
                if piece:
                    self._write(piece)

    def _write(self, lines: list[bytes]) -> None:
        try:
            rest = memoryview(b"\n".join([*lines, b""]))
            while rest:
                rest = rest[self._write_some(rest) :]
            while not self._is_flushed():
                pass
        except (OSError, ValueError):
            self.dropped += len(lines)

    def _write_some(self, data: memoryview) -> int:
        """Write what fits: whoever shares a terminal or a pipe with the relay may have set it not to block."""
        written: int | None
        try:
            written = self._file.write(data)
        except BlockingIOError as full:
            written = full.characters_written
        if written is None or written < len(data):
            select.select((), (self._file,), ())
        return written or 0

    def _is_flushed(self) -> bool:
        try:
            self._file.flush()
        except BlockingIOError:
            select.select((), (self._file,), ())
            return False
        return True


def _pieces(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Yield lines together as long as a pipe takes them as one; a single longer line stays whole and takes its chance."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) + 1 > PIPE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    yield piece


class _Bound:
    """The object that structlog calls with a rendered line."""

    __slots__ = ("_put",)

    def __init__(self, writer: LogWriter) -> None:
        self._put = writer.put

    def msg(self, line: str | bytes) -> None:
        self._put(line)

    info = warning = error = debug = critical = msg


_WORDS_OF_OTHERS: Final = ("model", "client_ip", "finish_reason")
"""The fields of a request's line that a client or an upstream chose."""

Line = Callable[[dict[str, Any]], None]
"""Writes one `request` event with these fields."""


def make_request_line(writer: LogWriter, log: Any, *, is_terminal: bool, worker: int | None = None) -> Line:
    """Return what writes the canonical line: straight to the writer as JSON, since every request pays for it."""
    if is_terminal:
        return lambda fields: log.info(**fields)

    def write(fields: dict[str, Any]) -> None:
        for name in _WORDS_OF_OTHERS:
            value = fields[name]
            if value is None:
                continue
            if "sk-" in value:  # every request pays for this line: the whole search is for who does not
                value = fields[name] = redact(value)
            if len(value) > MAX_VALUE or not value.isprintable():
                fields[name] = _visible(value)
        fields["level"] = "info"
        fields["ts"] = datetime.now(UTC).isoformat()
        if worker is not None:
            fields["worker"] = worker
        writer.put(_json_line(fields))

    return write


def make_logger(writer: LogWriter, *, is_terminal: bool, worker: int | None = None) -> Any:
    """Return a structlog logger that renders for people on a terminal, and as JSON elsewhere; lines carry the number of the `worker`."""
    renderer: Any
    if is_terminal:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.platform != "win32", sort_keys=False)
    else:
        renderer = structlog.processors.JSONRenderer(serializer=_encode)
    log = structlog.wrap_logger(
        _Bound(writer),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            _clean,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
    return log if worker is None else log.bind(worker=worker)


_json_line: Final = msgspec.json.Encoder(enc_hook=repr).encode


def _encode(event: Any, **_: Any) -> bytes:
    return _json_line(event)


def _clean(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out what looks like a key, cut long values and make control characters visible, so that no value can forge a line (A45)."""
    for name, value in event.items():
        if not isinstance(value, str):
            continue
        value = event[name] = redact(value)
        if name != "exception" and (len(value) > MAX_VALUE or not value.isprintable()):
            event[name] = _visible(value)
    return event


def _visible(value: str) -> str:
    return value[:MAX_VALUE].encode("unicode_escape").decode("ascii")


class RequestLog:
    """Writes the lines about exchanges: a `gateway.Observer`."""

    __slots__ = ("_line", "_log")

    def __init__(self, log: Any, line: Line) -> None:
        self._log = log
        self._line = line

    def began(self) -> None:
        """Write nothing."""

    def routed(self, exchange: Exchange) -> None:
        """Write nothing."""

    def violated(self, identity: str) -> None:
        """Write that the relay's own accounts are wrong."""
        self._log.error("invariant_violated", invariant=identity)

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """Write a bug of ours with its stack."""
        self._log.error("internal_error", request_id=exchange.request.id, trace_id=_trace_id(exchange.request), exc_info=error)

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """Write a warning per failed attempt, and the request's line."""
        for attempt in summary.attempts:
            if attempt.result not in (AttemptResult.SUCCESS, AttemptResult.CANCELLED, None):
                self._log.warning("attempt_failed", **_attempt_fields(summary, attempt))
        if not summary.is_quiet:
            self._line(_request_fields(summary))


def _attempt_fields(summary: Summary, attempt: Attempt) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": summary.request.id,
        "trace_id": _trace_id(summary.request),
        "route": summary.route,
        "upstream": attempt.target.upstream.name,
        "result": attempt.result.value if attempt.result is not None else None,
        "error_code": attempt.error_code,
        "upstream_status": attempt.head.status if attempt.head is not None else None,
    }
    if attempt.head is not None and attempt.head.status == 404:
        fields["hint"] = "the upstream does not know the path or the model's name that the configuration sends it"
    return fields


def _request_fields(summary: Summary) -> dict[str, Any]:
    request = summary.request
    usage = summary.usage
    last = summary.attempts[-1] if summary.attempts else None
    gaps = summary.gaps
    return {
        "event": "request",
        "request_id": request.id,
        "trace_id": _trace_id(request),
        "operation": request.operation,
        "key": request.key.name if request.key is not None else None,
        "route": summary.route,
        "upstream": summary.upstream,
        "model": request.model,
        "attempts": len(summary.attempts),
        "fallback_from": _fallback_from(summary.attempts),
        "status": summary.status,
        "outcome": summary.outcome,
        "error_code": summary.error_code,
        "phase": _phase(summary),
        "stream": summary.is_stream,
        "upstream_status": last.head.status if last is not None and last.head is not None else None,
        "ttft_ms": _ms(summary.ttft_seconds),
        "duration_ms": _ms(summary.duration_seconds),
        "queue_ms": _ms(summary.queued_seconds),
        "overhead_ms": None if summary.overhead is None else _ms(summary.overhead.seconds),
        "clocks_ms": _clocks(summary),
        "gaps_ms": None if gaps is None else {"upstream": _ms(gaps.upstream), "relay": _ms(gaps.relay), "client": _ms(gaps.client)},
        "stalls": None if gaps is None else gaps.stalls,
        "tokens_in": usage.input if usage is not None else None,
        "tokens_out": usage.output if usage is not None else None,
        "tokens_cached": usage.cached if usage is not None else None,
        "tokens_source": summary.usage_source,
        "cost_usd": summary.cost / 1e9 if summary.cost else None,
        "finish_reason": summary.finish_reason,
        "bytes_out": summary.bytes_out,
        "client_ip": request.client_ip,
    }


def _trace_id(request: ClientRequest) -> str | None:
    return None if request.trace is None else request.trace.id


def _fallback_from(attempts: tuple[Attempt, ...]) -> str | None:
    """Return the target that was asked first, where another one stands at the end."""
    if len(attempts) < 2:
        return None
    first = min(attempts, key=lambda attempt: attempt.started_at).target.name
    return None if first == attempts[-1].target.name else first


def _phase(summary: Summary) -> str:
    """Tell how far the exchange had come when it ended."""
    if not summary.attempts:
        return "queue" if summary.queued_seconds else "request"
    last = summary.attempts[-1]
    if last.sent_at is None:
        return "connect"
    if summary.outcome is Outcome.COMPLETE:
        return "done"
    return "wait" if summary.bytes_out == 0 else "stream"


def _clocks(summary: Summary) -> dict[str, float] | None:
    """Return when things happened, counted from the request's last byte; of the attempts the one that answered."""
    if not summary.attempts:
        return None
    last = summary.attempts[-1]
    meter = last.meter
    begun_at = summary.request.received_at
    instants = (
        ("admitted", summary.admitted_at),
        ("sent", last.sent_at),
        ("head", last.head.received_at if last.head is not None else None),
        ("first_event", meter.first_event_at),
        ("first_reasoning", meter.first_reasoning_at),
        ("first_content", meter.first_content_at),
        ("first_content_written", summary.first_content_written_at),
        ("last_content", meter.last_content_at or None),
        ("terminal", meter.terminal_at),
    )
    return {name: _milliseconds(at - begun_at) for name, at in instants if at is not None}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else _milliseconds(seconds)


def _milliseconds(seconds: float) -> float:
    """Return milliseconds to the microsecond: `round` takes three times as long, and there are a dozen in a line."""
    return int(seconds * 1e6 + 0.5) / 1000
