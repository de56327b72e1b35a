"""Which header lines pass, in both directions: an allow-list up, everything end-to-end down.

Names compare in lower case; values are bytes and pass untouched. What `Connection` nominates is hop-by-hop too
(RFC 9110 section 7.6.1).
"""

from collections.abc import Iterable
from typing import Final

from relay.exchange import Headers

_UP: Final = frozenset(
    {
        b"accept",
        b"accept-language",
        b"anthropic-beta",
        b"anthropic-version",
        b"content-type",
        b"http-referer",
        b"idempotency-key",
        b"openai-beta",
        b"range",
        b"user-agent",
        b"x-client-request-id",
        b"x-request-id",
        b"x-title",
    }
)
_UP_PREFIXES: Final = (b"x-dashscope-", b"x-stainless-", b"if-")
_NEVER_UP: Final = frozenset(
    {
        b"authorization",
        b"api-key",
        b"x-api-key",
        b"cookie",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"expect",
        b"upgrade",
        b"te",
        b"trailer",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"traceparent",
        b"tracestate",
    }
)
"""Not even a configured `forward_headers` lets these pass."""
PASSTHROUGH: Final = frozenset({b"authorization", b"api-key", b"x-api-key", b"openai-organization", b"openai-project"})
"""The caller's own identity, for upstreams with `api_key: passthrough`."""

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NEVER_DOWN: Final = _HOP_BY_HOP | {b"content-length", b"set-cookie", b"set-cookie2", b"alt-svc", b"strict-transport-security"}
_OURS: Final = (b"access-control-", b"x-relay-")
"""Which web pages may read an answer, and what the relay says of itself, is not an upstream's to say (it may be a relay too)."""


def nominated(values: Iterable[bytes]) -> frozenset[bytes]:
    """Return the names that `Connection` values make hop-by-hop, in lower case."""
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def headers_up(headers: Headers, extra: frozenset[bytes]) -> list[bytes]:
    """Return the lines `name: value` of a client's headers that may reach an upstream; `extra` widens the allow-list."""
    lines, nominations = [], []
    for key, value in headers:
        name = key.lower()
        if name in _UP or name.startswith(_UP_PREFIXES) or (name in extra and name not in _NEVER_UP):
            lines.append((name, b"%b: %b" % (key, value)))
        elif name == b"connection":
            nominations.append(value)
    dropped = nominated(nominations) if nominations else ()
    return [line for name, line in lines if name not in dropped]


def identity_up(headers: Headers) -> list[bytes]:
    """Return the lines of the caller's own credential and organization."""
    return [b"%b: %b" % (key, value) for key, value in headers if key.lower() in PASSTHROUGH]


def headers_down(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of an upstream's answer that pass to the client, repeated ones and odd bytes included."""
    lines, nominations = [], []
    for key, value in headers:
        name = key.lower()
        if name not in _NEVER_DOWN:
            if not name.startswith(_OURS):
                lines.append((name, (key, value)))
        elif name == b"connection":
            nominations.append(value)
    dropped = nominated(nominations) if nominations else ()
    return [line for name, line in lines if name not in dropped]
