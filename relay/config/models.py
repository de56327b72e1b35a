"""The settings themselves: pydantic models that check one section each and make the published JSON Schema.

No unions: each value has one form, and a section that may be written shorter (a route, a target) is brought to its full
form first, so a message always says what is expected. A setting that is not here is an error. Models hold what one entry
says; what entries say about each other is checked in `build` and `routes`.
"""

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from relay.config.capacity import HealthCheck, UpstreamLimits
from relay.config.fields import (
    STRICT,
    TARGET,
    Affinity,
    BaseUrl,
    Budget,
    CauseName,
    Count,
    Credential,
    Digest,
    Duration,
    Expiry,
    HeaderName,
    HedgeAfter,
    HedgeShare,
    Kind,
    Listen,
    Loop,
    Model,
    Network,
    OnLimitName,
    Origin,
    Price,
    Proxy,
    Retries,
    Size,
    StrategyName,
    Switch,
    TargetName,
    Text,
    UsageAsked,
    Vendor,
    Weight,
    Workers,
    or_a_store,
    or_variable,
    setting,
)
from relay.config.sharing import Redis as Redis
from relay.config.telling import Logging, Metrics, Tracing
from relay.config.tree import Affinity as AffinityValue
from relay.config.waits import TargetTimeouts as TargetTimeouts
from relay.config.waits import Timeouts as Timeouts


class Server(BaseModel):
    """The listener and its limits."""

    model_config = STRICT

    listen: Listen = setting(
        ("127.0.0.1", 8080),
        "Address to listen on. Any other than loopback needs `keys`.",
        "127.0.0.1:8080",
        "0.0.0.0:8080",
        shown="127.0.0.1:8080",
    )
    max_body: Size = setting(32 * 2**20, "Largest JSON request body that is read.", "32MiB", shown="32MiB")
    max_header: Size = setting(32 * 2**10, "Most bytes of request headers, all together.", "32KiB", shown="32KiB")
    max_connections: Count | None = setting(
        None, "Most client connections at once. Left out: half of what the system lets the process open.", 2000
    )
    cors_origins: list[Origin] = setting([], "Browser origins that may call. Empty: none.", ["https://app.example.com"], shown=[])
    trusted_proxies: list[Network] = setting([], "Addresses or networks whose X-Forwarded-For is believed.", ["10.0.0.0/8"], shown=[])
    loop: Loop = setting("auto", "Event loop: uvloop where it is installed (auto), uvloop, or asyncio.", "auto", shown="auto")
    drain: Duration = setting(30.0, "How long open streams may go on after a stop was asked for.", "30s", shown="30s")
    workers: Workers = setting(1, "How many processes serve; `auto`: one for each core.", "auto", 4, shown=1)


class Upstream(BaseModel):
    """An origin the relay calls. A known name brings its base_url."""

    model_config = STRICT

    kind: Kind = setting("openai", "How to speak to it; `demo` is a simulator inside the relay.", "openai", "demo", shown="openai")
    base_url: BaseUrl | None = setting(
        None, "Where its API begins, without the endpoint. Known names have one.", "https://api.example.com/v1"
    )
    api_key: Credential | None = setting(
        None,
        "Its credential; `passthrough` sends the caller's own instead, where there are no `keys`.",
        "${OPENAI_API_KEY}",
        "passthrough",
        is_secret=True,
    )
    api_keys: list[Credential] = setting(
        [], "Several instead of one: the next takes over while one is throttled or refused.", ["${KEY_1}", "${KEY_2}"], is_secret=True
    )
    api_key_file: Text | None = setting(None, "File that holds the credential; read again when it changes.", "/run/secrets/openai")
    forward_headers: list[HeaderName] = setting([], "Further request headers that may pass to it.", ["x-team"], shown=[])
    allow_private: Switch | None = setting(
        None,
        "Whether its name may resolve to a private or loopback address. A base_url that spells one out says so itself.",
        True,
    )
    ca_file: Text | None = setting(None, "Certificates (PEM) to trust for it instead of the system's.", "/etc/ssl/private-ca.pem")
    proxy: Proxy | None = setting(None, "Proxy to reach it through. Left out: HTTPS_PROXY and NO_PROXY for https.", "http://proxy:3128")
    done_optional: Switch = setting(False, "Whether its streams may end after a finish_reason without [DONE].", False, shown=False)
    no_stream_options: Switch = setting(False, "Whether it refuses stream_options, and so is never asked for usage.", False, shown=False)
    vendor: Vendor | None = setting(
        None,
        "Whose API it is, for its error codes and rate limit headers. Left out: told by its name or address, else openai.",
        "dashscope",
    )
    timeouts: Timeouts = setting(Timeouts(), "Timeouts that differ for it.", {"first_token": "5m"})
    limits: UpstreamLimits = setting(UpstreamLimits(), "How much it is given to do at once.", {"concurrency": 64})
    health: HealthCheck | None = setting(None, "How it is asked whether it is well. Left out: only requests tell.", {"path": "/models"})


