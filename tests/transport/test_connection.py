"""A connection to an upstream without sockets: every head, framing and end at every cut, and never an answer for the wrong call."""

import asyncio

import pytest

from relay.exchange import Framing
from relay.stream import BodyEnd
from relay.transport.connection import MAX_HEAD, MAX_HEADERS, MAX_INTERIM, MAX_LINE, Connection
from tests.transport.doubles import FakeHome, FakeTransport, RecordingReceiver, request_for

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
)
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: Application/JSON\r\nContent-Length: 11\r\n\r\nhello world"
CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nConnection: close\r\n\r\nhello world"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Bed:
    """A connection with a call on it."""

    def __init__(self, method: str = "GET", *, takes_switch: bool = False, is_upload: bool = False) -> None:
        self.home = FakeHome()
        self.transport = FakeTransport()
        self.connection = Connection(self.home)
        self.connection.connection_made(self.transport)
        self.receiver = self.call(method, takes_switch=takes_switch, is_upload=is_upload)

    def call(self, method: str = "GET", *, takes_switch: bool = False, is_upload: bool = False) -> RecordingReceiver:
        self.receiver = RecordingReceiver(takes_switch=takes_switch)
        self.connection.start(request_for(method, is_upload=is_upload), self.receiver)
        return self.receiver

    def feed(self, *pieces: bytes) -> RecordingReceiver:
        for piece in pieces:
            self.connection.data_received(piece)
        return self.receiver

    @property
    def is_kept(self) -> bool:
        assert len(self.home.kept) <= 1
        assert not (self.home.kept and self.transport.is_closing())
        return bool(self.home.kept)


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


# Framing


@pytest.mark.parametrize(("raw", "framing"), [(CHUNKED, Framing.CHUNKED), (LENGTH, Framing.LENGTH)], ids=["chunked", "length"])
async def test_an_answer_split_at_any_byte_is_the_same_answer(raw: bytes, framing: Framing) -> None:
    for cut in range(1, len(raw)):
        bed = Bed()
        receiver = bed.feed(raw[:cut], raw[cut:])
        assert receiver.body == b"hello world", cut
        assert receiver.heads[0].framing is framing
        assert receiver.ends == [(BodyEnd.WHOLE, True)]
        assert bed.is_kept


@pytest.mark.parametrize("raw", [CHUNKED, LENGTH], ids=["chunked", "length"])
async def test_an_answer_in_single_bytes_is_the_same_answer(raw: bytes) -> None:
    bed = Bed()
    receiver = bed.feed(*pieces_of(raw, 1))
    assert (receiver.body, receiver.how) == (b"hello world", BodyEnd.WHOLE)


@pytest.mark.parametrize("raw", [CHUNKED, LENGTH], ids=["chunked", "length"])
@pytest.mark.parametrize("exc", [None, ConnectionResetError()], ids=["FIN", "RST"])
async def test_an_answer_that_stops_at_any_byte_is_never_whole(raw: bytes, exc: Exception | None) -> None:
    body_starts = raw.index(b"\r\n\r\n") + 4
    for cut in range(len(raw)):
        bed = Bed()
        if cut:
            bed.feed(raw[:cut])
        bed.connection.connection_lost(exc)
        expected = BodyEnd.RESET if exc is not None or cut == 0 else BodyEnd.CUT
        assert bed.receiver.ends == [(expected, cut > 0)], cut
        assert bool(bed.receiver.heads) == (cut >= body_starts), cut
        assert b"hello world".startswith(bed.receiver.body)
        assert bed.home.kept == []
        assert bed.home.forgotten == [bed.connection]


async def test_a_body_that_only_the_end_of_the_connection_ends_is_open_by_fin_and_reset_by_rst() -> None:
    for exc, how in ((None, BodyEnd.OPEN), (ConnectionResetError(), BodyEnd.RESET)):
        for cut in range(CLOSE.index(b"\r\n\r\n") + 4, len(CLOSE)):
            bed = Bed()
            bed.feed(CLOSE[:cut], CLOSE[cut:])
            assert bed.receiver.ends == []
            bed.connection.connection_lost(exc)
            assert bed.receiver.heads[0].framing is Framing.CLOSE
            assert (bed.receiver.body, bed.receiver.how) == (b"hello world", how)


