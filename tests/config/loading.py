"""Loading from text: what every test of the configuration does."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from relay.config import Config, ConfigInvalid, Problem, load

CANARY: Final = "sk-CANARY-4f7a9c2e81d6"

UPSTREAM: Final = "upstreams: {mine: {base_url: 'http://127.0.0.1:9000/v1'}}\n"
ROUTE: Final = "routes: {fast: mine/model}\n"


class Loading:
    """Writes texts to one file in a folder of its own and loads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "relay.yaml"

    def load(self, text: str | bytes, environ: Mapping[str, str] | None = None, *, listen: str | None = None) -> Config:
        raw = text if isinstance(text, bytes) else textwrap.dedent(text).encode()
        self.file.write_bytes(raw)
        return load(str(self.file), environ or {}, listen=listen)

    def problems(self, text: str | bytes, environ: Mapping[str, str] | None = None, *, listen: str | None = None) -> list[Problem]:
        try:
            config = self.load(text, environ, listen=listen)
        except ConfigInvalid as invalid:
            return invalid.problems
        raise AssertionError(f"accepted: {config}")

    def problem(self, text: str | bytes, environ: Mapping[str, str] | None = None, *, listen: str | None = None) -> Problem:
        (problem,) = self.problems(text, environ, listen=listen)
        return problem
