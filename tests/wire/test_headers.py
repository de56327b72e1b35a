"""Header lines: an allow-list up, everything end-to-end down, values as they came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.exchange import Headers, header, header_values
from relay.wire.headers import headers_down, headers_up, identity_up, nominated

UP = [
    b"accept",
    b"accept-language",
    b"content-type",
    b"user-agent",
    b"openai-beta",
    b"anthropic-beta",
    b"anthropic-version",
    b"x-dashscope-sse",
    b"x-dashscope-workspace",
    b"x-stainless-lang",
    b"x-stainless-retry-count",
    b"http-referer",
    b"x-title",
    b"idempotency-key",
    b"x-request-id",
    b"x-client-request-id",
    b"range",
    b"if-none-match",
    b"if-modified-since",
]
NEVER_UP = [
    b"authorization",
    b"api-key",
    b"x-api-key",
    b"cookie",
    b"openai-organization",
    b"openai-project",
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"keep-alive",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"upgrade",
    b"expect",
    b"traceparent",
    b"tracestate",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"accept-encoding",
    b"content-encoding",
    b"origin",
    b"referer",
    b"x-dashscop",
    b"x-team",
]
NEVER_DOWN = [
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"content-length",
    b"set-cookie",
    b"set-cookie2",
    b"alt-svc",
    b"strict-transport-security",
]
NONE: frozenset[bytes] = frozenset()


@pytest.mark.parametrize("name", UP)
@pytest.mark.parametrize("spell", [bytes, bytes.upper, bytes.title])
def test_a_listed_header_goes_up_as_it_was_spelled(name: bytes, spell: type[bytes]) -> None:
    spelled = spell(name)
    assert headers_up(((spelled, b"v"),), NONE) == [spelled + b": v"]


@pytest.mark.parametrize("name", NEVER_UP)
@pytest.mark.parametrize("spell", [bytes, bytes.title])
def test_no_other_header_goes_up(name: bytes, spell: type[bytes]) -> None:
    """A12, A29."""
    assert headers_up(((spell(name), b"v"),), NONE) == []


def test_a_configured_header_goes_up() -> None:
    assert headers_up(((b"X-Team", b"red"), (b"X-Other", b"v")), frozenset({b"x-team"})) == [b"X-Team: red"]


@pytest.mark.parametrize(
    "name", [b"authorization", b"api-key", b"x-api-key", b"cookie", b"host", b"content-length", b"transfer-encoding", b"connection", b"te"]
)
def test_no_configuration_lets_a_credential_or_framing_go_up(name: bytes) -> None:
    assert headers_up(((name.title(), b"v"),), frozenset({name})) == []


def test_what_connection_names_is_dropped_both_ways() -> None:
    """A11."""
    headers = (
        (b"Accept", b"*/*"),
        (b"X-Title", b"t"),
        (b"CONNECTION", b"close, x-title"),
        (b"connection", b" Accept ,,"),
        (b"User-Agent", b"u"),
    )
    assert headers_up(headers, NONE) == [b"User-Agent: u"]
    assert headers_down(headers) == [(b"User-Agent", b"u")]
    assert nominated([b"close, X-A", b"x-b ,"]) >= {b"close", b"x-a", b"x-b"}


def test_repeated_headers_and_odd_bytes_go_up_in_order() -> None:
    headers = ((b"Accept", b"a"), (b"X-Title", b"caf\xe9 \xff"), (b"accept", b"b"), (b"Accept", b""))
    assert headers_up(headers, NONE) == [b"Accept: a", b"X-Title: caf\xe9 \xff", b"accept: b", b"Accept: "]


def test_the_callers_identity_is_credential_and_organization() -> None:
    headers = (
        (b"Authorization", b"Bearer x"),
        (b"OpenAI-Organization", b"o"),
        (b"openai-project", b"p"),
        (b"api-key", b"k"),
        (b"X-Api-Key", b"k"),
        (b"Cookie", b"c"),
        (b"Proxy-Authorization", b"q"),
    )
    assert identity_up(headers) == [
        b"Authorization: Bearer x",
        b"OpenAI-Organization: o",
        b"openai-project: p",
        b"api-key: k",
        b"X-Api-Key: k",
    ]


@pytest.mark.parametrize("name", NEVER_DOWN)
@pytest.mark.parametrize("spell", [bytes, bytes.upper])
def test_hop_by_hop_headers_and_what_binds_a_client_to_the_upstream_do_not_go_down(name: bytes, spell: type[bytes]) -> None:
    """A28."""
    assert headers_down(((spell(name), b"v"), (b"X-A", b"1"))) == [(b"X-A", b"1")]


def test_everything_else_goes_down_unchanged_and_in_order() -> None:
    headers: Headers = (
        (b"Content-Type", b"text/event-stream; charset=utf-8"),
        (b"X-Request-ID", b"up-1"),
        (b"x-ratelimit-remaining-tokens", b"10"),
        (b"Content-Encoding", b"gzip"),
        (b"X-Odd", b"caf\xe9 \xf0\x9f \x80"),
        (b"x-odd", b"again"),
        (b"X-Odd", b""),
        (b"Link", b"</a>"),
        (b"Link", b"</b>"),
        (b"Retry-After", b"3"),
        (b"Date", b"now"),
        (b"Server", b"x"),
        (b"openai-processing-ms", b"5"),
    )
    assert headers_down(headers) == list(headers)


_LINE = st.tuples(st.binary(min_size=1, max_size=12), st.binary(max_size=12))


@given(st.lists(_LINE, max_size=8))
def test_what_passes_is_always_a_part_of_what_came(lines: list[tuple[bytes, bytes]]) -> None:
    headers = tuple(lines)
    down = headers_down(headers)
    remaining = iter(headers)
    assert all(line in remaining for line in down)
    assert set(headers_up(headers, NONE)) <= {name + b": " + value for name, value in headers}


def test_a_header_is_found_in_any_case_and_the_first_one_counts() -> None:
    headers = ((b"X-A", b"1"), (b"x-a", b"2"), (b"x-ab", b"3"))
    assert header(headers, b"x-a") == b"1"
    assert header(headers, b"x-b") is None
    assert header_values(headers, b"x-a") == [b"1", b"2"]


def test_an_upstream_cannot_speak_in_the_relays_name() -> None:
    assert headers_down(((b"X-Relay-Error", b"forged"), (b"x-relay-request-id", b"theirs"), (b"x-request-id", b"passes"))) == [
        (b"x-request-id", b"passes")
    ]
