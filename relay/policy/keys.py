"""Who calls: a key is looked up by the SHA-256 of its bytes, so that nothing compares keys and nothing times them.

Unknown, disabled and expired keys are told apart nowhere. Guessing is slowed down per address: past the bound a
failure answers 429; a right key is never refused for its neighbours' failures.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final

from relay.config.tree import Key
from relay.errors import ClientError
from relay.exchange import Headers

GUESSES: Final = 20
GUESS_SECONDS: Final = 60.0
MAX_ADDRESSES: Final = 10_000
_LENGTHS: Final = frozenset({len("authorization"), len("api-key"), len("x-api-key")})


def credential(headers: Headers) -> bytes | None:
    """Return the caller's credential. Raises ClientError: ambiguous_credentials when two differ."""
    found: bytes | None = None
    authorizations = 0
    for name, value in headers:
        if len(name) not in _LENGTHS:
            continue
        match name.lower():
            case b"authorization":
                authorizations += 1
                scheme, _, rest = value.partition(b" ")
                secret = rest.strip() if scheme.lower() == b"bearer" else value
            case b"api-key" | b"x-api-key":
                secret = value.strip()
            case _:
                continue
        if authorizations > 1 or (secret and found not in (None, secret)):
            raise ClientError("ambiguous_credentials")
        found = secret or found
    return found


def find_key(keys: Mapping[bytes, Key], headers: Headers, unix_time: float, *, is_required: bool = False) -> Key | None:
    """Return the caller's key, None when the relay asks for none. Raises ClientError: missing_key, invalid_api_key."""
    secret = credential(headers)
    if not keys and not is_required:
        return None
    if secret is None:
        raise ClientError("missing_key", headers={"www-authenticate": "Bearer"})
    key = keys.get(hashlib.sha256(secret).digest())
    if key is None or not key.is_enabled or (key.expires_at is not None and key.expires_at <= unix_time):
        raise ClientError("invalid_api_key", headers={"www-authenticate": "Bearer"})
    return key


class Guesses:
    """Failed look-ups per address in the last minute, for a bounded number of addresses."""

    __slots__ = ("_failures",)

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def failed(self, address: str, now: float) -> float:
        """Take note of a failure; return the seconds to wait when there were too many, else 0."""
        failures = self._failures.setdefault(address, deque(maxlen=GUESSES + 1))
        self._failures.move_to_end(address)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        while failures and failures[0] <= now - GUESS_SECONDS:
            failures.popleft()
        failures.append(now)
        return failures[0] + GUESS_SECONDS - now if len(failures) > GUESSES else 0.0
