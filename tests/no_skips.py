"""A pytest plugin that fails a run in which any test was skipped or expected to fail: such a test proves nothing.

Loaded with `-p tests.no_skips`; the Makefile does so when CI is set.
"""

import pytest

HIDDEN = ("skipped", "xfailed")


def _hidden(config: pytest.Config) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [report for kind in HIDDEN for report in reporter.stats.get(kind, [])] if reporter else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a green run with hidden tests into a failed one."""
    if _hidden(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name every hidden test."""
    hidden = _hidden(config)
    if not hidden:
        return
    terminalreporter.section("skipped tests fail this run", red=True)
    for report in hidden:
        terminalreporter.line(report.nodeid)
