"""One connection to Redis: calls of scripts leave in batches, answers come in their order, and no silence lasts longer than a timeout.

The first call that is late, refused or answered by something else breaks the line, and with it every call under way: whoever waits goes on
at once, and nobody asks again before the line is open anew. redis-py opens it (address, TLS, password) and reads the answers.

Late is what finds Redis silent: hundreds of calls at once wait for each other, and as long as answers come nothing is wrong. Nor is it when
this process had no time to read them. To take either for an outage would break limits that everybody could have kept.
"""

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from redis.asyncio import Connection

OPEN_SECONDS: Final = 1.0
"""For connecting, TLS and password; no request waits for it."""
MOST_TIMEOUTS: Final = 10
"""A call that waits for so many, while others are answered, is late all the same."""
LATE_SECONDS: Final = 0.01
"""A timer that fires this late says that this process had no time, not that Redis had none."""

ANY_SIZE: Final = -1
"""Of an answer with as many numbers as there are to tell."""
_MOMENT_SECONDS: Final = 0.001

Done = Callable[[Sequence[int] | None], None]
"""Takes the numbers of an answer; None when the line broke, which leaves open whether the script has run."""


class RedisUnusable(Exception):
    """Redis is configured and can never be used. The text says what to do."""


class LineBroken(Exception):
    """The connection cannot be had. The text says why, and holds no password."""