_A_TARGET: Final = "one target written as upstream/model, such as openai/gpt-4.1-mini"


class Target(BaseModel):
    """An upstream and the model's name there: just that, as upstream/model, or a mapping with more."""

    model_config = STRICT | ConfigDict(json_schema_extra={"type": ["string", "object"], "pattern": or_variable(TARGET)})

    to: TargetName = Field(description="The target, as upstream/model.", examples=["openai/gpt-4.1-mini"])
    weight: Weight = setting(1, "Its share among the targets of `balance`.", 3, shown=1)
    timeouts: TargetTimeouts = setting(TargetTimeouts(), "Timeouts that differ for it on this route.", {"first_token": "30s"})

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, value: object) -> object:
        if isinstance(value, str):
            return {"to": value}
        if not isinstance(value, dict):
            raise ValueError(f"expected {_A_TARGET}, or {{to: upstream/model}} with more settings")
        return value


class Hedge(BaseModel):
    """When a backup attempt starts on another target beside one that is slow."""

    model_config = STRICT

    after: HedgeAfter = setting(
        None,
        "How long the first target may go without content; p95 is learned from its answers to prompts of that size.",
        "p95",
        "800ms",
        shown="p95",
    )
    at_most: HedgeShare = setting(
        0.05, "Largest share of the route's requests that may cost an attempt more, over a minute.", "5%", shown="5%"
    )


class Heartbeat(BaseModel):
    """Comments for clients that would give up on a silent stream."""

    model_config = STRICT

    after: Duration = setting(
        15.0, "How long a stream may be silent before the answer is begun. Up to then errors are real statuses.", "15s", shown="15s"
    )
    every: Duration = setting(15.0, "How often a comment is sent while there is nothing else to send.", "15s", shown="15s")


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class OnDisconnect(BaseModel):
    """How far a stream is read on after its client has left, to learn what it used."""

    model_config = STRICT

    drain: Duration = Field(description="How long it is read on at most; its places and slots stay taken meanwhile.", examples=["30s"])
    max_tokens: Count | None = setting(None, "How long its answer may become, in tokens. Left out: as it comes.", 4000)


Targets = Annotated[list[Target], BeforeValidator(_listed)]


def _targets(description: str, *examples: object) -> Any:
    form: dict[str, Any] = {"type": ["string", "array"], "pattern": or_variable(TARGET)}
    return Field(default_factory=list, description=description, examples=list(examples), json_schema_extra=form)


def _accept_short_forms(schema: dict[str, Any]) -> None:
    """Let editors take a route that is just its target, or a list of them."""
    schema["type"] = ["string", "array", "object"]
    schema["pattern"] = or_variable(TARGET)
    schema["items"] = dict(schema["properties"]["to"]["items"])


_RPM: Final = setting(None, "Requests in any 60 seconds.", 60, "10k")
_TPM: Final = setting(None, "Tokens in any 60 seconds, prompts and answers together.", "100k", "2M")
_CONCURRENCY: Final = setting(None, "Requests at once.", 4)
_BUDGET: Final = setting(None, "Tokens or US dollars per day or month (UTC). Dollars need `prices`.", "20 USD/month", "1M tokens/day")


