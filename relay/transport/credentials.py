"""The upstreams' own credentials, from the configuration or from a file that may change."""

import os
import re
from time import monotonic
from typing import Final

from relay.config.tree import Secret, Upstream

LOOK_SECONDS: Final = 1.0
"""How often a credential's file is looked at."""
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")


class Credentials:
    """Keeps the current credential of each upstream."""

    __slots__ = ("_files",)

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def current(self, upstream: Upstream, chosen: Secret | None = None) -> bytes | None:
        """Return the credential to send, or None for an upstream without one; of several the `chosen` one, else the first.

        A file that cannot be read, or holds what no header line can, leaves the last credential in force.
        """
        if upstream.api_key_file is not None:
            file = self._files.get(upstream.api_key_file)
            if file is None:
                file = self._files[upstream.api_key_file] = _File(upstream.api_key_file)
            return file.read()
        secret = chosen or upstream.api_key
        return secret.reveal().encode("utf-8") if secret is not None else None


class _File:
    __slots__ = ("_looked_at", "_path", "_stamp", "_value")

    def __init__(self, path: str) -> None:
        self._path = path
        self._looked_at = float("-inf")
        self._stamp: tuple[int, int] | None = None
        self._value: bytes | None = None

    def read(self) -> bytes | None:
        now = monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            try:
                status = os.stat(self._path)
                stamp = (status.st_mtime_ns, status.st_ino)
                if stamp != self._stamp:
                    with open(self._path, "rb") as file:
                        value = file.read(65536).strip()
                    if _CONTROL.search(value) is None:
                        self._value = value
                    self._stamp = stamp
            except OSError:
                return self._value
        return self._value
