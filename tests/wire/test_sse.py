import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.wire.sse import DONE, MAX_EVENT_BYTES, Event, EventSplitter
from tests.wire.transcripts import STREAMS, byte_by_byte, cut_at, stream

BOM = b"\xef\xbb\xbf"


def read(*pieces: bytes) -> list[Event]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


def boundary(*pieces: bytes) -> bool:
    splitter = EventSplitter()
    for piece in pieces:
        splitter.feed(piece)
    return splitter.at_boundary


def reference(data: bytes) -> tuple[list[Event], bool]:
    """Read a whole stream the slow, obvious way; events and whether it stops between two of them."""
    *lines, rest = re.split(rb"\r\n|\r|\n", data.removeprefix(BOM))
    events: list[Event] = []
    name, values, is_pending = b"", [], False
    for line in lines:
        if not line:
            if values and values != [b"[DONE]"]:
                events.append(Event(name, b"\n".join(values)))
            name, values, is_pending = b"", [], False
        elif not line.startswith(b":"):
            is_pending = True
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                if value == b"[DONE]" and not values:
                    events.append(DONE)
                values.append(value)
            elif field == b"event":
                name = value
    return events, not rest and not is_pending


FRAGMENTS = st.sampled_from(
    [
        b"data:",
        b"data: ",
        b"data",
        b"event: x",
        b"event:",
        b"id: 1",
        b"retry: 5",
        b": note",
        b":",
        b"[DONE]",
        b"data: [DONE]",
        b"foo: 1",
        b"{}",
        b"\n",
        b"\n\n",
        b"\r",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        BOM,
        BOM[:2],
        b"\x00",
        b"\xff",
        "é👋".encode(),
        b"\x85",
        b"\x0b",
        b"\x0c",
    ]
)
STREAM_BYTES = st.one_of(st.lists(FRAGMENTS, max_size=30).map(b"".join), st.binary(max_size=200))


@settings(deadline=None)
@given(STREAM_BYTES, st.lists(st.integers(min_value=0), max_size=8))
def test_any_bytes_in_any_cuts_read_like_the_standard_says(data: bytes, cuts: list[int]) -> None:
    events, is_between = reference(data)
    assert read(*cut_at(data, cuts)) == events
    assert boundary(*cut_at(data, cuts)) == is_between


@settings(deadline=None)
@given(STREAM_BYTES)
def test_a_boundary_is_told_after_every_byte(data: bytes) -> None:
    splitter = EventSplitter()
    for end, byte in enumerate(byte_by_byte(data), start=1):
        splitter.feed(byte)
        assert splitter.at_boundary == reference(data[:end])[1]


@pytest.mark.parametrize("name", STREAMS)
def test_a_transcript_reads_like_the_standard_says(name: str) -> None:
    data = stream(name)
    assert read(data) == reference(data)[0]
    if len(data) < 10_000:
        assert read(*byte_by_byte(data)) == reference(data)[0]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_of_all_three_kinds_separate_and_dispatch(end: bytes) -> None:
    assert read(b"event: a" + end + b"data: 1" + end + b"data:2" + end + end + b"data: 3" + end + end) == [
        Event(b"a", b"1\n2"),
        Event(b"", b"3"),
    ]


def test_crlf_cut_between_its_bytes_is_one_line_end() -> None:
    assert read(b"data: 1\r", b"\n", b"data: 2\r", b"", b"\n\r", b"\n") == [Event(b"", b"1\n2")]


def test_events_without_data_are_not_dispatched() -> None:
    assert read(b"event: ping\n\nid: 3\n\nretry: 10\n\n: note\n\n\n\nerror: {}\n\n") == []


def test_an_empty_data_line_is_an_event_with_empty_data() -> None:
    assert read(b"data:\n\ndata\n\n") == [Event(b"", b""), Event(b"", b"")]


def test_only_one_space_after_the_colon_is_taken() -> None:
    assert read(b"data:  x\n\n") == [Event(b"", b" x")]


def test_bom_is_taken_once_at_the_start() -> None:
    assert read(BOM[:1], BOM[1:], b"data: 1\n\n", BOM + b"data: 2\n\n") == [Event(b"", b"1")]


@pytest.mark.parametrize("line", [b"data: [DONE]\n", b"data:[DONE]\n", b"data: [DONE]\r", b"data: [DONE]\r\n"])
def test_done_is_told_when_its_line_ends(line: bytes) -> None:
    splitter = EventSplitter()
    assert splitter.feed(line[:12].rstrip()) == []
    assert splitter.feed(line[len(line[:12].rstrip()) :]) == [DONE]
    assert splitter.feed(b"\n\n") == []


@pytest.mark.parametrize("line", [b"data: [DONE]", b"data: [DONE] \n\n", b"data:  [DONE]\n\n", b"data: x\ndata: [DONE]\n\n", b"[DONE]\n\n"])
def test_done_is_not_told_for_anything_else(line: bytes) -> None:
    assert DONE not in [event for event in read(line) if event is DONE]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", True),
        (b"data: 1\n\n", True),
        (b"data: 1\r\n\r", True),
        (b"data: 1\n", False),
        (b"data: 1", False),
        (b"id: 1\n", False),
        (b"error: {}\n", False),
        (b": note\n", True),
        (b": note", False),
        (b"data: 1\n: note\n", False),
        (BOM, True),
        (BOM[:2], False),
    ],
)
def test_an_event_may_be_appended_only_between_events(data: bytes, expected: bool) -> None:
    assert boundary(data) is expected


BIG = b"x" * MAX_EVENT_BYTES


@pytest.mark.parametrize("step", [1000, 2**16, 10**9])
def test_f30_an_oversized_event_is_told_without_its_data_and_the_next_is_read(step: int) -> None:
    data = b"event: a\ndata: " + BIG + b"\nevent: b\n\ndata: 2\n\n"
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    assert read(*pieces) == [Event(b"a", None), Event(b"", b"2")]


def test_an_event_of_exactly_the_limit_is_read() -> None:
    value = BIG[len(b"data:") :]
    assert read(b"data:" + value + b"\n\n") == [Event(b"", value)]
    assert read(b"data:" + value + b"x\n\n") == [Event(b"", None)]
    assert read(b"data:" + value, b"\n\n") == [Event(b"", value)]
    assert read(b"data:" + value, b"x\n", b"\n") == [Event(b"", None)]


def test_long_comments_are_neither_kept_nor_counted() -> None:
    assert read(b":" + BIG + BIG + b"\ndata: 1\n", b":" + BIG, BIG, b"\n\n") == [Event(b"", b"1")]


def test_memory_stays_bounded_in_an_endless_line() -> None:
    splitter = EventSplitter()
    piece = b"data: " + b"x" * 2**16
    tracemalloc.start()
    for _ in range(1000):
        splitter.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20
    assert not splitter.at_boundary
