"""Counters, gauges and histograms as small arrays: cheap to count with, and easy to send to another process and add up.

A series is looked up by its label values once and then kept by whoever counts with it. What several processes counted is
one sum: each dumps its registry in pieces, and another registry takes the pieces in. Counters and histograms add up, gauges
add up or keep the largest or the smallest, as their family says; of a process that is gone only what was counted is kept, its gauges are
over. Dumps and expositions come in slices of at most SLICE_SERIES series or SLICE_LINES lines, so that an event loop can
pass events in between.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

SLICE_SERIES: Final = 500
"""Series of one piece of a dump: about 0.3 ms."""
OTHER: Final = "_other"
"""The label value that stands for all values past a label's cap."""


class Kind(Enum):
    """What a family counts."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(Enum):
    """How the gauges of several processes become one."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """One metric: a histogram when it has buckets, a counter when its name ends in `_total`, else a gauge.

    Families are told apart by identity: each is defined once, in `families`.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: Merge = Merge.SUM

    @property
    def kind(self) -> Kind:
        """Tell what it counts."""
        if self.buckets:
            return Kind.HISTOGRAM
        return Kind.COUNTER if self.name.endswith("_total") else Kind.GAUGE


class Number:
    """One series of a counter or a gauge."""

    __slots__ = ("lines", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.lines: tuple[str, ...] = ()
        """The beginning of its line in an exposition, kept by who renders."""

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount`."""
        self.value += amount

    def dec(self) -> None:
        """Take 1 off."""
        self.value -= 1.0

    def set(self, value: float) -> None:
        """Become `value`."""
        self.value = value


class Exemplar(NamedTuple):
    """One observation that can be looked up."""

    trace: str
    """32 hexadecimal digits."""
    value: float
    unix_time: float


class Histogram:
    """One series of a histogram: observations by bucket (not yet added up), the last one without a bound, and their sum."""

    __slots__ = ("bounds", "counts", "exemplars", "lines", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] | None = None
        """By bucket, where somebody keeps them; they stay in this process."""
        self.lines: tuple[str, ...] = ()
        """The beginnings of its lines in an exposition, kept by who renders."""

    def observe(self, value: float) -> None:
        """Count `value` into the first bucket whose bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, bounds: tuple[float, ...], counts: list[int], total: float) -> None:
        """Add what another counted; with other bounds each of its buckets goes where its upper bound belongs."""
        if bounds == self.bounds:
            self.counts = [mine + other for mine, other in zip(self.counts, counts, strict=True)]
        else:
            for bound, count in zip((*bounds, float("inf")), counts, strict=True):
                self.counts[bisect_left(self.bounds, bound)] += count
        self.sum += total


Series = Number | Histogram


class _Block(msgspec.Struct, array_like=True):
    """Some series of one family: label values, then the number, or the counts and the sum."""

    family: str
    bounds: tuple[float, ...]
    series: list[tuple[tuple[str, ...], float | tuple[list[int], float]]]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Block).decode


class Registry:
    """Every series of a process, or of several together."""

    __slots__ = ("_bounds", "_by_name", "_cap", "_series", "_values", "overflow")

    def __init__(self, families: Iterable[Family], *, bounds: Mapping[Family, float] | None = None, cap: int = 200) -> None:
        """Keep series of `families`; `bounds` adds one bound to a histogram, `cap` is how many values `fold` lets a label have."""
        self._series: dict[Family, dict[tuple[str, ...], Any]] = {family: {} for family in families}
        self._by_name = {family.name: family for family in self._series}
        self._bounds = {family: tuple(map(float, family.buckets)) for family in self._series}
        for family, bound in (bounds or {}).items():
            self._bounds[family] = tuple(sorted({*self._bounds[family], bound}))
        self._cap = cap
        self._values: dict[str, set[str]] = {}
        self.overflow: dict[str, int] = {}
        """How often `fold` found a label full, by label, since the last look at it."""

    def number(self, family: Family, *labels: str) -> Number:
        """Return the series of a counter or gauge with these label values, made at 0 when it is new."""
        found: Number | None = self._series[family].get(labels)
        return found if found is not None else self._make(family, labels)

    def histogram(self, family: Family, *labels: str) -> Histogram:
        """Return the series of a histogram with these label values, made empty when it is new."""
        found: Histogram | None = self._series[family].get(labels)
        return found if found is not None else self._make(family, labels)

    def _make(self, family: Family, labels: tuple[str, ...]) -> Any:
        # Enum members hash by their own rule, so a key must be made of plain text.
        key = tuple(str(label) for label in labels)
        if len(key) != len(family.labels):
            raise ValueError(f"{family.name} has the labels {family.labels}")
        table = self._series[family]
        found = table.get(key)
        if found is None:
            found = table[key] = Number() if family.kind is not Kind.HISTOGRAM else Histogram(self._bounds[family])
        return found

    def fold(self, label: str, value: str, *, is_observation: bool = True) -> str:
        """Return `value`, or OTHER when `label` has had its share of values already; that counts as overflow if it is an observation."""
        values = self._values.setdefault(label, set())
        if value in values:
            return value
        if len(values) < self._cap:
            values.add(value)
            return value
        if is_observation:
            self.overflow[label] = self.overflow.get(label, 0) + 1
        return OTHER

    def keep(self, labels: Collection[str], values: Collection[str]) -> None:
        """Drop each series that has another value than one of `values` in one of `labels`, and free the places of those values."""
        for label in labels:
            if label in self._values:
                self._values[label].intersection_update(values)
        for family, table in self._series.items():
            positions = [position for position, label in enumerate(family.labels) if label in labels]
            if positions:
                for key in [key for key in table if any(key[position] not in values for position in positions)]:
                    del table[key]

    def clear(self, family: Family) -> None:
        """Drop every series of `family`."""
        self._series[family].clear()

    def numbers(self, family: Family) -> list[tuple[tuple[str, ...], Number]]:
        """Return the label values and series of a counter or gauge."""
        return list(self._series[family].items())

    def families(self) -> Iterator[tuple[Family, list[tuple[tuple[str, ...], Series]]]]:
        """Yield each family that has series, in the order given, with label values and series."""
        for family, table in self._series.items():
            if table:
                yield family, list(table.items())

    # Several processes

    def dump(self) -> Iterator[bytes]:
        """Yield everything, in pieces that `merge` takes."""
        for family, found in self.families():
            for start in range(0, len(found), SLICE_SERIES):
                part = [(labels, _reading(series)) for labels, series in found[start : start + SLICE_SERIES]]
                yield _encode(_Block(family.name, self._bounds[family], part))

    def merge(self, pieces: Iterable[bytes], *, is_gone: bool = False) -> None:
        """Add a dump of another process; one that is gone leaves no gauges. Raises msgspec.MsgspecError for what is no dump."""
        for piece in pieces:
            block = _decode(piece)
            family = self._by_name.get(block.family)
            if family is None or (is_gone and family.kind is Kind.GAUGE):
                continue
            for labels, reading in block.series:
                if not isinstance(reading, float):
                    self.histogram(family, *labels).add(block.bounds, *reading)
                elif family.merge is Merge.SUM or family.kind is Kind.COUNTER:
                    self.number(family, *labels).value += reading
                elif labels in self._series[family]:
                    number = self.number(family, *labels)
                    number.value = max(number.value, reading) if family.merge is Merge.MAX else min(number.value, reading)
                else:
                    self.number(family, *labels).value = reading


def _reading(series: Series) -> float | tuple[list[int], float]:
    return float(series.value) if isinstance(series, Number) else (series.counts, series.sum)
