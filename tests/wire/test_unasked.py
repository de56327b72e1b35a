"""Usage that nobody asked for is taken out, and nothing else, however the bytes are cut."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.unasked import MAX_HELD_BYTES, UsageRemover

DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}\n\n'
USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
KEPT = (
    DELTA,
    b": keep-alive\n",
    b"\n",
    b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
    b'data: {"choices":[],"usage":null}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\n',
    b'data: {"choices":[{"delta":{"content":"\\"choices\\":[],\\"usage\\":{}"}}]}\n\n',
    b'data: {"x":{"choices":[],"usage":{}},"choices":[{"delta":{"tool_calls":[]}}]}\n\n',
    b'data: {"usage":{"prompt_tokens":1}}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":1}\n\n',
    b"event: odd\nid: 7\nretry: 10\ndata: []\n\n",
    b"event: bare\n\n",
    b"data:[DONE]\n\n",
    DONE,
)
TAKEN = (
    USAGE,
    b'data:{ "usage" : {}, "choices" : [ ] }\n\n',
    b'event: message\ndata: {"choices":[],\ndata: "usage":{"total_tokens":0}}\nid: 3\n\n',
    b'data: {"us\\u0061ge":{"total_tokens":1},"choices":[]}\n\n',
    b'data: {"choices":[],"usage":0}\n\n',
)


def fed(pieces: list[bytes]) -> bytes:
    remover = UsageRemover()
    return b"".join([remover.feed(piece) for piece in pieces]) + remover.rest()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def told(events: list[bytes], line_end: bytes) -> tuple[bytes, bytes]:
    """A stream, and what must be left of it."""
    whole = b"".join(events).replace(b"\n", line_end)
    kept = b"".join(event for event in events if event not in TAKEN).replace(b"\n", line_end)
    return whole, kept


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_exactly_that_event_goes_with_a_cut_at_every_byte(line_end: bytes, start: bytes) -> None:
    whole, kept = told([*KEPT[:7], TAKEN[2], *KEPT[7:], *TAKEN, DONE], line_end)
    for place in range(len(whole) + 1):
        assert fed(cut(start + whole, [place])) == start + kept, place
    assert fed([bytes([byte]) for byte in start + whole]) == start + kept


@given(
    st.lists(st.sampled_from(KEPT + TAKEN), max_size=12),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(0, 2000), max_size=12),
)
def test_output_is_input_minus_those_events(events: list[bytes], line_end: bytes, places: list[int]) -> None:
    whole, kept = told(events, line_end)
    assert fed(cut(whole, [min(place, len(whole)) for place in places])) == kept


@given(st.binary(max_size=300).filter(lambda data: b"usage" not in data), st.lists(st.integers(0, 300), max_size=6))
def test_any_other_bytes_pass_unchanged(data: bytes, places: list[int]) -> None:
    assert fed(cut(data, [min(place, len(data)) for place in places])) == data


def test_a_half_event_at_the_end_is_no_event() -> None:
    assert fed([DELTA, USAGE[:-1]]) == DELTA + USAGE[:-1]
    assert fed([b"\xef\xbb"]) == b"\xef\xbb"


def test_whole_events_and_comments_and_done_never_wait() -> None:
    remover = UsageRemover()
    assert remover.feed(DELTA) == DELTA
    assert remover.feed(DELTA + DELTA) == DELTA + DELTA
    assert remover.feed(b": pi") == b": pi"
    assert remover.feed(b"ng\n") == b"ng\n"
    assert remover.feed(DELTA[:20]) == b""
    assert remover.feed(DELTA[20:]) == DELTA
    assert remover.feed(b"data: [DO") == b""
    assert remover.feed(b"NE]\n") == b"data: [DONE]\n", "the line ends a stream, blank line or not"
    assert remover.feed(b"\n") == b"\n"


def test_a_large_event_passes_as_it_comes() -> None:
    remover = UsageRemover()
    start = b'data: {"choices":[],"usage":{"x":"' + b"a" * MAX_HELD_BYTES
    assert remover.feed(start[:-1000]) == b""
    assert remover.feed(start[-1000:]) == start
    assert remover.feed(b'b"}}\n') == b'b"}}\n'
    assert remover.feed(b"\n") == b"\n"
    assert remover.feed(USAGE + DELTA) == DELTA, "the next one is looked at again"


def test_tiny_pieces_cost_no_more_than_their_sum() -> None:
    data = b"data: " + b"x" * 60_000 + b"\n\n"
    remover = UsageRemover()
    chance = random.Random(7)
    passed = []
    while data:
        size = chance.randrange(1, 4)
        passed.append(remover.feed(data[:size]))
        data = data[size:]
    assert len(b"".join(passed)) == 60_008
