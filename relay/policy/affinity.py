"""Which target a conversation belongs to, so that it lands where its prompt is cached.

Rendezvous hashing: every target draws a number from the conversation's key and its own name, the highest wins. A target that comes or
goes moves only its own share, without any table; the others keep their order, so a fallback lands together as well. The hash is
keyed by nothing secret and the same in every process and on every machine.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from math import log
from typing import Final

from relay.exchange import ClientRequest, header

PREFIX_BYTES: Final = 1024
"""Bytes of the conversation's start that make its key: what follows differs from turn to turn."""
_LOOK_BYTES: Final = 64 * 2**10
"""Members are looked for at both ends of a body only: a 30 MB prompt is not searched."""
_START: Final = re.compile(rb'"(?:messages|input|prompt|instructions)"\s*:')
_USER: Final = re.compile(rb'"(?:prompt_cache_key|safety_identifier|user)"\s*:\s*"((?:[^"\\]|\\.){1,256})"')


def rank(key: bytes, names: Sequence[str], weights: Sequence[int]) -> list[int]:
    """Return positions of the targets, the conversation's own first; each wins keys in proportion to its weight."""
    scores = [_score(key, name, weight) for name, weight in zip(names, weights, strict=True)]
    return sorted(range(len(names)), key=lambda i: (-scores[i], names[i]))


def _score(key: bytes, name: str, weight: int) -> float:
    digest = blake2b(name.encode() + b"\0" + key, digest_size=8).digest()
    # Uniform in (0, 1); -weight / ln(u) makes the weights exact (weighted rendezvous hashing).
    uniform = ((int.from_bytes(digest) >> 11) + 0.5) / 2**53
    return -weight / log(uniform)


def prefix_key(request: ClientRequest) -> bytes | None:
    """Return the first bytes of the conversation, beginning at its messages; None when the body is not at hand."""
    raw = request.body.raw if request.body is not None else request.opaque_body
    if not raw:
        return None
    found = _START.search(raw, 0, _LOOK_BYTES)
    start = found.start() if found is not None else 0
    return raw[start : start + PREFIX_BYTES]


def user_key(request: ClientRequest) -> bytes | None:
    """Return who the conversation is for: what the body says, else the virtual key's name, else the address."""
    raw = request.body.raw if request.body is not None else b""
    found = _USER.search(raw, 0, _LOOK_BYTES) or _USER.search(raw, max(0, len(raw) - _LOOK_BYTES))
    if found is not None:
        return found[1]
    return request.key.name.encode() if request.key is not None else request.client_ip.encode()


def header_key(request: ClientRequest, name: bytes) -> bytes | None:
    """Return the value of header `name` (lower case); None when there is none."""
    return header(request.headers, name) or None
