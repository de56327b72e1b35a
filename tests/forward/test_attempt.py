"""One attempt over parts that only remember: what was given up says nothing more, whatever is still on its way."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from relay.config.tree import Route, Target, Timeouts, Upstream
from relay.errors import (
    ClientError,
    ConnectFailed,
    ConnectFault,
    Draining,
    Malformation,
    MalformedResponse,
    Phase,
    RelayError,
    StreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from relay.exchange import ClientRequest, Exchange, Framing, Operation, Outcome, ResponseHead, State, UpstreamRequest
from relay.forward.attempt import Attempting
from relay.policy.routing import Choice
from relay.stream import BodyEnd, HoldBudget
from relay.stream.ends import COMMENT_BYTES

MINE = Upstream(name="mine", base_url="http://mine/v1")
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"


class FakeCall:
    """An upstream's connection; closed, it delivers nothing more."""

    on_writable: Callable[[], None] | None = None
    is_reused = True
    is_full = False
    full_since = None

    def __init__(self) -> None:
        self.closes = 0
        self.written: list[bytes] = []
        self.is_paused = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    async def drain(self) -> None: ...

    def upload_done(self) -> None: ...

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def close(self, receiver: object) -> None:
        self.closes += 1


class FakeUpstreams:
    """Gives one call, or an error."""

    def __init__(self, error: UpstreamError | None = None) -> None:
        self.call = FakeCall()
        self.error = error

    async def begin(self, request: UpstreamRequest, receiver: object, connect_seconds: float, *, is_fresh: bool) -> FakeCall:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.call


class FakeSink:
    """The client's side, written down."""

    is_paused = False
    is_closed = False

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.sent = b""
        self.write: Callable[[bytes], None] = self._write
        self.followed: list[object] = []

    def _write(self, data: bytes) -> None:
        self.log.append("write")
        self.sent += data

    def open(self, exchange: Exchange, head: ResponseHead, first: bytes) -> None:
        assert "open" not in self.log, "a second head"
        self.log.append("open")
        self.sent += first

    def switch(self, exchange: Exchange, head: ResponseHead, first: bytes, take: Callable[[bytes], None]) -> None:
        self.log.append("switch")
        self.take = take

    def set_reading(self, *, on: bool) -> None:
        self.log.append(("reading", on))

    def finish(self) -> None:
        self.log.append("finish")

    def cut(self, last: bytes) -> None:
        self.log.append("cut")
        self.sent += last

    def follow(self, call: object) -> None:
        self.followed.append(call)


class Bed:
    """An attempt under way."""

    def __init__(
        self,
        *,
        operation: Operation = Operation.CHAT,
        is_stream: bool = True,
        may_fall_back: bool = False,
        error: UpstreamError | None = None,
        **timeouts: float,
    ) -> None:
        self.upstreams = FakeUpstreams(error)
        self.sink = FakeSink()
        self.budget = HoldBudget(1000)
        target = Target(upstream=MINE, model="m")
        request = ClientRequest(
            id="1",
            method="POST",
            path="/v1/chat/completions",
            query=None,
            headers=(),
            operation=operation,
            received_at=asyncio.get_running_loop().time(),
            client_ip="",
            is_stream=is_stream,
        )
        self.exchange = Exchange(request=request, state=State.TRYING)
        self.exchange.route = Route(name="fast", targets=(target,), timeouts=Timeouts())
        choice = Choice(target=target, model="m", is_mapped=True)
        self.run = Attempting(
            self.exchange, choice, self.sink, Timeouts(**timeouts), self.budget, may_fall_back=lambda refusal: may_fall_back
        )
        self.exchange.attempts.append(self.run.attempt)
        self.task: asyncio.Task[RelayError | None] | None = None

    async def begin(self, upload: Any = None) -> None:
        request = UpstreamRequest(upstream=MINE, method="POST", head=b"", body=b"", is_upload=upload is not None)
        self.task = asyncio.ensure_future(self.run.run(self.upstreams, request, upload, is_fresh=False))
        for _ in range(3):
            await asyncio.sleep(0)

    def head(self, status: int = 200, content_type: bytes = b"text/event-stream") -> None:
        self.run.head(
            ResponseHead(
                status=status,
                headers=(),
                framing=Framing.CHUNKED,
                content_length=None,
                content_type=content_type,
                is_encoded=False,
                received_at=asyncio.get_running_loop().time(),
            )
        )

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            assert self.run.relay is not None
            self.run.relay.feed(piece, asyncio.get_running_loop().time())

    async def result(self) -> RelayError | None:
        assert self.task is not None
        async with asyncio.timeout(1.0):
            return await self.task


