"""Counting, capping and adding up: what several processes counted is one sum that never goes back."""

from enum import StrEnum

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.telemetry.registry import OTHER, SLICE_SERIES, Family, Kind, Merge, Registry

COUNTER = Family(name="relay_a_total", help="A.", labels=("route",))
GAUGE = Family(name="relay_b", help="B.", labels=("route",))
PEAK = Family(name="relay_c", help="C.", merge=Merge.MAX)
TIMES = Family(name="relay_d_seconds", help="D.", labels=("route",), buckets=(0.1, 1, 10))
FAMILIES = (COUNTER, GAUGE, PEAK, TIMES)


class Word(StrEnum):
    """A label value as code has it."""

    FAST = "fast"


def registry(**settings: object) -> Registry:
    return Registry(FAMILIES, **settings)  # type: ignore[arg-type]


def test_what_a_family_counts_is_seen_from_its_name_and_buckets() -> None:
    assert [family.kind for family in FAMILIES] == [Kind.COUNTER, Kind.GAUGE, Kind.GAUGE, Kind.HISTOGRAM]


def test_the_same_labels_are_the_same_series_however_they_are_spelt() -> None:
    made = registry()
    made.number(COUNTER, Word.FAST).inc()
    made.number(COUNTER, "fast").inc(2)
    assert [(labels, series.value) for labels, series in made.numbers(COUNTER)] == [(("fast",), 3.0)]
    assert type(made.numbers(COUNTER)[0][0][0]) is str


def test_labels_that_the_family_does_not_have_are_a_bug_that_is_told() -> None:
    with pytest.raises(ValueError, match="relay_a_total has the labels"):
        registry().number(COUNTER)


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (0.1, 0), (0.1000001, 1), (1, 1), (10, 2), (10.1, 3)])
def test_a_value_on_a_bound_is_in_the_bucket_below(value: float, bucket: int) -> None:
    series = registry().histogram(TIMES, "fast")
    series.observe(value)
    assert series.counts[bucket] == 1 and sum(series.counts) == 1
    assert series.sum == value


def test_a_bound_can_be_added_once() -> None:
    made = registry(bounds={TIMES: 2.0})
    assert made.histogram(TIMES, "fast").bounds == (0.1, 1, 2.0, 10)
    assert registry(bounds={TIMES: 1.0}).histogram(TIMES, "fast").bounds == (0.1, 1, 10)


def test_past_its_cap_a_label_has_one_value_more_and_each_observation_is_counted() -> None:
    made = registry(cap=2)
    assert [made.fold("route", name) for name in "abcda"] == ["a", "b", OTHER, OTHER, "a"]
    assert made.overflow == {"route": 2}


def test_a_dropped_name_makes_room_for_another() -> None:
    made = registry(cap=1)
    made.number(COUNTER, made.fold("route", "old")).inc()
    made.keep(("route",), {"new"})
    assert made.numbers(COUNTER) == []
    assert made.fold("route", "new") == "new"


def test_dropping_one_label_leaves_families_without_it() -> None:
    made = registry()
    made.number(PEAK).set(1)
    made.histogram(TIMES, "old").observe(1)
    made.histogram(TIMES, "new").observe(1)
    made.keep(("route",), {"new"})
    assert [(family.name, [labels for labels, _ in found]) for family, found in made.families()] == [
        ("relay_c", [()]),
        ("relay_d_seconds", [("new",)]),
    ]


OBSERVED = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.floats(0, 20)), max_size=20)


@given(st.lists(OBSERVED, min_size=1, max_size=4))
def test_what_several_counted_adds_up_to_what_one_would_have_counted(shares: list[list[tuple[str, float]]]) -> None:
    alone, total = registry(), registry()
    for share in shares:
        one = registry()
        for made in (alone, one):
            for route, value in share:
                made.number(COUNTER, route).inc(value)
                made.number(GAUGE, route).inc()
                made.histogram(TIMES, route).observe(value)
        total.merge(one.dump())
    assert readings(total) == readings(alone)


def readings(made: Registry) -> dict[tuple[str, tuple[str, ...]], object]:
    found: dict[tuple[str, tuple[str, ...]], object] = {}
    for labels, number in [*made.numbers(COUNTER), *made.numbers(GAUGE)]:
        found[f"{number.value:.6f}", labels] = True
    for family, several in made.families():
        if family is TIMES:
            for labels, series in several:
                found["times", labels] = made.histogram(TIMES, *labels).counts
    return found


def test_a_gauge_may_keep_the_largest_instead() -> None:
    total = registry()
    for value in (3.0, 7.0, 5.0):
        one = registry()
        one.number(PEAK).set(value)
        total.merge(one.dump())
    assert total.number(PEAK).value == 7.0


def test_of_a_process_that_is_gone_its_counts_remain_and_its_gauges_do_not() -> None:
    gone, base = registry(), registry()
    gone.number(COUNTER, "fast").inc(5)
    gone.number(GAUGE, "fast").inc(3)
    gone.histogram(TIMES, "fast").observe(0.5)
    base.merge(gone.dump(), is_gone=True)
    assert base.number(COUNTER, "fast").value == 5
    assert base.numbers(GAUGE) == []
    assert base.histogram(TIMES, "fast").counts == [0, 1, 0, 0]


def test_counts_by_other_bounds_are_kept_where_they_belong() -> None:
    mine, other = registry(), registry(bounds={TIMES: 2.0})
    for value in (0.05, 1.5, 5.0, 50.0):
        other.histogram(TIMES, "fast").observe(value)
    mine.merge(other.dump())
    assert mine.histogram(TIMES, "fast").counts == [1, 0, 2, 1]


def test_a_family_that_is_not_known_here_is_left_out() -> None:
    other = Registry((Family(name="relay_new_total", help="New."), COUNTER))
    other.number(COUNTER, "fast").inc()
    mine = registry()
    mine.merge(other.dump())
    assert [family for family, _ in mine.families()] == [COUNTER]


def test_what_is_no_dump_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        registry().merge([b"\x00 not a dump"])


def test_a_dump_comes_in_bounded_pieces() -> None:
    made = registry()
    for number in range(2 * SLICE_SERIES + 1):
        made.number(COUNTER, f"route-{number}").inc()
    pieces = list(made.dump())
    assert len(pieces) == 3
    total = registry()
    total.merge(pieces)
    assert len(total.numbers(COUNTER)) == 2 * SLICE_SERIES + 1