async def test_the_pieces_of_one_read_are_handed_on_together_and_after_the_head() -> None:
    assert Bed().feed(CHUNKED).log == ["head", ("body", b"hello world"), ("end", BodyEnd.WHOLE)]


async def test_the_head_is_told_as_it_stood_on_the_wire() -> None:
    raw = b"HTTP/1.1 418 anything \xff here\r\nX-Odd: caf\xe9\r\nx-odd:  twice \r\nContent-Encoding: GZip\r\nContent-Length: 0\r\n\r\n"
    head = Bed().feed(raw).heads[0]
    assert head.status == 418
    assert [(name, value.strip()) for name, value in head.headers[:2]] == [(b"X-Odd", b"caf\xe9"), (b"x-odd", b"twice")]
    assert head.is_encoded
    assert head.content_length == 0


async def test_the_media_type_is_lower_case_without_parameters() -> None:
    assert Bed().feed(CHUNKED).heads[0].content_type == b"text/event-stream"
    assert Bed().feed(LENGTH).heads[0].content_type == b"application/json"


async def test_trailers_are_dropped() -> None:
    receiver = Bed().feed(CHUNKED[:-2] + b"X-Trailer: 1\r\n\r\n")
    assert receiver.how is BodyEnd.WHOLE
    assert all(name != b"X-Trailer" for name, _ in receiver.heads[0].headers)


@pytest.mark.parametrize("endless", [b"0\r\nX-Trailer: ", b"5;extension=", b"0000"], ids=["trailer", "extension", "size"])
async def test_endless_bytes_around_a_body_are_garbage(endless: bytes) -> None:
    bed = Bed()
    receiver = bed.feed(CHUNKED[:-5], endless)
    for _ in range(MAX_HEAD // 1024):
        assert receiver.how is None
        bed.feed(b"0" * 1024)
    assert receiver.how is BodyEnd.GARBAGE
    assert receiver.body == b"hello world"
    assert bed.transport.is_closing()


async def test_sizes_that_come_apart_from_their_chunks_are_no_garbage_however_many() -> None:
    receiver = Bed().feed(CHUNKED[: CHUNKED.index(b"5\r\nhello")], *(b"1\r\n", b"x", b"\r\n") * MAX_HEAD, b"0\r\n\r\n")
    assert receiver.how is BodyEnd.WHOLE
    assert receiver.body == b"x" * MAX_HEAD


# No body


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
async def test_an_answer_to_head_ends_with_its_head(raw: bytes) -> None:
    bed = Bed("HEAD")
    receiver = bed.feed(raw)
    assert receiver.heads[0].framing is Framing.NONE
    assert (receiver.body, receiver.how) == (b"", BodyEnd.WHOLE)
    assert not bed.is_kept


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body_end_with_their_head(status: int) -> None:
    receiver = Bed().feed(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n\r\n" % status)
    assert receiver.heads[0].framing is Framing.NONE
    assert receiver.how is BodyEnd.WHOLE


# Interim answers and upgrades


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"104 Upload"])
async def test_interim_answers_are_passed_over(interim: bytes) -> None:
    raw = b"HTTP/1.1 %b\r\nLink: </x>\r\n\r\n" % interim + OK
    for cut in range(1, len(raw)):
        receiver = Bed().feed(raw[:cut], raw[cut:])
        assert (receiver.heads[0].status, receiver.body, receiver.how) == (200, b"ok", BodyEnd.WHOLE)
        assert receiver.heads[0].headers == ((b"Content-Length", b"2"),)


async def test_nothing_of_an_interim_answer_reaches_the_real_one() -> None:
    interim = b"HTTP/1.1 103 X\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n"
    head = Bed().feed(interim + b"HTTP/1.1 200 OK\r\n\r\n").heads[0]
    assert (head.content_type, head.is_encoded, head.content_length, head.framing) == (b"", False, None, Framing.CLOSE)


async def test_endless_interim_answers_are_garbage() -> None:
    receiver = Bed().feed(b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM + 1) + OK)
    assert (receiver.heads, receiver.how) == ([], BodyEnd.GARBAGE)


