"""The error tree: every error has a complete answer, and no text breaks out of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import errors
from relay.errors import (
    CLIENT_ERRORS,
    Break,
    ClientError,
    ConnectFailed,
    ConnectFault,
    Draining,
    ErrorAnswer,
    ErrorEvent,
    InternalError,
    Malformation,
    MalformedResponse,
    Overloaded,
    Phase,
    RelayError,
    StreamBroken,
    UpstreamRefused,
    UpstreamTimeout,
    encode_error,
    error_answer,
    upstream_message,
)
from relay.exchange import Operation
from relay.wire.openai import error_event
from relay.wire.sse import EventSplitter

UPSTREAM: list[tuple[RelayError, int, str]] = [
    (ConnectFailed(ConnectFault.REFUSED), 502, "upstream_connect_error"),
    (ConnectFailed(ConnectFault.TIMEOUT), 504, "upstream_connect_timeout"),
    (ConnectFailed(ConnectFault.DNS), 502, "upstream_dns_error"),
    (ConnectFailed(ConnectFault.TLS), 502, "upstream_tls_error"),
    (ConnectFailed(ConnectFault.FORBIDDEN), 502, "upstream_address_forbidden"),
    (UpstreamTimeout(Phase.FIRST_TOKEN), 504, "upstream_timeout"),
    (UpstreamTimeout(Phase.FIRST_EVENT), 504, "upstream_first_event_timeout"),
    (UpstreamTimeout(Phase.BETWEEN_TOKENS), 504, "stream_idle_timeout"),
    (UpstreamTimeout(Phase.TOTAL), 504, "total_timeout"),
    (UpstreamTimeout(Phase.CALLER), 504, "caller_deadline"),
    (MalformedResponse(Malformation.PROTOCOL), 502, "upstream_protocol_error"),
    (MalformedResponse(Malformation.BAD_RESPONSE), 502, "upstream_bad_response"),
    (MalformedResponse(Malformation.EMPTY), 502, "upstream_empty_response"),
    (MalformedResponse(Malformation.TOO_LARGE), 502, "upstream_too_large"),
    (StreamBroken(Break.TRUNCATED, anything=True), 502, "upstream_truncated"),
    (StreamBroken(Break.RESET, anything=False), 502, "upstream_reset"),
    (ErrorEvent(429, kind="x", code=None), 429, "upstream_error_in_stream"),
    (UpstreamRefused(401), 502, "upstream_auth_error"),
    (UpstreamRefused(403), 502, "upstream_auth_error"),
    (UpstreamRefused(402), 503, "upstream_quota"),
    (UpstreamRefused(301), 502, "upstream_redirect"),
    (UpstreamRefused(500), 502, "upstream_bad_response"),
]
OWN: list[tuple[RelayError, int, str]] = [
    (Draining(), 503, "server_shutting_down"),
    (Overloaded(), 503, "overloaded"),
    (InternalError(), 500, "internal_error"),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def assert_complete(answer: ErrorAnswer) -> None:
    assert 400 <= answer.status <= 599
    envelope = json.loads(answer.body())
    assert set(envelope) == {"error"}
    assert set(envelope["error"]) == {"message", "type", "param", "code"}
    assert envelope["error"]["message"] and envelope["error"]["type"] and envelope["error"]["code"] == answer.code
    for name, value in (answer.headers or {}).items():
        assert f"{name}: {value}".isascii() and f"{name}{value}".isprintable()


@pytest.mark.parametrize(("error", "status", "code"), UPSTREAM + OWN, ids=lambda value: str(value))
def test_each_error_has_its_answer(error: RelayError, status: int, code: str) -> None:
    answer = error_answer(error)
    assert (answer.status, answer.code) == (status, code)
    assert_complete(answer)


@pytest.mark.parametrize("code", list(CLIENT_ERRORS))
def test_each_client_error_has_its_answer(code: str) -> None:
    answer = error_answer(ClientError(code, param="model"))
    assert (answer.status, answer.type, answer.message) == CLIENT_ERRORS[code]
    assert answer.param == "model"
    assert 400 <= answer.status < 500
    assert_complete(answer)


def test_every_member_of_every_closed_set_is_in_the_table() -> None:
    told = {code for _, _, code in UPSTREAM}
    for kind in (ConnectFault, Phase, Malformation, Break):
        assert {member.value for member in kind} <= told


@pytest.mark.parametrize("code", sorted(errors._UPSTREAM_MESSAGES))
def test_each_upstream_code_has_a_fixed_text(code: str) -> None:
    assert upstream_message(code).endswith(".")
    assert upstream_message(code).isascii()


def test_errors_that_pass_ask_for_patience() -> None:
    for error in (Draining(), Overloaded(), UpstreamRefused(402)):
        assert (error_answer(error).headers or {})["retry-after"].isdigit()


def test_headers_of_a_client_error_are_told() -> None:
    assert error_answer(ClientError("missing_key", headers={"www-authenticate": "Bearer"})).headers == {"www-authenticate": "Bearer"}


@given(TEXT, TEXT, TEXT, st.none() | TEXT)
def test_any_text_stays_on_one_line_and_comes_back(message: str, kind: str, code: str, param: str | None) -> None:
    """A38."""
    line = encode_error(message, type=kind, code=code, param=param)
    assert b"\n" not in line and b"\r" not in line
    assert json.loads(line) == {"error": {"message": message, "type": kind, "param": param, "code": code}}


@given(st.lists(TEXT, min_size=1, max_size=5), st.sampled_from(list(Operation)))
def test_as_many_events_come_out_as_went_in(texts: list[str], operation: Operation) -> None:
    """A38."""
    stream = b"".join(error_event(operation, encode_error(text, type="t", code="c")) for text in texts)
    events = list(EventSplitter().feed(stream))
    assert len(events) == len(texts)
    for (_, data), text in zip(events, texts, strict=True):
        assert data is not None
        assert json.loads(data)["error"]["message"] == text


def test_the_forgers_favourite_texts_stay_texts() -> None:
    for text in ("\n\ndata: [DONE]\n\n", "\r\rdata: [DONE]\r\r", "\u2028\u2029\x85", "x\r\n\r\nHTTP/1.1 200 OK\r\n"):
        event = error_event(Operation.CHAT, encode_error(text, type="t", code="c"))
        assert len(list(EventSplitter().feed(event))) == 1
        assert b"data: [DONE]" not in event.splitlines()
