"""Where to listen, told three ways: `--listen` before the file, the file before `PORT`, that before 127.0.0.1:8080."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from relay.config.addresses import Listen, is_loopback, listen_text, parse_listen
from relay.config.problems import ConfigInvalid, Problem
from relay.config.tree import Metrics

DEFAULT: Final[Listen] = ("127.0.0.1", 8080)
METRICS_DEFAULT: Final[Listen] = ("127.0.0.1", 9464)


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What the command line and the environment say."""

    listen: Listen | None
    port: int | None

    def apply(self, configured: Listen | None) -> Listen:
        """Return the address that wins; `configured` is the file's, None where it has none."""
        if self.listen is not None:
            return self.listen
        return configured or (DEFAULT[0], self.port if self.port is not None else DEFAULT[1])


def read_override(listen: str | None, environ: Mapping[str, str]) -> Override:
    """Read the value of `--listen` and the variable `PORT`. Raises ConfigInvalid."""
    port = environ.get("PORT", "")
    try:
        chosen = parse_listen(listen) if listen is not None else None
    except ValueError as error:
        raise ConfigInvalid([Problem(file="--listen", path="", message=str(error))]) from None
    try:
        return Override(listen=chosen, port=parse_listen(f"localhost:{port}")[1] if port else None)
    except ValueError:
        raise ConfigInvalid([Problem(file="environment", path="PORT", message="expected a port from 0 to 65535")]) from None


def needs_keys(listen: Listen, *, has_keys: bool) -> str | None:
    """Tell what is wrong with listening on `listen`, or None: whoever reaches the relay spends its credentials."""
    if has_keys or is_loopback(listen[0]):
        return None
    return f"{listen_text(listen)} can be reached from outside and there are no keys: add `keys`, or listen on 127.0.0.1"


def place_metrics(configured: Listen | None, listen: Listen) -> Metrics:
    """Return where metrics go: numbers about everybody's use stay on loopback unless a person says otherwise."""
    if configured is None:
        if is_loopback(listen[0]):
            return Metrics()
        configured = METRICS_DEFAULT
    return Metrics() if configured == listen and listen[1] != 0 else Metrics(host=configured[0], port=configured[1])
