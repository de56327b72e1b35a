"""Free ports: no two test processes are given the same ones."""

import subprocess
import sys

from tests.fakes.ports import BLOCK, free_port
from tests.fakes.relay import ROOT


def test_two_processes_are_given_different_ports() -> None:
    own = free_port()
    script = "from tests.fakes.ports import free_port; print(*{free_port() for _ in range(20)})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    others = {int(word) for word in done.stdout.split()}
    assert len(others) == 20
    assert own // BLOCK not in {port // BLOCK for port in others}
