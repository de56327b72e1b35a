"""The configuration the rest of the relay sees: one frozen tree whose references are objects, built by `load`.

Durations are seconds, sizes bytes. A reload builds a new tree; running exchanges keep the one they began with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from relay.config.secret import Secret as Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds of every wait on an upstream or a client, in seconds. All are finite."""

    connect: float = 5.0
    first_token: float = 120.0
    first_token_auto: bool = False
    """Whether `first_token` is learned per target; the number is then what holds until enough is known, and the ceiling."""
    between_tokens: float = 120.0
    write: float = 30.0
    total: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamLimits:
    """How much an upstream is given to do at once."""

    concurrency: int | None = None
    """Calls at once; None for no bound."""
    queue: int = 128
    """Requests that may wait for one of them to end."""
    queue_wait: float = 5.0
    """How long one waits at most, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """A request that asks an upstream whether it is well."""

    path: str
    """Below the upstream's base_url, with a slash at its beginning."""
    every: float = 30.0
    """Seconds between two."""
    timeout: float = 5.0
    """Seconds for the whole answer."""


class Kind(Enum):
    """How to speak to an upstream."""

    OPENAI = "openai"
    DEMO = "demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """An origin the relay calls."""

    name: str
    kind: Kind = Kind.OPENAI
    base_url: str
    """Scheme, host, port and path prefix, without a trailing slash; empty for the demo until it listens."""
    api_key: Secret | None = None
    """Its credential; of several the first."""
    api_keys: tuple[Secret, ...] = ()
    """Its credentials where several were configured, else empty."""
    api_key_file: str | None = None
    """File that holds the credential; read again when it changes."""
    is_passthrough: bool = False
    """Whether the caller's own credential and organization are sent instead of ours."""
    forward_headers: frozenset[bytes] = frozenset()
    """Further request headers that may pass, in lower case."""
    allow_private: bool = False
    ca_file: str | None = None
    proxy: str | None = None
    """http://host:port of a proxy reached by CONNECT; None for a direct connection."""
    done_optional: bool = False
    """Quirk: a stream may end after its finish_reason without `[DONE]`."""
    no_stream_options: bool = False
    """Quirk: it refuses `stream_options`, so its streams are never asked for usage on our own account."""
    vendor: str = "openai"
    """Whose API it is, for the codes and headers of its refusals; one of `vendors.NAMES`."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: UpstreamLimits = field(default_factory=UpstreamLimits)
    health: HealthCheck | None = None
    """How it is asked whether it is well, beside what requests tell; None for not at all."""
    credentials: tuple[Secret | None, ...] = field(init=False, repr=False, compare=False)
    """The relay's own credentials, the first to be used first; None stands for the one in a file. Made once: every attempt asks."""

    def __post_init__(self) -> None:
        only = (self.api_key,) if self.api_key is not None or self.api_key_file is not None else ()
        object.__setattr__(self, "credentials", self.api_keys or only)


class Period(Enum):
    """A stretch of the calendar, in UTC."""

    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be used up in each day or month."""

    amount: int
    """Tokens, or billionths of a US dollar."""
    is_money: bool
    period: Period


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be asked for; None for no limit of a kind."""

    rpm: int | None = None
    """Requests in any 60 s."""
    tpm: int | None = None
    """Tokens in any 60 s."""
    concurrency: int | None = None
    """Requests at once."""
    budget: Budget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per million tokens, which is millionths of a dollar per token."""

    input: float
    output: float
    cached: float
    """For the part of the input that the upstream read from its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One upstream and the model's name there."""

    upstream: Upstream
    model: str | None
    """The name at the upstream; `*` stands for what the route's wildcard matched; None only for a request without a model."""
    weight: int = 1
    """Its share among the targets of a balanced route."""
    timeouts: Timeouts | None = None
    """What holds for attempts at it, route and upstream taken in; None where only the route's are known."""
    name: str = field(init=False, repr=False, compare=False)
    """Upstream and model there, as in the configuration: the same on every route. Made once: every attempt asks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.upstream.name}/{self.model or '*'}")


class Strategy(Enum):
    """How a route chooses among its targets; its fallbacks are always tried in order."""

    ORDERED = "ordered"
    WEIGHTED = "weighted"
    LEAST_BUSY = "least_busy"
    FASTEST = "fastest"


class AffinityKind(Enum):
    """What keeps the requests of one conversation together."""

    NONE = "none"
    PREFIX = "prefix"
    USER = "user"
    HEADER = "header"


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """What requests must have in common to land on the same target, where its prompt cache is."""

    kind: AffinityKind = AffinityKind.NONE
    header: bytes | None = None
    """Name of the request header in lower case; for AffinityKind.HEADER only."""

    def __str__(self) -> str:
        return self.kind.value if self.header is None else f"{self.kind.value}:{self.header.decode('ascii')}"


class FallbackCause(Enum):
    """Refusals of the caller's own request that another model might not share."""

    CONTEXT_LENGTH = "context_length"
    CONTENT_POLICY = "content_policy"


