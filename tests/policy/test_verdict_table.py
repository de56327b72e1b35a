"""docs/verdicts.md is what the code does: every row is asked of `judge`."""

from pathlib import Path

import pytest

from relay.config.tree import FallbackCause, Secret, Target, Upstream
from relay.errors import (
    Break,
    ConnectFailed,
    ConnectFault,
    Malformation,
    MalformedResponse,
    Phase,
    StreamBroken,
    UpstreamError,
    UpstreamTimeout,
)
from relay.policy.refusals import CONSEQUENCES, Blame, Fallback
from relay.policy.routing import Choice
from relay.policy.verdicts import judge

PAGE = Path(__file__).parent.parent.parent / "docs" / "verdicts.md"
CHOICE = Choice(
    target=Target(upstream=Upstream(name="mine", base_url="", api_key=Secret("sk-mine")), model="m"),
    model="m",
    is_mapped=True,
    fallback_on=frozenset(FallbackCause),
)
WHO = {Blame.TARGET: "target", Blame.CREDENTIAL: "credential, at this target", Blame.ACCOUNT: "credential", Blame.NOBODY: "nobody"}
WHEN = {Fallback.ALWAYS: "yes", Fallback.MAPPED: "if the route chose the name", Fallback.ASKED: "with `fallback_on`", Fallback.NEVER: "no"}


def rows() -> list[str]:
    errors: list[tuple[str, UpstreamError]] = [
        *((fault.value, ConnectFailed(fault)) for fault in ConnectFault),
        *((phase.value, UpstreamTimeout(phase)) for phase in Phase),
        *((what.value, MalformedResponse(what)) for what in Malformation),
        *((how.value, StreamBroken(how, anything=False)) for how in Break),
    ]
    found = []
    for name, error in errors:
        verdict = judge(error, CHOICE)
        falls_back = "yes" if verdict.fall_back else "no"
        found.append(row(name, falls_back, verdict.blame, verdict.rest_seconds, verdict.can_repeat, verdict.is_final))
    for refusal, told in CONSEQUENCES.items():
        found.append(row(refusal.value, WHEN[told.falls_back], told.blames, told.rest_seconds, told.can_repeat, told.is_final))
    return found


def row(name: str, falls_back: str, blame: Blame, rest: float, can_repeat: bool, is_final: bool) -> str:
    rests = "-" if blame is Blame.NOBODY else f"{rest:g} s at once" if rest else "by its count"
    return f"| `{name}` | {falls_back} | {WHO[blame]} | {rests} | {'yes' if can_repeat else 'no'} | {'no' if is_final else 'yes'} |"


@pytest.mark.parametrize("line", rows(), ids=lambda line: line.split("`")[1])
def test_every_verdict_stands_in_the_documentation(line: str) -> None:
    assert line in PAGE.read_text().splitlines()


def test_the_documentation_has_no_other_verdict() -> None:
    assert [line for line in PAGE.read_text().splitlines() if line.startswith("| `")] == rows()
