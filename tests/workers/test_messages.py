"""What supervisor and worker say, on the wire."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.workers.messages import MAX_BYTES, Begin, Counted, Drain, Envelope, Frames, LimitsChanged, Made, Message, Page, frame

MESSAGES: list[Message] = [
    Begin(1, 2, 3, b"\x00config", "/somewhere", {"mine/a": 1.5}),
    Drain(),
    Counted([b"", b"a" * 1000]),
    Page(200, b"text/plain", b"body"),
    Made("resp_1", "mine", "*", None),
    LimitsChanged(True),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.lists(st.integers(1, 50), min_size=1))
def test_messages_arrive_whole_and_in_order_however_they_are_cut(messages: list[Message], cuts: list[int]) -> None:
    data = b"".join(frame(Envelope(number, False, message)) for number, message in enumerate(messages))
    frames, got, at, turn = Frames(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        got += frames.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert [(envelope.question, envelope.message) for envelope in got] == list(enumerate(messages))


@pytest.mark.parametrize("data", [(MAX_BYTES + 1).to_bytes(4, "big"), b"\x00\x00\x00\x03abc", b"\x00\x00\x00\x01\xc0"])
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        Frames().feed(data)
