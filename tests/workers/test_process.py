"""How many workers `auto` means."""

import os
from pathlib import Path

import pytest

from relay.workers.process import usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000\n", CORES), ("50000 100000\n", 1), ("100000 100000\n", 1), (f"{CORES * 200000} 100000\n", CORES), ("nonsense", CORES)],
)
def test_auto_is_what_the_container_may_use(tmp_path: Path, quota: str, expected: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert usable_cores(file) == expected


def test_auto_without_a_quota_is_every_core(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "absent") == CORES