async def test_an_answer_goes_to_the_client_and_the_attempt_is_over() -> None:
    bed = Bed()
    await bed.begin()
    bed.head()
    bed.feed(ROLE)
    assert bed.sink.log == []
    bed.feed(TEXT, DONE)
    bed.run.end(BodyEnd.WHOLE, anything=True)
    assert await bed.result() is None
    assert bed.sink.sent == ROLE + TEXT + DONE
    assert bed.sink.log == ["open", "write", "finish"]
    assert (bed.exchange.state, bed.exchange.outcome) == (State.COMMITTED, Outcome.COMPLETE)
    assert bed.sink.followed[-1] is None


async def test_what_comes_after_a_timeout_and_before_the_loop_wakes_reaches_nobody() -> None:
    bed = Bed()
    await bed.begin()
    bed.head()
    bed.feed(ROLE)
    bed.run.failed(UpstreamTimeout(Phase.FIRST_EVENT))
    assert bed.upstreams.call.closes == 1
    bed.feed(TEXT)
    bed.run._release()
    error = await bed.result()
    assert isinstance(error, UpstreamTimeout)
    assert bed.sink.log == []
    assert bed.exchange.state is State.TRYING


async def test_content_behind_a_flood_of_comments_reaches_nobody() -> None:
    bed = Bed()
    await bed.begin()
    bed.head()
    bed.feed(b": " + b"x" * COMMENT_BYTES + b"\n", TEXT, DONE)
    error = await bed.result()
    assert isinstance(error, MalformedResponse) and error.what is Malformation.TOO_LARGE
    assert bed.sink.log == []


async def test_a_cut_before_the_commit_gives_the_attempt_up_and_the_upstream_too() -> None:
    bed = Bed()
    await bed.begin()
    bed.head()
    bed.feed(ROLE)
    bed.run.cut(Outcome.DRAINED, "server_shutting_down")
    assert bed.upstreams.call.closes == 1
    bed.feed(TEXT)
    assert isinstance(await bed.result(), Draining)
    assert bed.sink.log == []


async def test_a_cut_after_the_commit_ends_the_answer_with_an_error_event_once() -> None:
    bed = Bed()
    await bed.begin()
    bed.head()
    bed.feed(TEXT)
    bed.run.cut(Outcome.DRAINED, "server_shutting_down")
    bed.run.cut(Outcome.DRAINED, "server_shutting_down")
    bed.run.end(BodyEnd.WHOLE, anything=True)
    assert bed.upstreams.call.closes >= 1
    assert await bed.result() is None
    assert bed.sink.log == ["open", "cut"]
    assert bed.sink.sent.startswith(TEXT + b'data: {"error":')
    assert (bed.exchange.outcome, bed.exchange.error_code) == (Outcome.DRAINED, "server_shutting_down")


async def test_no_connection_is_returned_as_the_failure_it_is() -> None:
    bed = Bed(error=ConnectFailed(ConnectFault.DNS))
    await bed.begin()
    assert isinstance(await bed.result(), ConnectFailed)
    assert bed.run.attempt.sent_at is None


