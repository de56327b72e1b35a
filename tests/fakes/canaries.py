"""Made-up secrets that are planted where they have to be, and searched for where they must not show."""

import base64
from collections.abc import Iterable
from urllib.parse import quote

PLAIN = 12
"""Characters at either end of a secret that give it away by themselves."""


def forms(secret: str) -> set[bytes]:
    """Return the guises in which a secret could show: plain, quoted, its beginning, and Base64 at each of the three alignments."""
    found = {secret, quote(secret, safe=""), secret[:PLAIN], secret[-PLAIN:]}
    for shift in range(3):
        encoded = base64.b64encode(b"." * shift + secret.encode()).decode()
        found.add(encoded[4 : len(encoded) - 4])  # the ends depend on what stands beside the secret
    return {form.encode() for form in found}


def leaks(text: bytes | str, secrets: Iterable[str]) -> list[str]:
    """Return the secrets that show in a text in any form."""
    data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
    return [secret for secret in secrets if any(form in data for form in forms(secret))]
