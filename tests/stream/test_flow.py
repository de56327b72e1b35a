"""Counting while it flows: a tally lets everything pass, a brake looks at each event by itself."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relay.exchange import StreamMeter
from relay.stream.flow import SLACK_BYTES, STEP, STEP_PART, Brake, Tally

EVENT = b'data: {"a":1}'


def test_a_tally_speaks_every_few_tokens_and_never_stops() -> None:
    meter = StreamMeter()
    told: list[int] = []

    def refuse(tokens: int) -> bool:
        told.append(tokens)
        return False

    tally = Tally(meter, refuse)
    for count in range(1, 50 * STEP):
        meter.content_events = count
        if count >= tally.due:
            tally.tell()
    assert told[:3] == [STEP, 2 * STEP, 3 * STEP]
    assert all(new - old <= max(STEP, old // STEP_PART) for old, new in pairwise(told))
    assert 50 * STEP - told[-1] <= 50 * STEP // STEP_PART, "of a long answer an eighth at most is untold"
    assert len(told) < 30


@given(
    st.lists(st.sampled_from([b"data: x", b": c", b"", b"event: y"]), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.binary(max_size=8),
)
def test_a_brake_gets_every_byte_and_no_piece_holds_two_events(lines: list[bytes], line_end: bytes, rest: bytes) -> None:
    data = b"".join(line + line_end for line in lines) + rest
    pieces = Brake(StreamMeter(), lambda tokens: True).split(data)
    assert b"".join(pieces) == data
    for piece in pieces:
        read = piece.splitlines(keepends=True)
        assert all(line.strip(b"\r\n") for line in read[:-1]), "a blank line ends its piece"


def test_a_large_event_counts_by_its_length() -> None:
    meter = StreamMeter()
    told: list[int] = []
    brake = Brake(meter, lambda tokens: bool(told.append(tokens)) or True)
    for size in (100, 100, 100 + SLACK_BYTES, 100 + SLACK_BYTES + 400, 0):
        meter.bytes_in += size
        meter.content_events += bool(size)
        assert brake.goes_on()
    assert told == [1, 2, 3, 104]
    assert meter.flowed_tokens == 104


def test_a_brake_stops_at_the_limit_but_not_behind_the_end() -> None:
    meter = StreamMeter(bytes_in=10, content_events=1)
    assert not Brake(meter, lambda tokens: False).goes_on()
    meter = StreamMeter(bytes_in=10, content_events=1, finish_reason="stop")
    assert Brake(meter, lambda tokens: False).goes_on()