@pytest.mark.parametrize(
    ("status", "is_replaced"), [(301, True), (401, True), (402, True), (403, True), (400, False), (429, False), (500, False)]
)
async def test_a_refusal_is_passed_on_when_nobody_else_is_left_except_four_kinds(status: int, is_replaced: bool) -> None:
    bed = Bed()
    await bed.begin()
    bed.head(status, b"application/json")
    if is_replaced:
        if status >= 400:
            bed.feed(b'{"error":{}}')
            bed.run.end(BodyEnd.WHOLE, anything=True)
        error = await bed.result()
        assert isinstance(error, UpstreamRefused) and error.status == status
        assert bed.sink.log == []
        return
    bed.feed(b'{"error":{}}')
    bed.run.end(BodyEnd.WHOLE, anything=True)
    assert await bed.result() is None
    assert bed.sink.sent == b'{"error":{}}'
    assert bed.exchange.status == status
    assert bed.exchange.outcome is (Outcome.REJECTED if status == 400 else Outcome.UPSTREAM_FAILED)


@pytest.mark.parametrize("end", [BodyEnd.CUT, BodyEnd.RESET])
async def test_a_refused_credential_is_one_whatever_becomes_of_the_body(end: BodyEnd) -> None:
    bed = Bed()
    await bed.begin()
    bed.head(401, b"application/json")
    bed.feed(b'{"err')
    bed.run.end(end, anything=True)
    error = await bed.result()
    assert isinstance(error, UpstreamRefused) and error.status == 401
    assert bed.sink.log == []


async def test_a_403_about_the_request_itself_is_passed_on() -> None:
    bed = Bed()
    await bed.begin()
    bed.head(403, b"application/json")
    body = b'{"error":{"message":"Your input was flagged","type":"invalid_request_error"}}'
    bed.feed(body)
    bed.run.end(BodyEnd.WHOLE, anything=True)
    assert await bed.result() is None
    assert bed.sink.sent == body
    assert bed.exchange.outcome is Outcome.REJECTED


async def test_a_refusal_falls_back_when_somebody_is_left() -> None:
    bed = Bed(may_fall_back=True)
    await bed.begin()
    bed.head(500, b"application/json")
    bed.run.end(BodyEnd.WHOLE, anything=True)
    assert isinstance(await bed.result(), UpstreamRefused)


@pytest.mark.parametrize("status", [100, 199, 600, 999])
async def test_a_status_outside_of_the_protocol_is_malformed(status: int) -> None:
    """A40."""
    bed = Bed()
    await bed.begin()
    bed.head(status)
    error = await bed.result()
    assert isinstance(error, MalformedResponse) and error.what is Malformation.PROTOCOL


@pytest.mark.parametrize(
    ("how", "kind"),
    [(BodyEnd.RESET, StreamBroken), (BodyEnd.CUT, StreamBroken), (BodyEnd.GARBAGE, MalformedResponse), (BodyEnd.OPEN, StreamBroken)],
)
async def test_an_end_before_the_head_is_a_failure(how: BodyEnd, kind: type[UpstreamError]) -> None:
    bed = Bed()
    await bed.begin()
    bed.run.end(how, anything=False)
    assert isinstance(await bed.result(), kind)


async def test_an_upstream_without_a_head_runs_into_its_time() -> None:
    """F7."""
    bed = Bed(first_token=0.02)
    await bed.begin()
    error = await bed.result()
    assert isinstance(error, UpstreamTimeout) and error.phase is Phase.FIRST_TOKEN


async def test_an_upstream_without_an_event_runs_into_its_time() -> None:
    """F8."""
    bed = Bed(first_token=0.02)
    await bed.begin()
    bed.head()
    bed.feed(b": comment\n\n")
    error = await bed.result()
    assert isinstance(error, UpstreamTimeout) and error.phase is Phase.FIRST_EVENT


async def test_silence_after_the_commit_is_a_stall_also_when_its_bound_is_the_shorter_one() -> None:
    """F16."""
    bed = Bed(first_token=30.0, between_tokens=0.02)
    await bed.begin()
    bed.head()
    bed.feed(TEXT)
    assert await bed.result() is None
    assert (bed.exchange.outcome, bed.exchange.error_code) == (Outcome.UPSTREAM_STALLED, "stream_idle_timeout")
    assert bed.sink.log == ["open", "cut"]


