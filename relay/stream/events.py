"""Server-sent events on their way to the client: held until the first meaningful one, then passed as they come."""

from collections.abc import Callable

from relay.errors import LIMIT_REACHED, Break, Malformation, MalformedResponse, StreamBroken, UpstreamError
from relay.exchange import MAX_KEPT, STALL_SECONDS, Operation, Outcome, StreamMeter
from relay.stream.ends import COMMENT_BYTES, HOLD_EVENT_BYTES, BodyEnd, Port, broken, cut_code, error_of, ignore
from relay.stream.flow import Brake, Flow, Tally
from relay.wire.openai import EventObserver, First


class EventRelay:
    """Relays one event stream."""

    __slots__ = (
        "_brake",
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
        "_stage",
        "_tally",
        "feed",
    )

    def __init__(self, port: Port, meter: StreamMeter, operation: Operation, *, can_lack_done: bool, flow: Flow | None = None) -> None:
        """Relay to `port`; `can_lack_done` accepts a finish_reason as the end, for upstreams known to leave out `[DONE]`.

        `flow` counts tokens and may stop the stream.
        """
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
        self._brake = flow if isinstance(flow, Brake) else None
        self._tally = flow if isinstance(flow, Tally) else None
        self._stage: Callable[[bytes, float], None] = self._feed_held
        self.feed: Callable[[bytes, float], None] = self._feed_held if self._brake is None else self._feed_braked
        """Take body bytes with the instant they came: replaced at each stage, so that no stage pays for another's checks."""

    @property
    def at_boundary(self) -> bool:
        """Tell whether what was passed ends between two events, and another may follow."""
        return self._is_committed and self._meter.terminal_at is None and self._observer.at_boundary

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
                self._fail(error_of(error))
            case First.HELD:
                if not self._is_holding:
                    self._is_holding = True
                    self._port.hold()
                if self._held_bytes > HOLD_EVENT_BYTES:
                    self._commit()
            case First.NOTHING:
                if self._held_bytes > COMMENT_BYTES:
                    self._fail(MalformedResponse(Malformation.TOO_LARGE))

    def _enter(self, stage: Callable[[bytes, float], None]) -> None:
        self._stage = stage
        if self._brake is None:
            self.feed = stage

    def _feed_braked(self, data: bytes, now: float) -> None:
        brake = self._brake
        assert brake is not None
        for piece in brake.split(data):
            self._stage(piece, now)
            if self._is_over:
                return
            if not brake.goes_on() and self._is_committed:
                self.cut(Outcome.LIMIT_REACHED, LIMIT_REACHED)
                return

    def _feed_early(self, data: bytes, now: float) -> None:
        self._pass(data, now)
        if self._meter.first_content_at is not None and not self._is_over:
            self._port.content_written()
            if self._stage == self._feed_early:
                self._flow_on()

    def _flow_on(self) -> None:
        self._enter(self._pass if self._tally is None else self._pass_tallied)

    def _pass_tallied(self, data: bytes, now: float) -> None:
        self._pass(data, now)
        tally = self._tally
        assert tally is not None
        if self._meter.content_events >= tally.due:
            tally.tell()

    def _pass(self, data: bytes, now: float) -> None:
        meter = self._meter
        meter.last_byte_at = now
        meter.bytes_in += len(data)
        silent_since = meter.last_content_at
        self._observer.feed(data, now)
        self._port.write(data)
        if now - silent_since > STALL_SECONDS and silent_since and meter.last_content_at == now and len(meter.silences) < MAX_KEPT:
            meter.silences.append((silent_since, now))
        if meter.terminal_at is not None and self._has_terminator:
            self._enter(self._pass_tail)
            self._port.terminal()

    def _pass_tail(self, data: bytes, now: float) -> None:
        self._meter.bytes_in += len(data)
        self._port.write(data)

    def dispose(self) -> None:
        """Let go of everything: the attempt is over."""
        self._is_over = True
        self.feed = self._stage = ignore

    def release(self) -> None:
        """Stop holding: the clock has run out."""
        if not self._is_committed and not self._is_over:
            self._commit()

    def _commit(self) -> None:
        first = b"".join(self._held)
        self._held.clear()
        self._is_committed = True
        self._enter(self._feed_early)
        if not self._port.open(first):
            self._is_over = True
            return
        meter = self._meter
        if meter.first_content_at is not None:
            self._flow_on()
            self._port.content_written()
        if meter.terminal_at is not None and self._has_terminator:
            self._enter(self._pass_tail)
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
            self._end(Outcome.UPSTREAM_CUT, cut_code(how), is_clean=False, can_append=self._observer.at_boundary)

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