class Limits(BaseModel):
    """What may be asked for; each is exact, and what is left out is not limited."""

    model_config = STRICT

    rpm: Count | None = _RPM
    tpm: Count | None = _TPM
    concurrency: Count | None = _CONCURRENCY
    budget: Budget | None = _BUDGET


class KeyLimits(BaseModel):
    """What a key may ask for, in all and on single routes."""

    model_config = STRICT

    rpm: Count | None = _RPM
    tpm: Count | None = _TPM
    concurrency: Count | None = _CONCURRENCY
    budget: Budget | None = _BUDGET
    per_route: dict[str, Limits] = setting({}, "Further limits of this key on single routes, by their names.", {"smart": {"rpm": 10}})


class Prices(BaseModel):
    """What a model costs, in US dollars per million tokens."""

    model_config = STRICT

    input: Price = Field(description="Per million tokens of the prompt.", examples=[0.4])
    output: Price = Field(description="Per million tokens of the answer, reasoning included.", examples=[1.6])
    cached: Price | None = setting(None, "Per million tokens of the prompt that the upstream had cached. Left out: as `input`.", 0.1)


class Route(BaseModel):
    """Where a model's name leads: one target, a list of them tried in order, or a mapping with `to` or `balance`."""

    model_config = STRICT | ConfigDict(json_schema_extra=_accept_short_forms)

    to: Targets = _targets("Targets tried in order, top to bottom.", ["openai/gpt-4.1-mini", "dashscope/qwen-plus"], "openai/gpt-4.1-mini")
    balance: list[Target] = setting(
        [],
        "Targets that share the requests, instead of `to`.",
        [{"to": "openai/gpt-4.1", "weight": 3}, {"to": "dashscope/qwen-max", "weight": 1}],
    )
    fallback: Targets = _targets("Targets tried in order when those above have failed.", ["dashscope/qwen-max"])
    strategy: StrategyName | None = setting(
        None,
        "How `balance` chooses: by weight (the default), the target with the fewest requests for its weight, or the one"
        " whose first token came soonest of late. `to` is always ordered.",
        "least_busy",
    )
    affinity: Affinity = setting(
        AffinityValue(),
        "What keeps a conversation on one target of `balance`, where its prompt is cached: its first bytes, the user"
        " it is for, or a header.",
        "prefix",
        "header:x-session-id",
        shown="none",
    )
    fallback_on: list[CauseName] = setting([], "Refusals of the request itself that still fall back.", ["context_length"], shown=[])
    retries: Retries = setting(2, "How often a target is asked again when no other is left, for a tenth of requests.", 1, shown=2)
    hedge: Hedge | None = setting(
        None, "Starts a backup attempt on another target when the first is slow. Left out: never.", {"after": "p95", "at_most": "5%"}
    )
    heartbeat: Heartbeat | None = setting(None, "Sends comments into silent streams. Left out: never.", {"after": "15s", "every": "15s"})
    timeouts: Timeouts = setting(Timeouts(), "Timeouts that differ on this route, for all its targets.", {"first_token": "45s"})
    limits: Limits = setting(Limits(), "Limits for all its callers together.", {"rpm": 600, "concurrency": 32})
    on_disconnect: OnDisconnect | None = setting(
        None,
        "Reads a stream on after its client has left, to learn what it used. Left out: the upstream is cancelled at once.",
        {"drain": "30s", "max_tokens": 4000},
    )
    on_limit: OnLimitName = setting(
        "finish",
        "What becomes of an answer that reaches a limit of its tokens: it goes on, is kept within what is left by a lower"
        " max_tokens, or stops with an error event.",
        "stop",
        shown="finish",
    )
    usage: UsageAsked = setting(
        "limited",
        "Which streams are asked for their usage although the client did not: those whose tokens are limited, or always.",
        "always",
        shown="limited",
    )

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, value: object) -> object:
        return {"to": value} if isinstance(value, str | list) else value