@pytest.mark.parametrize("lines", [b"", b"Upgrade: websocket\r\nConnection: Upgrade\r\n"], ids=["bare", "upgrade"])
async def test_a_101_that_nobody_asked_for_is_garbage(lines: bytes) -> None:
    bed = Bed()
    receiver = bed.feed(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\nraw bytes")
    assert receiver.how is BodyEnd.GARBAGE
    assert receiver.body == b""
    assert bed.transport.is_aborted


async def test_a_101_that_was_asked_for_opens_a_tunnel_that_lasts() -> None:
    bed = Bed(takes_switch=True)
    receiver = bed.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
    ((head, rest),) = receiver.switched
    assert (head.status, rest) == (101, b"first")
    assert receiver.ends == []
    assert not bed.transport.is_closing()
    bed.feed(b"HTTP/1.1 500 not a head\r\n\r\n", b"\x81\x00")
    assert receiver.body == b"HTTP/1.1 500 not a head\r\n\r\n\x81\x00"
    bed.connection.connection_lost(None)
    assert receiver.how is BodyEnd.OPEN


async def test_a_refused_upgrade_is_an_ordinary_answer() -> None:
    receiver = Bed(takes_switch=True).feed(OK)
    assert (receiver.heads[0].status, receiver.body, receiver.switched) == (200, b"ok", [])


# Bad answers


@pytest.mark.parametrize(
    "raw",
    [
        b"hello\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\nX: bare line feeds\n\nbody",
    ],
)
async def test_a_malformed_head_is_garbage_and_closes_the_connection(raw: bytes) -> None:
    bed = Bed()
    receiver = bed.feed(raw)
    assert (receiver.body, receiver.ends) == (b"", [(BodyEnd.GARBAGE, True)])
    assert bed.transport.is_aborted
    assert not bed.is_kept


async def test_too_many_headers_are_garbage() -> None:
    lines = b"".join(b"X-%d: 1\r\n" % number for number in range(MAX_HEADERS + 1))
    assert Bed().feed(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n").how is BodyEnd.GARBAGE


async def test_too_long_a_line_is_garbage() -> None:
    assert Bed().feed(b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_LINE + b"\r\n\r\n").how is BodyEnd.GARBAGE


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 "], ids=["line", "reason"])
async def test_a_head_without_end_is_garbage_within_its_bound(start: bytes) -> None:
    bed = Bed()
    fed = 0
    bed.feed(start)
    while bed.receiver.how is None and fed < 2 * MAX_HEAD:
        bed.feed(b"a" * 1000)
        fed += 1000
    assert bed.receiver.how is BodyEnd.GARBAGE
    assert fed <= MAX_HEAD + 1000
    assert bed.transport.is_aborted


async def test_good_chunks_before_a_malformed_one_are_delivered_first() -> None:
    good = CHUNKED[: CHUNKED.index(b"0\r\n\r\n")]
    for bad in (b"zz\r\n", b"-1\r\n", b"5\r\nhelloXX", b"FFFFFFFFFFFFFFFFFFF\r\n", b"5 \r\nhello"):
        for cut in range(1, len(good)):
            bed = Bed()
            receiver = bed.feed(good[:cut], good[cut:] + bad)
            assert receiver.body.startswith(b"hello world"), (bad, cut)
            assert receiver.log[-1] == ("end", BodyEnd.GARBAGE), (bad, cut)
            assert bed.transport.is_aborted
            assert not bed.is_kept


# After the answer


@pytest.mark.parametrize("extra", [b"x", b"\x00\x01", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"0\r\n\r\n"])
async def test_bytes_behind_an_answer_do_not_spoil_it_but_nothing_follows_on_the_connection(extra: bytes) -> None:
    """F29."""
    bed = Bed()
    receiver = bed.feed(LENGTH + extra)
    assert (receiver.body, receiver.ends) == (b"hello world", [(BodyEnd.WHOLE, True)])
    assert not bed.is_kept
    assert bed.transport.is_aborted


async def test_bytes_on_an_idle_connection_close_it_and_reach_nobody() -> None:
    bed = Bed()
    first = bed.feed(OK)
    bed.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    assert bed.transport.is_aborted
    assert not bed.connection.is_usable
    assert (first.body, len(first.ends)) == (b"ok", 1)


async def test_a_connection_serves_one_call_after_another() -> None:
    bed = Bed()
    assert not bed.connection.is_reused
    for _ in range(3):
        receiver = bed.feed(CHUNKED)
        assert (receiver.body, receiver.how) == (b"hello world", BodyEnd.WHOLE)
        assert bed.is_kept
        bed.home.kept.clear()
        bed.call()
        assert bed.connection.is_reused
    receiver = bed.feed(*pieces_of(LENGTH, 7))
    assert (receiver.heads[0].content_length, receiver.body, receiver.how) == (11, b"hello world", BodyEnd.WHOLE)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["close", "HTTP/1.0"],
)
async def test_an_upstream_that_will_close_is_not_asked_again(raw: bytes) -> None:
    bed = Bed()
    assert bed.feed(raw).how is BodyEnd.WHOLE
    assert not bed.is_kept
    assert bed.transport.is_aborted


async def test_a_connection_whose_upload_is_not_done_is_not_kept() -> None:
    bed = Bed("POST", is_upload=True)
    assert bed.feed(OK).how is BodyEnd.WHOLE
    assert not bed.is_kept


async def test_a_connection_whose_upload_is_done_is_kept() -> None:
    bed = Bed("POST", is_upload=True)
    bed.connection.upload_done()
    bed.feed(OK)
    assert bed.is_kept


async def test_a_paused_connection_is_not_kept() -> None:
    bed = Bed()
    bed.connection.pause()
    assert not bed.transport.is_reading
    bed.feed(OK)
    assert not bed.is_kept


# Who may close what


async def test_only_the_receiver_of_the_call_can_close_it() -> None:
    bed = Bed()
    first = bed.feed(OK)
    bed.home.kept.clear()
    second = bed.call()
    bed.connection.close(first)
    bed.connection.close(RecordingReceiver())
    assert not bed.transport.is_closing()
    bed.connection.close(second)
    assert bed.transport.is_aborted
    bed.connection.connection_lost(None)
    assert second.ends == []


async def test_a_receiver_that_closes_in_its_head_gets_nothing_more() -> None:
    bed = Bed()
    bed.receiver.on_head = lambda: bed.connection.close(bed.receiver)
    receiver = bed.feed(CHUNKED)
    assert receiver.log == ["head"]
    assert bed.transport.is_aborted
    assert not bed.is_kept


async def test_a_bug_of_the_receiver_is_told_to_it_and_closes_the_connection() -> None:
    """F46."""

    def fail() -> None:
        raise KeyError("a bug")

    bed = Bed()
    bed.receiver.on_head = fail
    receiver = bed.feed(CHUNKED)
    assert [type(error) for error in receiver.crashes] == [KeyError]
    assert (receiver.body, receiver.ends) == (b"", [])
    assert bed.transport.is_aborted
    assert not bed.is_kept


async def test_pause_and_resume_reach_the_transport_once_and_never_a_closed_one() -> None:
    bed = Bed()
    bed.connection.pause()
    bed.connection.pause()
    assert not bed.transport.is_reading
    bed.connection.resume()
    assert bed.transport.is_reading
    bed.transport.is_reading = False
    bed.connection.resume()
    assert not bed.transport.is_reading
    bed.connection.discard()
    bed.connection.pause()
    bed.connection.resume()
    assert not bed.transport.is_reading


async def test_an_upload_waits_while_the_upstream_is_full_and_not_when_it_is_gone() -> None:
    bed = Bed("POST", is_upload=True)
    told: list[bool] = []
    bed.connection.on_writable = lambda: told.append(True)
    await bed.connection.drain()
    bed.connection.pause_writing()
    assert bed.connection.is_full
    waiting = asyncio.ensure_future(bed.connection.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    bed.connection.resume_writing()
    await waiting
    assert (bed.connection.is_full, told) == (False, [True])
    bed.connection.pause_writing()
    waiting = asyncio.ensure_future(bed.connection.drain())
    await asyncio.sleep(0)
    bed.connection.connection_lost(ConnectionResetError())
    await waiting
    await bed.connection.drain()
    bed.connection.write(b"swallowed")
    assert b"swallowed" not in bed.transport.written


async def test_a_request_goes_out_in_one_write() -> None:
    bed = Bed()
    bed.feed(OK)
    writes: list[bytes] = []
    bed.transport.write = writes.append  # type: ignore[method-assign]
    bed.connection.start(request_for("POST", body=b"{}"), RecordingReceiver())
    assert writes == [b"POST / HTTP/1.1\r\n\r\n{}"]
