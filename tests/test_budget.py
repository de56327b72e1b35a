"""What an installation costs: the packages that come along, and that each of them is pinned."""

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parent.parent
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())

MAX_PACKAGES: Final = 20
"""Every package is one more party to trust with other people's keys."""


def applicable(lines: Iterable[str], extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """Yield the requirements whose markers hold on this platform."""
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def closure(lines: Iterable[str]) -> set[str]:
    """Return the names of everything that an installation of `lines` brings."""
    found: set[str] = set()
    waiting = list(applicable(lines))
    visited: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        visit = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if visit in visited:
            continue
        visited.add(visit)
        found.add(visit[0])
        waiting += applicable(requires(requirement.name) or (), requirement.extras)
    return found


def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if not line.startswith("#")}


def test_run_time_installation_stays_within_the_package_budget() -> None:
    packages = closure(PROJECT["project"]["dependencies"])
    assert "aiohttp" in packages, "the walk found nothing"
    assert "multidict" in packages, "the walk does not go deep"
    assert len(packages) <= MAX_PACKAGES, sorted(packages)


def test_constraints_pin_every_package_of_users_and_developers() -> None:
    everything = closure(PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"])
    assert everything <= pinned(), f"not pinned: {sorted(everything - pinned())}"


def test_constraints_hold_exact_versions_and_nothing_else() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), line
