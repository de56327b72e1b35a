"""What upstreams say is left of their limits."""

import pytest

from relay.telemetry.quotas import shares_left


@pytest.mark.parametrize(
    ("headers", "shares"),
    [
        ((), {}),
        (((b"X-RateLimit-Limit-Requests", b"100"), (b"x-ratelimit-remaining-requests", b"25")), {"rpm": 0.25}),
        (((b"x-ratelimit-remaining-tokens", b"0"), (b"x-ratelimit-limit-tokens", b"1000")), {"tpm": 0.0}),
        (((b"anthropic-ratelimit-requests-limit", b"50"), (b"anthropic-ratelimit-requests-remaining", b"49")), {"rpm": 0.98}),
        (((b"anthropic-ratelimit-tokens-limit", b"8"), (b"anthropic-ratelimit-tokens-remaining", b"9")), {"tpm": 1.0}),
        (((b"x-ratelimit-remaining-requests", b"25"),), {}),
        (((b"x-ratelimit-limit-requests", b"0"), (b"x-ratelimit-remaining-requests", b"0")), {}),
        (((b"x-ratelimit-limit-requests", b"1e3"), (b"x-ratelimit-remaining-requests", b"-1")), {}),
        (((b"x-ratelimit-limit-requests", b"9" * 99), (b"x-ratelimit-remaining-requests", b"1")), {}),
    ],
)
def test_the_share_that_is_left(headers: tuple[tuple[bytes, bytes], ...], shares: dict[str, float]) -> None:
    assert shares_left(headers) == shares