async def test_a_client_that_takes_nothing_is_not_the_upstreams_silence() -> None:
    bed = Bed(between_tokens=0.02)
    await bed.begin()
    bed.head()
    bed.sink.is_paused = True
    bed.feed(TEXT)
    await asyncio.sleep(0.05)
    assert bed.task is not None and not bed.task.done()
    bed.sink.is_paused = False
    assert await bed.result() is None
    assert bed.exchange.outcome is Outcome.UPSTREAM_STALLED


async def test_the_whole_has_a_bound_however_lively_the_stream() -> None:
    bed = Bed(total=0.05)
    await bed.begin()
    bed.head()
    for _ in range(20):
        if bed.task is None or bed.task.done():
            break
        if bed.exchange.outcome is None:
            bed.feed(TEXT)
        await asyncio.sleep(0.01)
    assert await bed.result() is None
    assert (bed.exchange.outcome, bed.exchange.error_code) == (Outcome.UPSTREAM_STALLED, "total_timeout")


async def test_who_cancels_leaves_no_timer_no_call_and_no_held_byte() -> None:
    """F32, F33."""
    bed = Bed(is_stream=False)
    await bed.begin()
    bed.head(200, b"application/json")
    bed.feed(b"x" * 900)
    assert not bed.budget.take(200)
    assert bed.task is not None
    bed.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bed.task
    assert bed.upstreams.call.closes == 1
    assert bed.budget.take(1000)
    assert bed.sink.followed == []
    assert all(timer is None or timer.cancelled() for timer in (bed.run._watchdog, bed.run._hold, bed.run._grace))


class Uploading:
    """An upload that does what it is told."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work

    async def run(self, call: object) -> None:
        await self._work()


async def test_an_upload_that_fails_fails_the_attempt() -> None:
    """F36."""

    async def stall() -> None:
        raise ClientError("request_timeout")

    bed = Bed(operation=Operation.OTHER, is_stream=False)
    await bed.begin(Uploading(stall))
    with pytest.raises(ClientError):
        await bed.result()
    assert bed.upstreams.call.closes == 1


async def test_an_answer_that_comes_before_the_upload_ends_wins_and_stops_it() -> None:
    stopped = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            stopped.set()

    bed = Bed(operation=Operation.OTHER, is_stream=False)
    await bed.begin(Uploading(endless))
    bed.head(413, b"application/json")
    bed.feed(b"{}")
    bed.run.end(BodyEnd.WHOLE, anything=True)
    assert await bed.result() is None
    assert bed.sink.sent == b"{}"
    async with asyncio.timeout(1.0):
        await stopped.wait()


async def test_an_upload_that_fails_while_the_client_leaves_is_no_unseen_failure() -> None:
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    reading = loop.create_future()

    async def read() -> None:
        await reading

    bed = Bed(operation=Operation.OTHER, is_stream=False)
    await bed.begin(Uploading(read))
    assert bed.task is not None
    reading.set_exception(ConnectionResetError("gone"))
    bed.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bed.task
    del bed
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert complaints == []


async def test_a_tunnel_carries_both_ways_and_holds_the_client_while_the_upstream_is_full() -> None:
    bed = Bed(operation=Operation.REALTIME, is_stream=False)
    await bed.begin()
    assert bed.run.switch is not None
    bed.run.switch(
        ResponseHead(
            status=101, headers=(), framing=Framing.NONE, content_length=None, content_type=b"", is_encoded=False, received_at=0.0
        ),
        b"",
    )
    bed.feed(b"down")
    bed.sink.take(b"up")
    call = bed.upstreams.call
    assert (bed.sink.sent, call.written) == (b"down", [b"up"])
    call.is_full = True  # type: ignore[misc]
    bed.sink.take(b"more")
    assert bed.sink.log[-1] == ("reading", False)
    assert call.on_writable is not None
    call.on_writable()
    assert bed.sink.log[-1] == ("reading", True)
    bed.run.end(BodyEnd.OPEN, anything=True)
    assert await bed.result() is None
    assert (bed.exchange.status, bed.exchange.outcome) == (101, Outcome.COMPLETE)
