"""The silence of a stream, split, and its stalls, blamed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.exchange import MAX_KEPT, Blame, Operation, Outcome, Span, StreamMeter, split_gaps
from relay.stream import BodyEnd, EventRelay
from tests.fakes.events import DONE, content, role


def late_for(*spans: Span):  # type: ignore[no-untyped-def]  # a Lateness
    def between(start: float, end: float) -> float:
        return sum(max(min(end, b) - max(start, a), 0.0) for a, b in spans)

    return between


NEVER = late_for()


def test_what_nobody_else_took_is_the_upstreams() -> None:
    gaps = split_gaps((10.0, 20.0), [], [], 0.0, NEVER)
    assert (gaps.upstream, gaps.relay, gaps.client, gaps.stalls) == (10.0, 0.0, 0.0, ())


def test_short_pauses_count_for_the_client_too() -> None:
    gaps = split_gaps((10.0, 20.0), [], [], 3.0, late_for((12.0, 14.0)))
    assert (gaps.upstream, gaps.relay, gaps.client) == (5.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("pauses", "late", "blame"),
    [
        ([], NEVER, Blame.UPSTREAM),
        ([(10.5, 12.9)], NEVER, Blame.CLIENT),
        ([(8.0, 10.5), (11.0, 13.0)], NEVER, Blame.CLIENT),
        ([(8.0, 9.9)], NEVER, Blame.UPSTREAM),
        ([], late_for((10.1, 12.9)), Blame.RELAY),
        ([(10.1, 10.9)], late_for((11.0, 13.0)), Blame.RELAY),
        ([], late_for((10.0, 11.0)), Blame.UPSTREAM),
    ],
)
def test_a_stall_is_blamed_on_who_had_the_largest_part(pauses: list[Span], late: object, blame: Blame) -> None:
    gaps = split_gaps((5.0, 20.0), [(10.0, 13.0)], pauses, sum(b - a for a, b in pauses), late)  # type: ignore[arg-type]
    assert gaps.stalls == (blame,)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 200), st.floats(0, 200))
def test_the_parts_are_never_negative_and_make_the_whole(start: float, length: float, paused: float, late: float) -> None:
    gaps = split_gaps((start, start + length), [], [], paused, lambda a, b: late)
    assert min(gaps.upstream, gaps.relay, gaps.client) >= 0
    assert gaps.upstream + gaps.relay + gaps.client == pytest.approx(start + length - start)


class NoPort:
    """A port for relays whose bytes nobody looks at."""

    def hold(self) -> None: ...

    def open(self, first: bytes) -> bool:
        return True

    def write(self, data: bytes) -> None: ...

    def content_written(self) -> None: ...

    def terminal(self) -> None: ...

    def failed(self, error: object) -> None: ...

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None: ...


def relayed(*events: tuple[float, bytes]) -> StreamMeter:
    meter = StreamMeter()
    relay = EventRelay(NoPort(), meter, Operation.CHAT, can_lack_done=False)
    for at, data in events:
        relay.feed(data, at)
    relay.finish(BodyEnd.WHOLE)
    return meter


def test_a_silence_lasts_from_one_content_to_the_next() -> None:
    meter = relayed((1.0, role()), (5.0, content("a")), (5.9, content("b")), (8.0, content("c")), (9.5, content("d")), (12.0, DONE))
    assert meter.silences == [(5.9, 8.0), (8.0, 9.5)]


def test_comments_do_not_break_a_silence() -> None:
    meter = relayed((1.0, content("a")), (1.9, b": still here\n\n"), (2.8, b": still here\n\n"), (3.0, content("b")))
    assert meter.silences == [(1.0, 3.0)]


def test_an_endless_stream_of_stalls_is_bounded() -> None:
    meter = relayed(*((2.0 * number, content("x")) for number in range(1, MAX_KEPT + 100)))
    assert len(meter.silences) == MAX_KEPT


def test_a_client_that_is_slow_to_take_the_end_is_not_to_blame_for_silence_before_it() -> None:
    gaps = split_gaps((10.0, 20.0), [], [(8.0, 11.0), (19.0, 40.0)], 24.5, NEVER)
    assert (gaps.client, gaps.upstream) == (2.5, 7.5), "a second at the beginning, one at the end, and half of one in short pauses"
