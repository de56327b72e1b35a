"""What a board is made of: panels with their queries, and the rows they stand in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

WIDTH: Final = 24
"""Columns of Grafana's grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression and what its series are called."""

    expr: str
    legend: str = ""
    is_instant: bool = False
    """Whether only the value at the end of the range is wanted."""
    is_table: bool = False
    is_heatmap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture: `steps` are (value from which, colour), the first one the ground colour."""

    title: str
    about: str
    """What it tells, for a person who sees it for the first time."""
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    steps: tuple[tuple[float, str], ...] = ()
    decimals: int | None = None
    has_ceiling: bool = False
    """Whether the axis ends at 1."""
    is_stacked: bool = False
    mappings: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of panels under a heading."""

    title: str
    panels: tuple[Panel, ...]
    is_collapsed: bool = False
