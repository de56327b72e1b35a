"""Expressions of the dashboard, taken apart as far as its rules need: selectors, functions, labels."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from relay.telemetry.families import all_families
from relay.telemetry.registry import Family

FAMILIES: Final[dict[str, Family]] = {family.name: family for family in all_families()}
FOREIGN: Final = frozenset(
    {"up", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"}
)
"""Metrics of Prometheus and of the process; a test against a running relay sees them."""
SELECTOR: Final = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}(\[[^\]]*\])?")
MATCHER: Final = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
OF_PROMETHEUS: Final = frozenset({"job", "instance", "le"})


@dataclass(frozen=True, slots=True)
class Selector:
    """One selector of an expression: `window` is the text in its square brackets, `function` what is called on it."""

    metric: str
    labels: dict[str, str]
    window: str | None
    function: str | None

    @property
    def is_recorded(self) -> bool:
        """Whether it is the result of a recording rule."""
        return ":" in self.metric

    @property
    def family(self) -> str:
        """The family's name, without what a histogram adds."""
        stem = re.sub(r"_(bucket|sum|count)$", "", self.metric)
        return stem if stem in FAMILIES else self.metric


def selectors(expression: str) -> Iterator[Selector]:
    for found in SELECTOR.finditer(expression):
        before = expression[: found.start()]
        function = re.search(r"(\w+)\($", before)
        window = found[3][1:-1] if found[3] else None
        yield Selector(found[1], dict(MATCHER.findall(found[2])), window, function[1] if function else None)


def grouped_by(expression: str) -> set[str]:
    return {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",") if label.strip()}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel that shows something, also those within collapsed rows."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def substituted(expression: str, *, interval: str, span: str) -> str:
    """Put values where Grafana does: everything chosen, this `$__rate_interval`, this `$__range`."""
    text = expression.replace("$__rate_interval", interval).replace("$__range", span)
    return re.sub(r"\$(job|instance|route|upstream|key)\b", ".+", text)
