"""Bodies that are not events: held until they are whole, or passed at once."""

from collections.abc import Callable

import msgspec

from relay.errors import Break, Malformation, MalformedResponse, StreamBroken, UpstreamError
from relay.exchange import Outcome, StreamMeter
from relay.stream.ends import HOLD_BODY_BYTES, PROOF_BYTES, BodyEnd, HoldBudget, Port, broken, cut_code, error_of, ignore
from relay.wire.openai import read_answer


class WholeRelay:
    """Relays one JSON answer or error body, held until it is whole, 8 MiB large or 2 s old."""

    __slots__ = (
        "_budget",
        "_copy_bytes",
        "_held",
        "_held_bytes",
        "_is_committed",
        "_is_encoded",
        "_is_json",
        "_is_over",
        "_keeps_copy",
        "_meter",
        "_port",
        "feed",
    )

    def __init__(
        self, port: Port, meter: StreamMeter, budget: HoldBudget, *, is_json: bool, is_encoded: bool, is_close_delimited: bool
    ) -> None:
        """Relay to `port`; `is_json` asks for a body that can be an answer of a JSON endpoint."""
        self._port = port
        self._meter = meter
        self._budget = budget
        self._is_json = is_json and not is_encoded
        self._is_encoded = is_encoded
        # What a 200 is worth its end may tell, and of a close-delimited one only parsing proves that: so a copy outlives the commit.
        self._copy_bytes = PROOF_BYTES if is_close_delimited else HOLD_BODY_BYTES
        self._keeps_copy = not is_encoded and (is_close_delimited or is_json)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_committed = False
        self._is_over = False
        self.feed: Callable[[bytes, float], None] = self._feed_held
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
            if self._is_committed and self._held_bytes > self._copy_bytes:
                self._drop()
            return
        if not self._is_committed:
            self._commit(data)
        self._drop()

    def _drop(self) -> None:
        self._keeps_copy = False
        self._budget.give(self._held_bytes)
        self._held.clear()
        self._held_bytes = 0

    def release(self) -> None:
        """Stop holding: the clock has run out."""
        if not self._is_committed and not self._is_over:
            self._commit()

    def _commit(self, more: bytes = b"") -> None:
        first = b"".join(self._held) + more
        # Blank lines may come for minutes before an answer (DeepSeek under load): they tell nothing yet.
        error = None if not first or first.isspace() else self._unusable(first)
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

    def dispose(self) -> None:
        """Let go of everything: the attempt is over."""
        self.abandon()
        self.feed = ignore

    def finish(self, how: BodyEnd) -> None:
        """Tell how the upstream's bytes stopped; later calls do nothing."""
        if self._is_over:
            return
        body = b"".join(self._held)
        failure = None
        if not self._is_committed:
            error = broken(how) or self._unusable(body) or self._unproven(body, how) or self._read(body)
            if error is not None:
                self._fail(error)
                return
            self._commit()
            if self._is_over:
                return
        elif body:
            failure = self._read(body)
        is_proven = how is BodyEnd.WHOLE or (how is BodyEnd.OPEN and (self._is_encoded or self._unproven(body, how) is None))
        self.abandon()
        if is_proven and failure is not None:
            self._port.ended(Outcome.UPSTREAM_ERROR, "upstream_error_in_stream", is_clean=True, can_append=False)
        elif is_proven:
            self._port.ended(Outcome.COMPLETE, None, is_clean=True, can_append=False)
        else:
            self._port.ended(Outcome.UPSTREAM_CUT, cut_code(how), is_clean=False, can_append=False)

    def _read(self, body: bytes) -> UpstreamError | None:
        """Read what the meter wants of a whole body; return the error that an answer is in spite of its status."""
        if self._is_encoded:
            return None
        answer = read_answer(body)
        meter = self._meter
        meter.usage, meter.finish_reason, meter.response_id = answer.usage, answer.finish_reason, answer.id
        meter.response_model = answer.model
        if answer.error is None or not self._is_json:
            return None
        meter.error = answer.error
        return error_of(answer.error)

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
        except (msgspec.DecodeError, RecursionError):  # what is too deep to be read proves nothing either
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
        self.feed: Callable[[bytes, float], None] = self._pass

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

    def dispose(self) -> None:
        """Let go of everything: the attempt is over."""
        self._is_over = True
        self.feed = ignore

    def finish(self, how: BodyEnd) -> None:
        """Tell how the upstream's bytes stopped; later calls do nothing."""
        if self._is_over:
            return
        self._is_over = True
        if how is BodyEnd.WHOLE or (how is BodyEnd.OPEN and self._is_open_proof):
            self._port.ended(Outcome.COMPLETE, None, is_clean=True, can_append=False)
        else:
            self._port.ended(Outcome.UPSTREAM_CUT, cut_code(how), is_clean=False, can_append=False)

    def cut(self, outcome: Outcome, code: str) -> None:
        """End the answer for a reason of ours."""
        if not self._is_over:
            self._is_over = True
            self._port.ended(outcome, code, is_clean=False, can_append=False)
