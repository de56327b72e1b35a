"""The settings themselves: pydantic models that check one section each and make the published JSON Schema.

No unions: each value has one form, read by one parser, so a message always says what is expected. A setting that is not
here is an error. Models hold what one entry says; what entries say about each other is checked in `build`.
"""

from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic.fields import FieldInfo

from relay.config import addresses, values
from relay.config.problems import Path
from relay.config.tree import Secret


def _text(*, pattern: str | None = None, **more: object) -> WithJsonSchema:
    """Describe a text for editors; whatever the pattern, a value may be a variable instead."""
    schema: dict[str, Any] = {"type": "string", **more}
    if pattern is not None:
        schema["pattern"] = rf"^(?:{pattern}|.*\$\{{.*)$"
    return WithJsonSchema(schema)


def _number(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": ["integer", "string"], "minimum": 1, "pattern": rf"^(?:{pattern}|.*\$\{{.*)$"})


_SWITCH: Final = WithJsonSchema({"type": ["boolean", "string"]})
_TARGET: Final = r"[^/*]+/[^*]*\*?"

Text = Annotated[str, PlainValidator(values.parse_text), _text()]
Model = Annotated[str, PlainValidator(values.parse_model), _text()]
Switch = Annotated[bool, PlainValidator(values.parse_switch), _SWITCH]
Duration = Annotated[float, PlainValidator(values.parse_duration), _text(pattern=r"[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h)")]
Size = Annotated[int, PlainValidator(values.parse_size), _number(r"[0-9]+(?:B|kB|KB|MB|GB|KiB|MiB|GiB)?")]
Count = Annotated[int, PlainValidator(values.parse_count), _number(r"[0-9]+[kM]?")]
Credential = Annotated[Secret, PlainValidator(values.parse_secret), _text()]
Digest = Annotated[bytes, PlainValidator(values.parse_digest), _text(pattern="sha256:[0-9a-fA-F]{64}")]
Expiry = Annotated[float, PlainValidator(values.parse_expiry), _text(pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*")]
Target = Annotated[tuple[str, str], PlainValidator(values.parse_target), _text(pattern=_TARGET)]
Listen = Annotated[addresses.Listen, PlainValidator(addresses.parse_listen), _text(pattern=r".+:[0-9]{1,5}")]
BaseUrl = Annotated[str, PlainValidator(addresses.parse_base_url), _text(pattern="https?://[^?#@]+")]
Proxy = Annotated[str, PlainValidator(addresses.parse_proxy), _text(pattern="http://[^/?#@]+/?")]
Origin = Annotated[str, PlainValidator(addresses.parse_origin), _text(pattern="https?://[^/?#@*]+/?")]
Network = Annotated[str, PlainValidator(addresses.parse_network), _text()]
HeaderName = Annotated[bytes, PlainValidator(addresses.parse_forwarded_header), _text()]
Kind = Annotated[str, PlainValidator(values.parse_choice(("openai", "demo"))), _text(enum=["openai", "demo"])]
Loop = Annotated[str, PlainValidator(values.parse_choice(("auto", "uvloop", "asyncio"))), _text(enum=["auto", "uvloop", "asyncio"])]

_STRICT: Final = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)


def _setting(default: object, description: str, *examples: object, shown: object = None, is_secret: bool = False) -> Any:
    """Declare a setting that may be left out. `shown` is its default as a person writes it, for editors."""
    extra: dict[str, Any] = {} if shown is None else {"default": shown}
    if is_secret:
        extra["writeOnly"] = True
    return Field(default_factory=lambda: default, description=description, examples=list(examples), json_schema_extra=extra)


class Timeouts(BaseModel):
    """Bounds of every wait."""

    model_config = _STRICT

    connect: Duration = _setting(5.0, "How long connecting may take, TLS included.", "5s", shown="5s")
    first_token: Duration = _setting(
        120.0, "How long an upstream may take until its first event or, without streaming, its answer.", "90s", "5m", shown="120s"
    )
    between_tokens: Duration = _setting(120.0, "How long an upstream may be silent in the middle of an answer.", "30s", shown="120s")
    write: Duration = _setting(30.0, "How long a client may read nothing before it is cut.", "30s", shown="30s")
    total: Duration = _setting(3600.0, "How long one exchange may take in all.", "10m", "1h", shown="1h")


class Server(BaseModel):
    """The listener and its limits."""

    model_config = _STRICT

    listen: Listen = _setting(
        ("127.0.0.1", 8080),
        "Address to listen on. Any other than loopback needs `keys`.",
        "127.0.0.1:8080",
        "0.0.0.0:8080",
        shown="127.0.0.1:8080",
    )
    max_body: Size = _setting(32 * 2**20, "Largest JSON request body that is read.", "32MiB", shown="32MiB")
    max_header: Size = _setting(32 * 2**10, "Most bytes of request headers, all together.", "32KiB", shown="32KiB")
    max_connections: Count | None = _setting(
        None, "Most client connections at once. Left out: half of what the system lets the process open.", 2000
    )
    cors_origins: list[Origin] = _setting([], "Browser origins that may call. Empty: none.", ["https://app.example.com"], shown=[])
    trusted_proxies: list[Network] = _setting([], "Addresses or networks whose X-Forwarded-For is believed.", ["10.0.0.0/8"], shown=[])
    loop: Loop = _setting("auto", "Event loop: uvloop where it is installed (auto), uvloop, or asyncio.", "auto", shown="auto")
    drain: Duration = _setting(30.0, "How long open streams may go on after a stop was asked for.", "30s", shown="30s")


class Upstream(BaseModel):
    """An origin the relay calls. A known name brings its base_url."""

    model_config = _STRICT

    kind: Kind = _setting("openai", "How to speak to it; `demo` is a simulator inside the relay.", "openai", "demo", shown="openai")
    base_url: BaseUrl | None = _setting(
        None, "Where its API begins, without the endpoint. Known names have one.", "https://api.example.com/v1"
    )
    api_key: Credential | None = _setting(
        None, "Its credential; `passthrough` sends the caller's own instead.", "${OPENAI_API_KEY}", "passthrough", is_secret=True
    )
    api_key_file: Text | None = _setting(None, "File that holds the credential; read again when it changes.", "/run/secrets/openai")
    forward_headers: list[HeaderName] = _setting([], "Further request headers that may pass to it.", ["x-team"], shown=[])
    allow_private: Switch | None = _setting(
        None,
        "Whether its name may resolve to a private or loopback address. A base_url that spells one out says so itself.",
        True,
    )
    ca_file: Text | None = _setting(None, "Certificates (PEM) to trust for it instead of the system's.", "/etc/ssl/private-ca.pem")
    proxy: Proxy | None = _setting(None, "Proxy to reach it through. Left out: HTTPS_PROXY and NO_PROXY for https.", "http://proxy:3128")
    done_optional: Switch = _setting(False, "Whether its streams may end after a finish_reason without [DONE].", False, shown=False)
    timeouts: Timeouts = _setting(Timeouts(), "Timeouts that differ for it.", {"first_token": "5m"})


class Key(BaseModel):
    """A virtual key: who may call."""

    model_config = _STRICT

    key: Credential | None = _setting(None, "The key itself; `hash` is safer.", "${ALICE_KEY}", is_secret=True)
    hash: Digest | None = _setting(None, "SHA-256 of the key, as sha256: and 64 hexadecimal digits.", "sha256:" + "0" * 64, is_secret=True)
    routes: list[Model] = _setting([], "Names of the routes it may use. Left out: all.", ["fast", "openai/*"])
    enabled: Switch = _setting(True, "Whether it may be used now.", True, shown=True)
    expires: Expiry | None = _setting(None, "Last day (UTC), or moment, of its use.", "2027-12-31", "2027-12-31T18:00:00Z")


class Metrics(BaseModel):
    """Where metrics are served."""

    model_config = _STRICT

    listen: Listen | None = _setting(
        None, "Address of /metrics. Left out: the main listener when that is loopback, else 127.0.0.1:9464.", "127.0.0.1:9464"
    )


class Settings(BaseModel):
    """The whole file."""

    model_config = _STRICT

    server: Server = _setting(Server(), "The listener and its limits.", {"listen": "127.0.0.1:8080"})
    upstreams: dict[str, Upstream] = Field(
        description="Who the relay calls, by name.", examples=[{"openai": {"api_key": "${OPENAI_API_KEY}"}}], min_length=1
    )
    routes: dict[str, Target] = Field(
        description="Model names that clients use, each with its upstream/model. A name may end in *.",
        examples=[{"fast": "openai/gpt-4.1-mini", "openai/*": "openai/*"}],
        min_length=1,
    )
    keys: dict[str, Key] = _setting(
        {}, "Who may call, by name. Left out: everybody who reaches loopback.", {"alice": {"key": "${ALICE_KEY}"}}
    )
    timeouts: Timeouts = _setting(Timeouts(), "Timeouts of all upstreams.", {"connect": "5s", "first_token": "2m"})
    metrics: Metrics = _setting(Metrics(), "Where metrics are served.", {"listen": "127.0.0.1:9464"})
    default_model: Model | None = _setting(None, "The model of requests that name none.", "fast")


def names_below(path: Path) -> frozenset[str] | None:
    """Return the settings that may stand in the mapping at `path`; None where names are free or nothing is known."""
    inner = _type_at(path)
    return frozenset(inner.model_fields) if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def field_at(path: Path) -> FieldInfo | None:
    """Return the setting whose single value, or list of them, stands at `path`; None for a section and for no setting."""
    names = tuple(part for part in path if isinstance(part, str))
    if not names or _is_section(_type_at(names)):
        return None
    if names[0] == "routes":
        return Settings.model_fields["routes"] if len(names) == 2 else None
    inner = _type_at(names[:-1])
    return inner.model_fields.get(names[-1]) if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _is_section(inner: Any) -> bool:
    return get_origin(inner) is dict or (isinstance(inner, type) and issubclass(inner, BaseModel))


def _type_at(path: Path) -> Any:
    """Return the model or the dict type that describes the value at `path`, or None."""
    inner: Any = Settings
    for name in path:
        if get_origin(inner) is dict:
            inner = get_args(inner)[1]
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            field = inner.model_fields.get(str(name))
            inner = field.annotation if field is not None else None
        else:
            return None
    return inner if get_origin(inner) is dict or isinstance(inner, type) else None
