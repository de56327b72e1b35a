import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.backoff import backoff, retry_after
from tests.policy.recorded import REFUSED, headers_and_body

NOW = 1_782_864_000.0  # 2026-07-01T00:00:00Z


@given(retry=st.integers(0, 100), chance=st.floats(0, 1, exclude_max=True))
def test_backoff_is_anything_up_to_a_doubling_bound(retry: int, chance: float) -> None:
    assert 0 <= backoff(retry, chance) <= min(2.0, 0.1 * 2**retry)


def test_backoff_uses_the_whole_range() -> None:
    assert backoff(0, 0.0) == 0.0
    assert backoff(1, 0.5) == pytest.approx(0.1)
    assert backoff(30, 0.999) == pytest.approx(1.998)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12.0),
        ({"Retry-After": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after": "Wed, 01 Jul 2026 00:00:30 GMT"}, 30.0),
        ({"retry-after": "Tue, 30 Jun 2026 23:59:00 GMT"}, 0.0),
        ({"retry-after-ms": "120", "retry-after": "1"}, 0.12),
        ({"retry-after": "1", "RETRY-AFTER-MS": "1500.5"}, 1.5005),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-reset-tokens": "1.2s"}, 1.2),
        ({"x-ratelimit-reset-tokens": "7.66s", "x-ratelimit-reset-requests": "0s"}, 7.66),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "7h12m0s"}, 25_920.0),
        ({"x-ratelimit-reset-tokens": "37"}, 37.0),
        ({"x-ratelimit-reset": "1782864005000"}, 5.0),
        ({"x-ratelimit-reset": "1782864007"}, 7.0),
        ({"anthropic-ratelimit-requests-reset": "2026-07-01T00:00:01Z"}, 1.0),
        ({"anthropic-ratelimit-input-tokens-reset": "2026-07-01T02:00:02+02:00"}, 2.0),
        # Only a limit that is used up is a reason to wait.
        ({"x-ratelimit-remaining-tokens": "249977", "x-ratelimit-reset-tokens": "30s"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "120ms",
                "x-ratelimit-remaining-tokens": "9",
                "x-ratelimit-reset-tokens": "30s",
            },
            0.12,
        ),
        ({}, None),
        ({"content-type": "application/json"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "Wed, 99 Jul 2026 00:00:30 GMT"}, None),
        ({"retry-after": "2026-07-01T00:00:01"}, None),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2.0),
        ({"x-ratelimit-reset-tokens": "-1", "x-ratelimit-remaining-tokens": "0"}, None),
    ],
)
def test_retry_after_reads_every_vendors_format(headers: dict[str, str], seconds: float | None) -> None:
    found = retry_after(tuple((name.encode(), value.encode()) for name, value in headers.items()), NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_retry_info_in_the_body_counts_when_no_header_says() -> None:
    body = b'{"error":{"message":"\\"retryDelay\\": \\"1s\\"","details":[{"retryDelay": "34.4s"}]}}'
    assert retry_after((), NOW, body) == 34.4
    assert retry_after(((b"retry-after", b"3"),), NOW, body) == 3.0
    assert retry_after((), NOW, b'{"error":{"message":"say \\"retryDelay\\": \\"1s\\""}}') is None


WAITS = {
    "anthropic-429.json": 12.0,
    "azure-429.json": 37.0,
    "gemini-429-retryinfo.json": 34.4,
    "groq-429.json": 2.0,
    "openai-429-rate-limit.json": 0.12,
    "openai-429-slow-down.json": 5.0,
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_recorded_refusals_say_how_long(name: str) -> None:
    headers, body = headers_and_body(name)
    assert retry_after(headers, NOW, body) == WAITS.get(name)


@given(
    name=st.sampled_from([b"retry-after", b"retry-after-ms", b"x-ratelimit-reset-tokens", b"anthropic-ratelimit-tokens-reset"]),
    value=st.one_of(st.binary(max_size=80), st.from_regex(r"[0-9hmsu.:TZ+-]{0,30}", fullmatch=True).map(str.encode)),
    body=st.binary(max_size=100),
)
def test_no_bytes_make_it_raise_or_wait_longer_than_a_minute(name: bytes, value: bytes, body: bytes) -> None:
    found = retry_after(((name, value),), NOW, body)
    assert found is None or 0 <= found < math.inf
