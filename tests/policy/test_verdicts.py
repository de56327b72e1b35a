"""The whole table of verdicts, literally."""

import pytest

from relay.config.tree import Secret, Target, Upstream
from relay.errors import (
    Break,
    ConnectFailed,
    ConnectFault,
    ErrorEvent,
    Malformation,
    MalformedResponse,
    Phase,
    StreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from relay.exchange import AttemptResult as R
from relay.policy.refusals import Blame
from relay.policy.routing import Choice
from relay.policy.verdicts import is_stale_connection, judge, status_result

UPSTREAM = Upstream(name="mine", base_url="", api_key=Secret("sk-mine"))
TARGET = Target(upstream=UPSTREAM, model="m")
MAPPED = Choice(target=TARGET, model="m", is_mapped=True)
NAMED = Choice(target=TARGET, model="m", is_mapped=False)

OTHERS = [
    (ConnectFailed(ConnectFault.REFUSED), True, True, R.CONNECT_ERROR),
    (ConnectFailed(ConnectFault.FORBIDDEN), True, True, R.CONNECT_ERROR),
    (ConnectFailed(ConnectFault.TIMEOUT), True, True, R.TIMEOUT_CONNECT),
    (ConnectFailed(ConnectFault.DNS), True, True, R.DNS_ERROR),
    (ConnectFailed(ConnectFault.TLS), True, True, R.TLS_ERROR),
    (UpstreamTimeout(Phase.FIRST_TOKEN), True, True, R.TIMEOUT_FIRST_TOKEN),
    (UpstreamTimeout(Phase.FIRST_EVENT), True, True, R.TIMEOUT_FIRST_TOKEN),
    (UpstreamTimeout(Phase.BETWEEN_TOKENS), True, True, R.TIMEOUT_IDLE),
    (UpstreamTimeout(Phase.TOTAL), False, False, R.TIMEOUT_TOTAL),
    (UpstreamTimeout(Phase.CALLER), False, False, R.TIMEOUT_TOTAL),
    (MalformedResponse(Malformation.PROTOCOL), True, True, R.PROTOCOL_ERROR),
    (MalformedResponse(Malformation.BAD_RESPONSE), True, True, R.PROTOCOL_ERROR),
    (MalformedResponse(Malformation.TOO_LARGE), True, True, R.PROTOCOL_ERROR),
    (MalformedResponse(Malformation.EMPTY), True, True, R.EMPTY),
    (StreamBroken(Break.TRUNCATED, anything=True), True, True, R.STREAM_BROKEN),
    (StreamBroken(Break.RESET, anything=False), True, True, R.STREAM_BROKEN),
    (ErrorEvent(400, kind="x", code=None), False, False, R.ERROR_EVENT),
    (ErrorEvent(413, kind="x", code=None), False, False, R.ERROR_EVENT),
    (ErrorEvent(422, kind="x", code=None), False, False, R.ERROR_EVENT),
    (ErrorEvent(401, kind="x", code=None), True, True, R.ERROR_EVENT),
    (ErrorEvent(429, kind="x", code=None), True, True, R.ERROR_EVENT),
    (ErrorEvent(500, kind="x", code=None), True, True, R.ERROR_EVENT),
]
STATUSES = [
    (301, True, True, R.REDIRECT),
    (304, True, True, R.REDIRECT),
    (400, False, False, R.HTTP_4XX),
    (401, True, True, R.HTTP_401),
    (402, True, True, R.HTTP_402),
    (403, True, True, R.HTTP_403),
    (404, False, False, R.HTTP_4XX),
    (405, False, False, R.HTTP_4XX),
    (408, True, False, R.HTTP_4XX),
    (409, True, False, R.HTTP_4XX),
    (413, False, False, R.HTTP_4XX),
    (415, False, False, R.HTTP_4XX),
    (422, False, False, R.HTTP_4XX),
    (429, True, True, R.HTTP_429),
    (499, True, False, R.HTTP_4XX),
    (500, True, True, R.HTTP_5XX),
    (503, True, True, R.HTTP_5XX),
    (529, True, True, R.HTTP_5XX),
    (599, True, True, R.HTTP_5XX),
]


@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize(("error", "fall_back", "blame", "result"), OTHERS, ids=lambda value: str(value))
def test_each_failure_has_its_verdict(error: UpstreamError, fall_back: bool, blame: bool, result: R, is_mapped: bool) -> None:
    verdict = judge(error, MAPPED if is_mapped else NAMED)
    assert (verdict.fall_back, verdict.blame is not Blame.NOBODY, verdict.result) == (fall_back, blame, result)


@pytest.mark.parametrize(("status", "fall_back", "blame", "result"), STATUSES)
def test_each_status_has_its_verdict(status: int, fall_back: bool, blame: bool, result: R) -> None:
    verdict = judge(UpstreamRefused(status), NAMED)
    assert (verdict.fall_back, verdict.blame is not Blame.NOBODY, verdict.result) == (fall_back, blame, result)


def test_a_404_for_a_name_that_we_chose_falls_back_and_blames_nobody() -> None:
    verdict = judge(UpstreamRefused(404), MAPPED)
    assert (verdict.fall_back, verdict.blame is not Blame.NOBODY) == (True, False)


def test_no_other_status_changes_with_who_chose_the_name() -> None:
    for status in range(300, 600):
        if status not in (404, 410):
            assert judge(UpstreamRefused(status), MAPPED) == judge(UpstreamRefused(status), NAMED)


def test_every_fault_phase_and_malformation_is_in_the_table() -> None:
    told = {str(error) for error, *_ in OTHERS}
    for kind in (ConnectFault, Phase, Malformation, Break):
        assert {member.value for member in kind} <= told


def test_statuses_outside_of_the_protocol_are_protocol_errors() -> None:
    assert status_result(600) is R.PROTOCOL_ERROR
    assert status_result(200) is R.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("error", "was_reused", "is_stale"),
    [
        (StreamBroken(Break.RESET, anything=False), True, True),
        (StreamBroken(Break.RESET, anything=False), False, False),
        (StreamBroken(Break.RESET, anything=True), True, False),
        (StreamBroken(Break.TRUNCATED, anything=True), True, False),
        (ConnectFailed(ConnectFault.REFUSED), True, False),
        (UpstreamTimeout(Phase.FIRST_TOKEN), True, False),
        (MalformedResponse(Malformation.PROTOCOL), True, False),
    ],
)
def test_only_a_kept_connection_that_said_nothing_is_stale(error: UpstreamError, was_reused: bool, is_stale: bool) -> None:
    """F5, F6."""
    assert is_stale_connection(error, was_reused=was_reused) is is_stale
