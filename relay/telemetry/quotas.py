"""What an upstream says is left of its rate limits: OpenAI's header names, which most vendors use, and Anthropic's."""

from typing import Final

from relay.exchange import Headers

_NAMES: Final = {
    b"x-ratelimit-limit-requests": ("rpm", False),
    b"x-ratelimit-remaining-requests": ("rpm", True),
    b"x-ratelimit-limit-tokens": ("tpm", False),
    b"x-ratelimit-remaining-tokens": ("tpm", True),
    b"anthropic-ratelimit-requests-limit": ("rpm", False),
    b"anthropic-ratelimit-requests-remaining": ("rpm", True),
    b"anthropic-ratelimit-tokens-limit": ("tpm", False),
    b"anthropic-ratelimit-tokens-remaining": ("tpm", True),
}
_LENGTHS: Final = frozenset(map(len, _NAMES))


def shares_left(headers: Headers) -> dict[str, float]:
    """Return the share that is left (0 to 1) of each limit that `headers` tell of; the limits are `rpm` and `tpm`."""
    found: dict[tuple[str, bool], int] = {}
    for name, value in headers:
        # By far most headers are of another length, which costs less to see than a name in lower case.
        if len(name) in _LENGTHS and (known := _NAMES.get(name.lower())) is not None and value.isdigit() and len(value) < 16:
            found[known] = int(value)
    return {
        limit: min(left / found[limit, False], 1.0) for (limit, is_left), left in found.items() if is_left and found.get((limit, False))
    }