class Script:
    """One script, called by its digest."""

    __slots__ = ("_digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self._digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def command(self, keys: Sequence[bytes], arguments: Sequence[bytes], *, is_known: bool = True) -> bytes:
        """Return the call as it is sent, with the script's text unless the server should know it."""
        call = (b"EVALSHA", self._digest) if is_known else (b"EVAL", self.text)
        return packed((*call, b"%d" % len(keys), *keys, *arguments))


def packed(parts: Sequence[bytes]) -> bytes:
    """Return a command in the protocol's form: RESP2, an array of bulk strings."""
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class _Call(NamedTuple):
    script: Script
    keys: Sequence[bytes]
    arguments: Sequence[bytes]
    size: int
    done: Done
    at: float


class Line:
    """The connection, made anew each time it is opened."""

    __slots__ = (
        "_connection",
        "_due_at",
        "_heard_at",
        "_is_extended",
        "_is_last_look",
        "_loop",
        "_pump",
        "_queue",
        "_sent",
        "_timeout",
        "_timer",
        "_unknown",
        "_url",
        "_wake",
        "_why",
        "broken",
        "is_open",
    )

    def __init__(self, url: str, timeout: float, broken: Callable[[str], None]) -> None:
        """Connect to `url` when told to; `broken` is told why a line that was open is no more. Raises RedisUnusable."""
        _connection_to(url)  # says what is wrong now, not at night
        self._url = url
        self._timeout = timeout
        self.broken = broken
        self.is_open = False
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop
        self._pump: asyncio.Task[None] | None = None
        self._queue: list[_Call] = []
        self._sent: deque[_Call] = deque()
        self._unknown: list[_Call] = []
        self._wake: asyncio.Future[None] | None = None
        self._timer: asyncio.Handle | None = None
        self._due_at = 0.0
        """When the timer should fire."""
        self._heard_at = 0.0
        """When Redis was last heard, or asked. Not by the loop's clock, which stands still while the loop has much to do."""
        self._is_extended = False
        self._is_last_look = False
        self._why = "closed"

    async def open(self) -> None:
        """Connect. Raises LineBroken."""
        self._loop = asyncio.get_running_loop()
        connection = _connection_to(self._url)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever redis-py makes of it
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)
            raise LineBroken(_reason(error)) from None
        self._connection = connection
        self.is_open = True
        self._pump = self._loop.create_task(self._run(connection))

    def call(self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes], count: int, done: Done) -> None:
        """Run `script`, whose answer has `count` numbers or ANY_SIZE, and hand them to `done`; only while the line is open."""
        now = monotonic()
        self._queue.append(_Call(script, keys, arguments, count, done, now))
        if self._timer is None:
            self._look_in(self._timeout, now)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def ask(self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes], count: int = 1) -> Sequence[int]:
        """Run `script` and wait for its answer. Raises LineBroken."""
        if not self.is_open:
            raise LineBroken(self._why)
        answer: asyncio.Future[Sequence[int] | None] = self._loop.create_future()
        self.call(script, keys, arguments, count, lambda numbers: None if answer.done() else answer.set_result(numbers))
        numbers = await answer
        if numbers is None:
            raise LineBroken(self._why)
        return numbers

    @property
    def why(self) -> str:
        """Return why it is not open any more."""
        return self._why

    async def flushed(self) -> None:
        """Wait until every call so far is answered, or the line is broken."""
        while self.is_open and (self._queue or self._sent):  # noqa: ASYNC110  # once in a life
            await asyncio.sleep(0.002)

    def close(self) -> None:
        """Let go of the connection; calls under way are broken."""
        self._end()

    async def _run(self, connection: "Connection") -> None:
        try:
            while True:
                if not self._queue:
                    self._wake = self._loop.create_future()
                    await self._wake
                batch, self._queue = self._queue, []
                unknown = await self._exchange(connection, batch, is_known=True)
                if unknown:
                    await self._exchange(connection, unknown, is_known=False)
        except Exception as error:  # whatever it is, this connection is of no more use
            self._break(_reason(error))

    async def _exchange(self, connection: "Connection", batch: list[_Call], *, is_known: bool) -> list[_Call]:
        """Send calls and take their answers; return those whose script the server did not know."""
        self._heard_at = monotonic()
        self._sent.extend(batch)
        command = b"".join([call.script.command(call.keys, call.arguments, is_known=is_known) for call in batch])
        await connection.send_packed_command(command, check_health=False)
        while self._sent:
            try:
                answer = await connection.read_response(disable_decoding=True)
            except Exception as error:
                if not is_known or type(error).__name__ != "NoScriptError":
                    raise
                self._unknown.append(self._heard())
            else:
                self._answered(answer)
        unknown, self._unknown = self._unknown, []
        return unknown

    def _answered(self, answer: object) -> None:
        if not isinstance(answer, bytes):
            raise ValueError("an answer that is none of our scripts'")
        numbers = list(map(int, answer.split()))
        call = self._sent[0]
        if len(numbers) != call.size and call.size != ANY_SIZE:
            raise ValueError("an answer that is none of our scripts'")
        self._heard()
        call.done(numbers)

    def _heard(self) -> _Call:
        """Note that the oldest call was answered, and return it."""
        self._heard_at = monotonic()
        self._is_extended = self._is_last_look = False
        return self._sent.popleft()

    def _look(self) -> None:
        """See whether the oldest call is late; the one timer of the line, armed while anything is under way."""
        self._timer = None
        oldest = self._sent[0] if self._sent else self._queue[0] if self._queue else None
        if oldest is None or not self.is_open:
            return
        now = monotonic()
        if not self._sent:
            self._look_in(self._timeout, now)  # not asked yet
            return
        left = min(self._heard_at + self._timeout, oldest.at + MOST_TIMEOUTS * self._timeout) - now
        if left > 0:
            self._look_in(left, now)
        elif now - self._due_at > LATE_SECONDS and not self._is_extended:
            self._is_extended = True
            self._look_in(self._timeout, now)
        elif not self._is_last_look:
            # What has arrived by now is read first: the loop takes it in during this moment, and hands it on before what is put behind it.
            self._is_last_look = True
            self._due_at = now + _MOMENT_SECONDS
            self._timer = self._loop.call_later(_MOMENT_SECONDS, self._look_behind)
        else:
            self._break("timeout")

    def _look_behind(self) -> None:
        self._timer = self._loop.call_soon(self._look)

    def _look_in(self, seconds: float, now: float) -> None:
        self._due_at = now + seconds
        self._timer = self._loop.call_later(seconds, self._look)

    def _break(self, reason: str) -> None:
        if self.is_open:
            self._why = reason
            self._end()
            self.broken(reason)

    def _end(self) -> None:
        if not self.is_open:
            return
        self.is_open = self._is_extended = self._is_last_look = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls = [*self._unknown, *self._sent, *self._queue]
        self._unknown = []
        self._sent.clear()
        self._queue = []
        if self._pump is not None and self._pump is not _current_task():
            self._pump.cancel()
        if self._connection is not None:
            # Kept by the pump's place, so that it is not collected half-way.
            self._pump = self._loop.create_task(_hang_up(self._connection))
            self._connection = None
        for call in calls:
            call.done(None)


def _current_task() -> "asyncio.Task[object] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def _hang_up(connection: "Connection") -> None:
    with contextlib.suppress(Exception):
        await connection.disconnect(nowait=True)


def _connection_to(url: str) -> "Connection":
    try:
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise RedisUnusable("`redis` is configured, but redis-py is not installed; install it with: pip install 'relay[redis]'") from None
    try:
        pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, retry=Retry(NoBackoff(), 0))
        connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        return connection
    except Exception:
        raise RedisUnusable("`redis` is no address that redis-py understands, such as redis://host:6379/0") from None


def _reason(error: Exception) -> str:
    """Say what happened in a word or two; the library's own text may name the address."""
    if isinstance(error, TimeoutError):
        return "timeout"
    word = str(error).split(" ", 1)[0]
    if word.isupper() and word.isalpha():
        return word  # Redis' own errors begin with their kind: LOADING, READONLY, OOM, NOAUTH
    return {"BusyLoadingError": "LOADING", "ReadOnlyError": "READONLY", "ValueError": "unknown answer"}.get(
        type(error).__name__, type(error).__name__
    )