class OnLimit(Enum):
    """What becomes of an answer that reaches a limit of tokens."""

    FINISH = "finish"
    CLAMP = "clamp"
    """It may not be longer than what is left: its request says so."""
    STOP = "stop"
    """It ends there, with an error event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDisconnect:
    """How far a stream is read on after its client has left."""

    drain: float
    max_tokens: int | None = None
    """Of the answer, those included that the client got."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """When a backup attempt starts beside a slow first one."""

    after: float | None = None
    """Seconds without content; None for the learned 95th percentile."""
    at_most: float = 0.05
    """Largest share of requests that may cost an attempt more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Comments for clients that give up on silence: the answer begins after the grace period, comments follow regularly."""

    after: float = 15.0
    every: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A model name, or a pattern that ends in `*`, and where it goes."""

    name: str
    targets: tuple[Target, ...]
    """What `strategy` chooses among."""
    timeouts: Timeouts
    """`write` and `total` of the whole exchange; the rest for targets that have none of their own."""
    fallbacks: tuple[Target, ...] = ()
    """Tried in order when `targets` have failed."""
    strategy: Strategy = Strategy.ORDERED
    affinity: Affinity = field(default_factory=Affinity)
    fallback_on: frozenset[FallbackCause] = frozenset()
    """Refusals of the request itself after which the next target is tried."""
    retries: int = 2
    """How often a target is asked again when no other is left, at most."""
    limits: Limits | None = None
    """For all its callers together."""
    on_disconnect: OnDisconnect | None = None
    """None: the upstream is cancelled at once."""
    on_limit: OnLimit = OnLimit.FINISH
    always_asks_usage: bool = False
    """Whether upstreams are asked for the usage of every stream, not only of those whose tokens are limited."""
    hedge: Hedge | None = None
    heartbeat: Heartbeat | None = None

    @property
    def all_targets(self) -> tuple[Target, ...]:
        """Return targets and fallbacks, in the order written."""
        return self.targets + self.fallbacks

    @property
    def is_wildcard(self) -> bool:
        """Tell whether the name is a pattern."""
        return self.name.endswith("*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A virtual key: who calls, and what for."""

    name: str
    routes: frozenset[str] | None = None
    """Names of the routes this key may use; None for all."""
    is_enabled: bool = True
    expires_at: float | None = None
    """Unix time after which the key is unknown; None for never."""
    is_previous: bool = False
    """Whether it is the one before, good for a while longer after a rotation."""
    limits: Limits | None = None
    route_limits: Mapping[str, Limits] = field(default_factory=dict)
    """Limits of this key on one route, by the route's name."""
    is_stored: bool = False
    """Whether it comes from the file of stored keys, which may change while the relay runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The listener and its limits."""

    host: str = "127.0.0.1"
    port: int = 8080
    max_body: int = 32 * 2**20
    max_header: int = 32 * 2**10
    max_connections: int | None = None
    """None: half of what RLIMIT_NOFILE allows."""
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose X-Forwarded-For is believed."""
    loop: str = "auto"
    """auto (uvloop where it is installed), uvloop or asyncio."""
    drain: float = 30.0
    workers: int | None = 1
    """How many processes serve; None: one for each core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What the relay is to be measured against: the thresholds of its rules and a bound of its histograms."""

    ttft: float = 2.0
    """Seconds within which 95 % of streams should have shown their first content."""
    availability: float = 0.995
    """Share of the requests that count (good or bad, see Outcome) that should be good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Where /metrics is served: on the main listener when `host` is None."""

    host: str | None = None
    port: int = 9464
    slo: Slo = field(default_factory=Slo)
    label_values: int = 200
    """How many configured names a label may have; further ones count as `_other`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Where what was used is kept, and for how long."""

    store: str
    keep_days: int = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Where spans are sent."""

    otlp: str | None = None
    """An OTLP/HTTP collector's address, without /v1/traces; None for nowhere."""
    sample: float = 1.0
    """The share that is recorded of the traces that begin here."""
    is_wanted: bool = False
    """Whether the file itself asks for spans: what is missing for them is an error then, and a warning where only the environment does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """Where `replicas` relays count their limits together; an answer after `timeout` seconds comes too late."""

    url: Secret
    replicas: int = 1
    timeout: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the relay was told."""

    server: Server = field(default_factory=Server)
    upstreams: Mapping[str, Upstream]
    routes: Mapping[str, Route]
    keys: Mapping[bytes, Key] = field(default_factory=dict)
    """SHA-256 digest of a key -> the key; a key that is being rotated stands here twice, the old one with its own expiry."""
    key_store: str | None = None
    """File of stored keys, of which `keys` holds those that were in it when it was last read."""
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)
    logs_prompts: bool = False
    """Whether prompts and answers go into the log."""
    usage: Usage | None = None
    """None: what was used is kept nowhere."""
    prices: Mapping[str, Price] = field(default_factory=dict)
    """By upstream/model; a name may end in `*`."""
    state_dir: str | None = None
    """Directory of what has to survive a restart; None keeps it in memory."""
    redis: Redis | None = None
    default_model: str | None = None
    """What answers for requests that name no model."""
    warnings: tuple[str, ...] = ()
    """What the loader accepted but a person should know."""
    source: str = "environment"
    """The file this came from, for messages."""
    commit: str = "unknown"
    """The commit that the relay was built from, as RELAY_COMMIT says."""

    @property
    def asks_for_key(self) -> bool:
        """Tell whether callers need a key. A file of keys that holds none yet lets nobody in."""
        return bool(self.keys) or self.key_store is not None

    @property
    def key_names(self) -> list[str]:
        """Return the names of all keys, sorted, each once."""
        return sorted({key.name for key in self.keys.values()})
