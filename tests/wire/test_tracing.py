"""Trace context: what is valid goes on with a new parent, anything else begins a new trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.exchange import Headers, Trace
from relay.wire.tracing import read_trace, span_id, trace_lines

NEW = "f" * 32
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = b"00f067aa0ba902b7"
PARENT = b"00-" + TRACE + b"-" + SPAN + b"-01"


def read(*parents: bytes, states: tuple[bytes, ...] = ()) -> Trace:
    headers: Headers = (
        *((b"Traceparent", parent) for parent in parents),
        *((b"tracestate", state) for state in states),
    )
    return read_trace(headers, NEW)


def test_of_traces_that_begin_here_the_id_decides_which_are_recorded() -> None:
    low, high = "f" * 18 + "0" * 13 + "1", "0" * 18 + "f" * 14
    assert [read_trace((), low, sample=share).is_sampled for share in (0.0, 0.1, 1.0)] == [False, True, True]
    assert [read_trace((), high, sample=share).is_sampled for share in (0.0, 0.1, 0.999, 1.0)] == [False, False, False, True]


def test_a_callers_decision_stands_whatever_the_share() -> None:
    unsampled = ((b"traceparent", PARENT[:-2] + b"00"),)
    assert not read_trace(unsampled, NEW, sample=1.0).is_sampled
    assert read_trace(((b"traceparent", PARENT),), NEW, sample=0.0).is_sampled


def test_a_valid_parent_is_taken() -> None:
    assert read(PARENT) == Trace(id=TRACE.decode(), parent=SPAN.decode(), is_sampled=True)
    assert not read(PARENT[:-2] + b"00").is_sampled


def test_without_a_parent_a_trace_begins() -> None:
    assert read() == Trace(id=NEW, parent=None, is_sampled=False)


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        PARENT.upper(),
        PARENT + b"-more",
        PARENT + b" ",
        PARENT[:-1],
        b"ff" + PARENT[2:],
        b"0" + PARENT[1:-1],
        PARENT.replace(TRACE, b"0" * 32),
        PARENT.replace(SPAN, b"0" * 16),
        PARENT.replace(b"-", b"_"),
        b"00-" + TRACE,
        PARENT + b"\xff",
    ],
)
def test_an_invalid_parent_begins_a_new_trace_without_its_state(parent: bytes) -> None:
    assert read(parent, states=(b"a=1",)) == Trace(id=NEW)


def test_two_parents_are_none() -> None:
    assert read(PARENT, PARENT) == Trace(id=NEW)


def test_a_later_version_may_have_more_fields() -> None:
    assert read(b"01" + PARENT[2:] + b"-what-the-future-brings").id == TRACE.decode()
    assert read(b"01" + PARENT[2:] + b"x") == Trace(id=NEW)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",), b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ((b"a=1", b" b=2 ,\tc=3"), b"a=1,b=2,c=3"),
        ((b"tenant@vendor=x y z",), b"tenant@vendor=x y z"),
        ((b"a=1,,b=2",), b"a=1,b=2"),
        ((b"",), None),
        ((b"no value",), None),
        ((b"Upper=1",), None),
        ((b"a=1,a=2",), None),
        ((b"a=1=2",), None),
        ((b"a=\x7f",), None),
        ((b"a=1\r\nx-injected: 1",), None),
        ((",".join(f"k{n}=1" for n in range(33)).encode(),), None),
        ((b"a=" + b"x" * 256 + b",b=" + b"x" * 251,), b"a=" + b"x" * 256 + b",b=" + b"x" * 251),
        ((b"a=" + b"x" * 256 + b",b=" + b"x" * 252,), None),
    ],
)
def test_state_goes_on_as_it_came_or_not_at_all(states: tuple[bytes, ...], expected: bytes | None) -> None:
    assert read(PARENT, states=states).state == expected


def test_an_upstream_gets_the_trace_with_a_parent_of_ours() -> None:
    trace = read(PARENT, states=(b"a=1",))
    assert trace_lines(trace, "00000000000000aa") == [b"traceparent: 00-" + TRACE + b"-00000000000000aa-01", b"tracestate: a=1"]
    assert trace_lines(Trace(id=NEW), "00000000000000aa") == [b"traceparent: 00-" + NEW.encode() + b"-00000000000000aa-00"]


@given(st.floats(min_value=0, max_value=1, exclude_max=True))
def test_span_ids_are_valid_whatever_the_die_says(chance: float) -> None:
    found = span_id(chance)
    assert len(found) == 16 and int(found, 16) > 0


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_whatever_comes_what_goes_on_is_valid(parent: bytes, state: bytes) -> None:
    trace = read(parent, states=(state,))
    line = trace_lines(trace, span_id(0.5))[0].removeprefix(b"traceparent: ")
    assert read(line).parent == span_id(0.5)