class PreviousHash(BaseModel):
    """The hash that a key had before it was rotated, good for a while longer."""

    model_config = STRICT

    hash: Digest = Field(
        description="SHA-256 of the old key, as sha256: and 64 hexadecimal digits.",
        examples=["sha256:" + "0" * 64],
        json_schema_extra={"writeOnly": True},
    )
    until: Expiry = Field(description="Last day (UTC), or moment, of its use.", examples=["2027-12-31T18:00:00Z"])


class Key(BaseModel):
    """A virtual key: who may call."""

    model_config = STRICT

    key: Credential | None = setting(None, "The key itself; `hash` is safer.", "${ALICE_KEY}", is_secret=True)
    hash: Digest | None = setting(None, "SHA-256 of the key, as sha256: and 64 hexadecimal digits.", "sha256:" + "0" * 64, is_secret=True)
    previous: PreviousHash | None = setting(
        None, "What the key was before, while clients change over.", {"hash": "sha256:" + "0" * 64, "until": "2027-12-31T18:00:00Z"}
    )
    routes: list[Model] = setting([], "Names of the routes it may use. Left out: all.", ["fast", "openai/*"])
    enabled: Switch = setting(True, "Whether it may be used now.", True, shown=True)
    expires: Expiry | None = setting(None, "Last day (UTC), or moment, of its use.", "2027-12-31", "2027-12-31T18:00:00Z")
    limits: KeyLimits = setting(KeyLimits(), "What it may ask for.", {"rpm": 60, "tpm": "100k", "concurrency": 4, "budget": "20 USD/month"})


class Usage(BaseModel):
    """The usage ledger: what was used, by hour, key, route and upstream. `relay usage` reads it."""

    model_config = STRICT

    store: Text = Field(description="File of the ledger; made when it is not there.", examples=["usage.db"])
    keep_days: Count = setting(400, "How many days it goes back; older hours are forgotten.", 90, shown=400)


class Settings(BaseModel):
    """The whole file."""

    model_config = STRICT

    server: Server = setting(Server(), "The listener and its limits.", {"listen": "127.0.0.1:8080"})
    upstreams: dict[str, Upstream] = Field(
        description="Who the relay calls, by name.", examples=[{"openai": {"api_key": "${OPENAI_API_KEY}"}}], min_length=1
    )
    routes: dict[str, Route] = Field(
        description="Model names that clients use, each with its upstream/model, or several. A name may end in *.",
        examples=[{"fast": ["openai/gpt-4.1-mini", "ollama/qwen3:8b"], "openai/*": "openai/*"}],
        min_length=1,
    )
    keys: dict[str, Key] = Field(
        default_factory=dict,
        description="Who may call, by name; `store: FILE` names a file with more of them. Left out: everybody who reaches loopback.",
        examples=[{"alice": {"key": "${ALICE_KEY}"}}, {"store": "keys.db"}],
        json_schema_extra=or_a_store,
    )
    timeouts: Timeouts = setting(Timeouts(), "Timeouts of all upstreams.", {"connect": "5s", "first_token": "2m"})
    prices: dict[str, Prices] = setting(
        {},
        "What models cost, by upstream/model; a name may end in *. Only budgets in dollars use them.",
        {"openai/gpt-4.1-mini": {"input": 0.4, "output": 1.6, "cached": 0.1}},
    )
    state_dir: Text | None = setting(
        None,
        "Directory where what was used of budgets survives a restart; relays of one machine that name the same one share all limits."
        " Left out: kept in memory.",
        "/var/lib/relay",
    )
    redis: Redis | None = setting(
        None,
        "Redis that counts the limits of several relays. Left out, or empty: none.",
        "redis://redis:6379/0",
        is_secret=True,
    )
    metrics: Metrics = setting(Metrics(), "Where metrics are served, and what they are measured against.", {"listen": "127.0.0.1:9464"})
    usage: Usage | None = setting(None, "Where to keep what was used. Left out: nowhere.", {"store": "usage.db"})
    tracing: Tracing = setting(Tracing(), "Where spans are sent.", {"otlp": "http://127.0.0.1:4318"})
    logging: Logging = setting(Logging(), "What the log may hold.", {"prompts": True})
    default_model: Model | None = setting(None, "The model of requests that name none.", "fast")
