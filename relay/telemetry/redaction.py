"""What looks like a credential, taken out of text that is about to be written.

The relay writes no credential of its own accord. This is for the words of others: a name that a client sent, the message of a
library, the text of an exception.
"""

import re
from typing import Final

_CREDENTIAL: Final = re.compile(
    r"(?P<key>\b(?:sk|pk|rk|gsk|xai|nvapi|org)[-_])[A-Za-z0-9_+/=.~-]{8,}"
    r"|(?P<google>\bAIza)[A-Za-z0-9_-]{16,}"
    r"|(?P<scheme>\b(?:[Bb]earer|[Bb]asic)\s+)[A-Za-z0-9_+/=.~-]{8,}"
    r"|(?P<named>\b(?i:api[-_]?key|access[-_]?token|password|secret)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;]{8,}"
    r"|(?P<user>://)[^\s/?#@]+(?=@)"
)
"""Keys by the prefixes that vendors give them, credentials by what stands before them; eight characters are no accident."""


def redact(text: str) -> str:
    """Return `text` with `***` for all that looks like a credential; what shows its kind stays."""
    return _CREDENTIAL.sub(_masked, text)


def _masked(found: re.Match[str]) -> str:
    return f"{found[found.lastgroup or 0]}***"
