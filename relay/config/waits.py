"""How long everything may take: the sections `timeouts`."""

from typing import Final

from pydantic import BaseModel

from relay.config.fields import STRICT, Duration, FirstToken, setting

_CONNECT: Final = setting(5.0, "How long connecting may take, TLS included.", "5s", shown="5s")
_FIRST_TOKEN: Final = setting(
    120.0,
    "How long an upstream may take until its first event or, without streaming, its answer. With `auto` it is learned per target"
    " and size of prompt; until enough is known, and as the most there is, the next wider setting holds.",
    "90s",
    "auto",
    shown="120s",
)
_BETWEEN_TOKENS: Final = setting(120.0, "How long an upstream may be silent in the middle of an answer.", "30s", shown="120s")


class Timeouts(BaseModel):
    """Bounds of every wait."""

    model_config = STRICT

    connect: Duration = _CONNECT
    first_token: FirstToken = _FIRST_TOKEN
    between_tokens: Duration = _BETWEEN_TOKENS
    write: Duration = setting(30.0, "How long a client may read nothing before it is cut.", "30s", shown="30s")
    total: Duration = setting(3600.0, "How long one exchange may take in all.", "10m", "1h", shown="1h")


class TargetTimeouts(BaseModel):
    """Bounds of the waits for one target. How long the whole exchange may take is its route's business."""

    model_config = STRICT

    connect: Duration = _CONNECT
    first_token: FirstToken = _FIRST_TOKEN
    between_tokens: Duration = _BETWEEN_TOKENS
