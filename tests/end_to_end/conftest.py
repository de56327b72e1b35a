"""The end-to-end tests: their shared modules explain a failed assertion as the tests themselves do."""

import pytest

pytest.register_assert_rewrite("tests.end_to_end.fault_bed", "tests.end_to_end.faults_before", "tests.end_to_end.faults_after")
