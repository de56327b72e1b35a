"""The plugin that forbids skipped tests, run on small test files of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SKIPPED = "import pytest\n\ndef test_hides():\n    pytest.skip('no server here')\n\ndef test_passes():\n    pass\n"
SKIPPED_MODULE = "import pytest\npytest.skip('not here', allow_module_level=True)\n"
EXPECTED_TO_FAIL = "import pytest\n\n@pytest.mark.xfail\ndef test_hides():\n    assert False\n"
PASSING = "def test_passes():\n    pass\n"


def run_pytest(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_case.py").write_text(source)
    own = ["-p", "tests.no_skips", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", "/dev/null"]
    command = [sys.executable, "-m", "pytest", *own, *options, str(folder / "test_case.py")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("source", [SKIPPED, SKIPPED_MODULE, EXPECTED_TO_FAIL], ids=["test", "module", "xfail"])
def test_a_hidden_test_fails_the_run_and_is_named(tmp_path: Path, source: str) -> None:
    done = run_pytest(tmp_path, source)
    assert done.returncode != 0
    assert "skipped tests fail this run" in done.stdout


def test_a_hidden_test_in_another_process_fails_the_run_too(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIPPED, "-n", "1")
    assert done.returncode != 0
    assert "skipped tests fail this run" in done.stdout


def test_a_run_without_skips_passes(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, PASSING)
    assert done.returncode == 0, done.stdout + done.stderr
