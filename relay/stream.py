"""The body of one attempt on its way to the client: bytes through, marks taken, commit announced, exactly one end.

Sans-IO: whoever reads the upstream's connection calls `feed` and then `finish` once; what must happen on the client's
side is said to a `Port`, synchronously, so that a chunk wakes no task. Three relays, chosen when the head is known:

* `EventRelay`: server-sent events. Holds comments, role-only deltas and lifecycle events until the first meaningful
  event, then passes every piece as it came. Only the protocol's own terminator makes it complete.
* `WholeRelay`: JSON answers and error bodies. Holds the body until it is all there, so that a broken one can still
  become an honest error.
* `OpaqueRelay`: anything else (audio, files, encoded bodies). Passes at once; the framing proves the end.

After the commit a relay never fails: it ends, cleanly or by a cut.
"""

from enum import Enum
from typing import Final, Protocol

import msgspec

from relay.errors import (
    Break,
    ErrorEvent,
    Malformation,
    MalformedResponse,
    StreamBroken,
    UpstreamError,
)
from relay.exchange import Operation, Outcome, StreamMeter
from relay.wire.openai import EventObserver, First, read_id, read_usage

HOLD_SECONDS: Final = 2.0
"""How long the beginning of an answer may be held back: long enough to see most early failures, short enough for a person."""
HOLD_EVENT_BYTES: Final = 64 * 2**10
HOLD_BODY_BYTES: Final = 8 * 2**20
COMMENT_BYTES: Final = 2**20
"""Comments alone start no clock; an upstream that sends this much of them and no event is not answering."""
DONE_GRACE_SECONDS: Final = 1.0
"""How long an upstream may keep its connection open after its terminator before we stop waiting for the end."""


class BodyEnd(Enum):
    """How the bytes of an upstream's body stopped."""

    WHOLE = "whole"
    """The framing says so: last chunk, full length, or no body at all."""
    OPEN = "open"
    """FIN of a body that only FIN ends: proves nothing by itself."""
    CUT = "cut"
    """FIN inside the framing."""
    RESET = "reset"
    GARBAGE = "garbage"
    """The framing became invalid."""


class Port(Protocol):
    """What a relay can make happen on the client's side and in its owner."""

    def hold(self) -> None:
        """Call the relay's `release` when HOLD_SECONDS have passed."""

    def open(self, first: bytes) -> bool:
        """Send the response head and `first`; False when this answer must not reach the client (it is then failed)."""

    def write(self, data: bytes) -> None:
        """Send further body bytes."""

    def content_written(self) -> None:
        """Take the time: the first content has just been written."""

    def terminal(self) -> None:
        """The protocol's terminator was passed on: end within DONE_GRACE_SECONDS whatever the upstream does."""

    def failed(self, error: UpstreamError) -> None:
        """Nothing reached the client, and nothing of this attempt will."""

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None:
        """The answer is over. Unclean ends get no terminal chunk; `can_append` tells whether an error event may stand there."""


class HoldBudget:
    """Bytes that all answers of the process may hold back together."""

    __slots__ = ("_left",)

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False, and nothing reserved, when they are not to be had."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give(self, size: int) -> None:
        """Return what was taken."""
        self._left += size


