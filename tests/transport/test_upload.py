"""Request bodies: read whole within bounds or streamed on, and never waited for without end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from relay.errors import ClientError
from relay.transport import upload
from relay.transport.upload import WIRE_FLOOR, WIRE_RATIO, BodyReader, StreamedUpload


class FakePayload:
    """A body that comes in pieces; `None` is a piece that never comes."""

    def __init__(self, *pieces: bytes | Exception | None, is_here: bool = False) -> None:
        self._pieces = list(pieces)
        self._is_here = is_here

    def is_eof(self) -> bool:
        return self._is_here or not self._pieces

    def at_eof(self) -> bool:
        return not self._pieces

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if piece is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(piece, Exception):
            raise piece
        assert piece is not None
        return piece

    def read_nowait(self, n: int = -1) -> bytes:
        data = b"".join(piece for piece in self._pieces if isinstance(piece, bytes))
        self._pieces.clear()
        return data


@dataclass
class FakeWire:
    """The connection a body comes from."""

    wire_bytes: int = 0
    continues: int = 0

    def send_continue(self) -> None:
        self.continues += 1


@dataclass
class FakeCall:
    """An upstream that takes an upload."""

    sent: list[bytes] = field(default_factory=list)
    drains: int = 0
    is_done: bool = False
    on_writable: Callable[[], None] | None = None
    is_reused = False
    is_full = False
    full_since = None

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    async def drain(self) -> None:
        self.drains += 1

    def upload_done(self) -> None:
        self.is_done = True

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self, receiver: object) -> None: ...


def reader(*pieces: bytes | Exception | None, wire: FakeWire | None = None, asks_first: bool = False, is_here: bool = False) -> BodyReader:
    return BodyReader(FakePayload(*pieces, is_here=is_here), wire or FakeWire(), asks_first=asks_first)


async def test_a_body_is_read_whole() -> None:
    assert await reader(b"ab", b"c").whole(10) == b"abc"
    assert await reader(b"ab", b"c", is_here=True).whole(10) == b"abc"
    assert await reader().whole(10) == b""


@pytest.mark.parametrize("is_here", [False, True])
async def test_a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not(is_here: bool) -> None:
    assert await reader(b"12345", b"67890", is_here=is_here).whole(10) == b"1234567890"
    with pytest.raises(ClientError) as caught:
        await reader(b"12345", b"67890", b"1", is_here=is_here).whole(10)
    assert caught.value.code == "request_too_large"


async def test_no_more_than_the_limit_and_a_piece_is_ever_held() -> None:
    endless = FakePayload(*[b"x" * 10] * 1000)
    with pytest.raises(ClientError):
        await BodyReader(endless, FakeWire(), asks_first=False).whole(100)
    assert len(endless._pieces) >= 1000 - 12


async def test_a_part_tells_whether_it_is_all() -> None:
    assert await reader(b"ab", b"c").part(10) == (b"abc", True)
    assert await reader(b"12345", b"67890").part(10) == (b"1234567890", True)
    assert await reader(b"ab", b"cd", b"ef").part(3) == (b"abcd", False)
    assert await reader(b"abcdef").part(3) == (b"abcdef", False)
    assert await reader().part(3) == (b"", True)


async def test_a_body_that_stops_coming_is_given_up() -> None:
    """F36."""
    stopped = reader(b"a", None)
    stopped.gap_seconds = 0.01
    with pytest.raises(ClientError) as caught:
        await stopped.whole(10)
    assert caught.value.code == "request_timeout"


async def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10_000, 15))
    monkeypatch.setattr(upload, "monotonic", lambda: float(next(ticks)))
    slow = reader(*[b"x"] * 100)
    assert [await slow.next(), await slow.next()] == [b"x", b"x"]
    with pytest.raises(ClientError) as caught:
        await slow.next()
    assert caught.value.code == "request_timeout"


async def test_an_upstream_that_takes_a_body_slowly_is_not_the_clients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(upload, "monotonic", lambda: clock[0])
    prompt = reader(*[b"x"] * 10)
    for _ in range(10):
        clock[0] += 60.0
        assert await prompt.next() == b"x"


async def test_a_body_that_is_far_larger_on_the_wire_than_its_content_is_an_attack() -> None:
    """A13."""
    wire = FakeWire(wire_bytes=500)
    amplified = reader(*[b"x" * 100] * 100, wire=wire)
    wire.wire_bytes = 500 + WIRE_FLOOR
    assert await amplified.next()
    wire.wire_bytes += 1
    with pytest.raises(ClientError) as caught:
        await amplified.next()
    assert caught.value.code == "amplified_body"


async def test_chunks_of_an_ordinary_size_are_no_attack() -> None:
    wire = FakeWire()
    data = b"x" * (WIRE_FLOOR // WIRE_RATIO + 1)
    ordinary = reader(data, data, wire=wire)
    wire.wire_bytes = WIRE_FLOOR + 1
    assert len(await ordinary.whole(WIRE_FLOOR)) == 2 * len(data)


async def test_a_client_that_asks_first_is_told_to_go_on_once_and_only_when_its_body_is_wanted() -> None:
    """A34."""
    wire = FakeWire()
    asking = reader(b"a", b"b", wire=wire, asks_first=True)
    assert wire.continues == 0
    assert await asking.whole(10) == b"ab"
    assert wire.continues == 1


async def test_a_body_that_stopped_being_http_is_refused() -> None:
    with pytest.raises(ClientError) as caught:
        await reader(b"a", ClientError("bad_request")).whole(10)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("is_chunked", "sent"),
    [(False, [b"first", b"a" * 20, b"b"]), (True, [b"5\r\nfirst\r\n", b"14\r\n" + b"a" * 20 + b"\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"])],
)
async def test_an_upload_is_copied_piece_by_piece(is_chunked: bool, sent: list[bytes]) -> None:
    call = FakeCall()
    await StreamedUpload(reader(b"a" * 20, b"b"), b"first", is_chunked=is_chunked).run(call)
    assert call.sent == sent
    assert call.drains == 3
    assert call.is_done


async def test_an_upload_that_stops_is_never_marked_as_done() -> None:
    call = FakeCall()
    stopped = reader(b"a", None)
    stopped.gap_seconds = 0.01
    with pytest.raises(ClientError):
        await StreamedUpload(stopped, b"", is_chunked=True).run(call)
    assert call.sent == [b"1\r\na\r\n"]
    assert not call.is_done
