"""The form of the keys that the relay issues: `sk-rl-<10 id>-<43 secret><6 checksum>`, all in base62.

The prefix pleases clients that insist on `sk-` and lets scanners find a leaked key; the id may be shown, the secret is
256 random bits. The CRC32 of all before it tells a typing mistake from a revoked key without a look-up. It is no secret
and proves nothing: whoever asks the relay over HTTP gets one answer for every key that is not good.
"""

import binascii
from dataclasses import dataclass
from enum import Enum
from typing import Final

PREFIX: Final = "sk-rl-"
ID_BYTES: Final = 8
"""Random bytes that make an id: its 59 bits are for telling keys apart, not for keeping them."""
SECRET_BYTES: Final = 32
"""Random bytes of a secret: too many to guess, so a fast hash keeps it safe at rest."""

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH: Final = 10
_SECRET_LENGTH: Final = 43
"""The fewest base62 digits that hold 256 bits."""
_CHECK_LENGTH: Final = 6
"""The fewest base62 digits that hold 32 bits."""
_LENGTH: Final = len(PREFIX) + _ID_LENGTH + 1 + _SECRET_LENGTH + _CHECK_LENGTH


class Form(Enum):
    """What a text is, going by its form alone."""

    OURS = "ours"
    MISTYPED = "mistyped"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A key that was just made. Its `repr` shows the id only."""

    id: str
    text: str

    def __repr__(self) -> str:
        return f"IssuedKey(id={self.id!r})"


def make_key(id_bytes: bytes, secret: bytes) -> IssuedKey:
    """Return the key made of ID_BYTES and SECRET_BYTES random bytes. Raises ValueError for any other number of them."""
    if len(id_bytes) != ID_BYTES or len(secret) != SECRET_BYTES:
        raise ValueError(f"expected {ID_BYTES} and {SECRET_BYTES} random bytes")
    key_id = _base62(int.from_bytes(id_bytes, "big") % len(_DIGITS) ** _ID_LENGTH, _ID_LENGTH)
    body = f"{PREFIX}{key_id}-{_base62(int.from_bytes(secret, 'big'), _SECRET_LENGTH)}"
    return IssuedKey(id=key_id, text=body + _checksum(body))


def form_of(text: str) -> Form:
    """Tell whether `text` is a key of this form, one with a mistake in it, or something else altogether."""
    if not text.startswith(PREFIX):
        return Form.FOREIGN
    is_whole = len(text) == _LENGTH and _id_ends(text) and set(_digits_of(text)) <= set(_DIGITS)
    return Form.OURS if is_whole and _checksum(text[:-_CHECK_LENGTH]) == text[-_CHECK_LENGTH:] else Form.MISTYPED


def id_of(text: str) -> str | None:
    """Return the id of a key of this form, None for anything else."""
    return text[len(PREFIX) :][:_ID_LENGTH] if form_of(text) is Form.OURS else None


def _id_ends(text: str) -> bool:
    return text[len(PREFIX) + _ID_LENGTH] == "-"


def _digits_of(text: str) -> str:
    rest = text[len(PREFIX) :]
    return rest[:_ID_LENGTH] + rest[_ID_LENGTH + 1 :]


def _checksum(text: str) -> str:
    return _base62(binascii.crc32(text.encode()), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