class EventRelay:
    """Relays one event stream."""

    __slots__ = (
        "_can_lack_done",
        "_has_terminator",
        "_held",
        "_held_bytes",
        "_is_committed",
        "_is_holding",
        "_is_over",
        "_meter",
        "_observer",
        "_port",
        "feed",
    )

    def __init__(self, port: Port, meter: StreamMeter, operation: Operation, *, can_lack_done: bool) -> None:
        """Relay to `port`; `can_lack_done` accepts a finish_reason as the end, for upstreams known to leave out `[DONE]`."""
        self._port = port
        self._meter = meter
        self._observer = EventObserver(meter, operation)
        self._can_lack_done = can_lack_done
        self._has_terminator = operation in (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_holding = False
        self._is_committed = False
        self._is_over = False
        self.feed = self._feed_held
        """Take body bytes with the instant they came: replaced at each stage, so that no stage pays for another's checks."""

    def _feed_held(self, data: bytes, now: float) -> None:
        meter = self._meter
        meter.last_byte_at = now
        meter.bytes_in += len(data)
        self._observer.feed(data, now)
        self._held.append(data)
        self._held_bytes += len(data)
        match self._observer.first:
            case First.COMMIT:
                self._commit()
            case First.ERROR:
                error = meter.error
                assert error is not None
                self._fail(ErrorEvent(error.status, kind=error.type or "upstream_error", code=error.code))
            case First.HELD:
                if not self._is_holding:
                    self._is_holding = True
                    self._port.hold()
                if self._held_bytes > HOLD_EVENT_BYTES:
                    self._commit()
            case First.NOTHING:
                if self._held_bytes > COMMENT_BYTES:
                    self._fail(MalformedResponse(Malformation.TOO_LARGE))

    def _feed_early(self, data: bytes, now: float) -> None:
        self._pass(data, now)
        if self._meter.first_content_at is not None and not self._is_over:
            self._port.content_written()
            if self.feed == self._feed_early:
                self.feed = self._pass

    def _pass(self, data: bytes, now: float) -> None:
        meter = self._meter
        meter.last_byte_at = now
        meter.bytes_in += len(data)
        self._observer.feed(data, now)
        self._port.write(data)
        if meter.terminal_at is not None:
            self.feed = self._pass_tail
            self._port.terminal()

    def _pass_tail(self, data: bytes, now: float) -> None:
        self._meter.bytes_in += len(data)
        self._port.write(data)

    def release(self) -> None:
        """Stop holding: the clock has run out."""
        if not self._is_committed and not self._is_over:
            self._commit()

    def _commit(self) -> None:
        first = b"".join(self._held)
        self._held.clear()
        self._is_committed = True
        self.feed = self._feed_early
        if not self._port.open(first):
            self._is_over = True
            return
        meter = self._meter
        if meter.first_content_at is not None:
            self.feed = self._pass
            self._port.content_written()
        if meter.terminal_at is not None:
            self.feed = self._pass_tail
            self._port.terminal()

    def _fail(self, error: UpstreamError) -> None:
        self._is_over = True
        self._held.clear()
        self._port.failed(error)

    def finish(self, how: BodyEnd) -> None:
        """Tell how the upstream's bytes stopped; later calls do nothing."""
        if self._is_over:
            return
        if not self._is_committed:
            self._finish_held(how)
            return
        self._is_over = True
        is_whole = how is BodyEnd.WHOLE
        meter = self._meter
        if meter.error is not None:
            self._end(Outcome.UPSTREAM_ERROR, "upstream_error_in_stream", is_clean=is_whole or meter.terminal_at is not None)
        elif self._is_proven(how):
            self._end(Outcome.COMPLETE, None, is_clean=True)
        else:
            self._end(Outcome.UPSTREAM_CUT, _cut_code(how), is_clean=False, can_append=self._observer.at_boundary)

    def _finish_held(self, how: BodyEnd) -> None:
        error = broken(how)
        if error is not None:
            self._fail(error)
        elif not self._has_terminator and how is BodyEnd.WHOLE:
            self._commit()
            self.finish(how)
        elif self._observer.first is First.NOTHING:
            self._fail(MalformedResponse(Malformation.EMPTY))
        else:
            self._fail(StreamBroken(Break.TRUNCATED, anything=True))

    def _is_proven(self, how: BodyEnd) -> bool:
        meter = self._meter
        if meter.terminal_at is not None:
            return True
        if how not in (BodyEnd.WHOLE, BodyEnd.OPEN):
            return False
        if self._can_lack_done and meter.finish_reason is not None:
            return True
        return not self._has_terminator and how is BodyEnd.WHOLE

    def cut(self, outcome: Outcome, code: str) -> None:
        """End a committed answer for a reason of ours (stall, shutdown): an error event where one may stand, then close."""
        if self._is_over:
            return
        self._is_over = True
        meter = self._meter
        if meter.error is not None:
            self._end(Outcome.UPSTREAM_ERROR, "upstream_error_in_stream", is_clean=False)
        else:
            self._end(outcome, code, is_clean=False, can_append=self._observer.at_boundary)

    def _end(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool = False) -> None:
        self._port.ended(outcome, code, is_clean=is_clean, can_append=can_append)


class WholeRelay:
    """Relays one JSON answer or error body, held until it is whole, 8 MiB large or 2 s old."""

    __slots__ = ("_budget", "_held", "_held_bytes", "_is_committed", "_is_encoded", "_is_json", "_is_over", "_keeps_copy", "_meter", "_port", "feed")

    def __init__(self, port: Port, meter: StreamMeter, budget: HoldBudget, *, is_json: bool, is_encoded: bool, is_close_delimited: bool) -> None:
        """Relay to `port`; `is_json` asks for a body that can be an answer of a JSON endpoint."""
        self._port = port
        self._meter = meter
        self._budget = budget
        self._is_json = is_json and not is_encoded
        self._is_encoded = is_encoded
        # Only parsing proves the end of such a body, so its copy outlives the commit.
        self._keeps_copy = is_close_delimited and not is_encoded
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_committed = False
        self._is_over = False
        self.feed = self._feed_held
        port.hold()

    def _feed_held(self, data: bytes, now: float) -> None:
        self._mark(data, now)
        self._keep(data)
        if not self._is_committed and self._held_bytes > HOLD_BODY_BYTES:
            self._commit()

    def _pass(self, data: bytes, now: float) -> None:
        self._mark(data, now)
        if self._keeps_copy:
            self._keep(data)
        self._port.write(data)

    def _mark(self, data: bytes, now: float) -> None:
        self._meter.last_byte_at = now
        self._meter.bytes_in += len(data)

    def _keep(self, data: bytes) -> None:
        if self._budget.take(len(data)):
            self._held.append(data)
            self._held_bytes += len(data)
            if self._is_committed and self._held_bytes > HOLD_BODY_BYTES:
                self._drop()
        elif self._is_committed:
            self._drop()
        else:
            self._commit()
            self._port.write(data)

    def _drop(self) -> None:
        self._keeps_copy = False
        self._budget.give(self._held_bytes)
        self._held.clear()
        self._held_bytes = 0

    def release(self) -> None:
        """Stop holding: the clock has run out."""
        if not self._is_committed and not self._is_over:
            self._commit()

    def _commit(self) -> None:
        first = b"".join(self._held)
        error = self._unusable(first) if first else None
        if error is not None:
            self._fail(error)
            return
        self._is_committed = True
        self.feed = self._pass
        if not self._keeps_copy:
            self._drop()
        if not self._port.open(first):
            self.abandon()

    def _fail(self, error: UpstreamError) -> None:
        self.abandon()
        self._port.failed(error)

    def abandon(self) -> None:
        """Return what is held; the answer is not wanted any more."""
        self._is_over = True
        self._drop()

    def finish(self, how: BodyEnd) -> None:
        """Tell how the upstream's bytes stopped; later calls do nothing."""
        if self._is_over:
            return
        body = b"".join(self._held)
        if not self._is_committed:
            error = broken(how) or self._unusable(body) or self._unproven(body, how)
            if error is not None:
                self._fail(error)
                return
            if not self._is_encoded:
                self._read(body)
            self._commit()
            if self._is_over:
                return
        is_proven = how is BodyEnd.WHOLE or (how is BodyEnd.OPEN and (self._is_encoded or self._unproven(body, how) is None))
        self.abandon()
        if is_proven:
            self._port.ended(Outcome.COMPLETE, None, is_clean=True, can_append=False)
        else:
            self._port.ended(Outcome.UPSTREAM_CUT, _cut_code(how), is_clean=False, can_append=False)

    def _read(self, body: bytes) -> None:
        self._meter.usage, self._meter.finish_reason = read_usage(body)
        self._meter.response_id = read_id(body)

    def _unusable(self, body: bytes) -> UpstreamError | None:
        if not self._is_json:
            return None
        start = body[:64].lstrip()[:1] or body.lstrip()[:1]
        if not start:
            return MalformedResponse(Malformation.EMPTY)
        return None if start in b"{[" else MalformedResponse(Malformation.BAD_RESPONSE)

    def _unproven(self, body: bytes, how: BodyEnd) -> UpstreamError | None:
        if how is not BodyEnd.OPEN or not self._is_json:
            return None
        try:
            msgspec.json.decode(body, type=msgspec.Raw)
        except msgspec.DecodeError:
            return StreamBroken(Break.TRUNCATED, anything=True)
        return None

    def cut(self, outcome: Outcome, code: str) -> None:
        """End a committed answer for a reason of ours: close, since no error can stand inside it."""
        if not self._is_over:
            self.abandon()
            self._port.ended(outcome, code, is_clean=False, can_append=False)


class OpaqueRelay:
    """Relays bytes that nobody here understands, from the first one on."""

    __slots__ = ("_is_open_proof", "_is_over", "_meter", "_port", "feed")

    def __init__(self, port: Port, meter: StreamMeter, *, is_open_proof: bool) -> None:
        """Relay to `port`; `is_open_proof` tells whether FIN alone ends the body (not so for an encoded event stream)."""
        self._port = port
        self._meter = meter
        self._is_open_proof = is_open_proof
        self._is_over = False
        self.feed = self._pass

    def begin(self) -> None:
        """Send the head at once."""
        if not self._port.open(b""):
            self._is_over = True

    def _pass(self, data: bytes, now: float) -> None:
        self._meter.last_byte_at = now
        self._meter.bytes_in += len(data)
        self._port.write(data)

    def release(self) -> None:
        """Do nothing: nothing is ever held."""

    def finish(self, how: BodyEnd) -> None:
        """Tell how the upstream's bytes stopped; later calls do nothing."""
        if self._is_over:
            return
        self._is_over = True
        if how is BodyEnd.WHOLE or (how is BodyEnd.OPEN and self._is_open_proof):
            self._port.ended(Outcome.COMPLETE, None, is_clean=True, can_append=False)
        else:
            self._port.ended(Outcome.UPSTREAM_CUT, _cut_code(how), is_clean=False, can_append=False)

    def cut(self, outcome: Outcome, code: str) -> None:
        """End the answer for a reason of ours."""
        if not self._is_over:
            self._is_over = True
            self._port.ended(outcome, code, is_clean=False, can_append=False)


BodyRelay = EventRelay | WholeRelay | OpaqueRelay


def broken(how: BodyEnd, *, anything: bool = True) -> UpstreamError | None:
    """Return the failure that an end before the commit amounts to; None for ends that break nothing by themselves."""
    match how:
        case BodyEnd.WHOLE | BodyEnd.OPEN:
            return None
        case BodyEnd.CUT:
            return StreamBroken(Break.TRUNCATED, anything=anything)
        case BodyEnd.RESET:
            return StreamBroken(Break.RESET, anything=anything)
        case BodyEnd.GARBAGE:
            return MalformedResponse(Malformation.PROTOCOL)


def _cut_code(how: BodyEnd) -> str:
    match how:
        case BodyEnd.RESET:
            return Break.RESET.value
        case BodyEnd.GARBAGE:
            return Malformation.PROTOCOL.value
        case _:
            return Break.TRUNCATED.value
