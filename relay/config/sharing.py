"""Where limits are counted that hold for several machines."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from relay.config.fields import STRICT, Count, Duration, RedisUrl, or_variable, setting

URL_FORM: Final = r"(?:rediss?|unix)://.+"


class Redis(BaseModel):
    """The Redis, or Valkey, that counts limits for several relays: its URL, or a mapping with more. An empty text: none."""

    model_config = STRICT | ConfigDict(json_schema_extra={"type": ["string", "object"], "pattern": or_variable(URL_FORM) + "|^$"})

    url: RedisUrl = Field(
        description="Its address: redis://, or rediss:// for TLS, with user, password and database where it has them.",
        examples=["${REDIS_URL}", "rediss://:${REDIS_PASSWORD}@redis.example.com:6379/0"],
        json_schema_extra={"writeOnly": True},
    )
    replicas: Count = setting(1, "How many relays share it: each gives away its part of the limits while Redis is away.", 3, shown=1)
    timeout: Duration = setting(0.05, "How long it may be silent when asked. Longer counts as an outage.", "50ms", "200ms", shown="50ms")

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"url": value}
        if not isinstance(value, dict):
            raise ValueError("expected a URL such as redis://host:6379/0, or {url: ..., replicas: 2}")
        return value
