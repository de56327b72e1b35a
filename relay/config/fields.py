"""The types of single settings: each has one form, read by one parser, and says in the schema what it looks like."""

from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema

from relay.config import addresses, values, vendors
from relay.config.tree import Affinity as AffinityValue
from relay.config.tree import Budget as BudgetValue
from relay.config.tree import FallbackCause, OnLimit, Secret, Strategy

DURATION: Final = r"[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h)"
TARGET: Final = r"[^/*]+/[^*]*\*?"


STRICT: Final = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)
"""Of every section: a setting that is not there is an error, and no message repeats what was written."""


def or_variable(pattern: str) -> str:
    """Return `pattern` for the schema; whatever it is, a value may be a variable instead."""
    return rf"^(?:{pattern}|.*\$\{{.*)$"


def _text(*, pattern: str | None = None, **more: object) -> WithJsonSchema:
    schema: dict[str, Any] = {"type": "string", **more}
    if pattern is not None:
        schema["pattern"] = or_variable(pattern)
    return WithJsonSchema(schema)


def _number(pattern: str, *, minimum: int = 1) -> WithJsonSchema:
    return WithJsonSchema({"type": ["integer", "string"], "minimum": minimum, "pattern": or_variable(pattern)})


def _one_of(words: Iterable[str]) -> PlainValidator:
    return PlainValidator(values.parse_choice(tuple(words)))


def _enum(words: Iterable[str]) -> WithJsonSchema:
    return _text(enum=list(words))


_KINDS: Final = ("openai", "demo")
_LOOPS: Final = ("auto", "uvloop", "asyncio")
_CAUSES: Final = tuple(cause.value for cause in FallbackCause)
_ON_LIMIT: Final = tuple(policy.value for policy in OnLimit)
_USAGE_ASKED: Final = ("limited", "always")
_STRATEGIES: Final = tuple(strategy.value for strategy in Strategy)

Text = Annotated[str, PlainValidator(values.parse_text), _text()]
Model = Annotated[str, PlainValidator(values.parse_model), _text()]
Switch = Annotated[bool, PlainValidator(values.parse_switch), WithJsonSchema({"type": ["boolean", "string"]})]
Duration = Annotated[float, PlainValidator(values.parse_duration), _text(pattern=DURATION)]
FirstToken = Annotated[float | None, PlainValidator(values.parse_first_token), _text(pattern=f"auto|{DURATION}")]
HedgeAfter = Annotated[float | None, PlainValidator(values.parse_hedge_after), _text(pattern=f"p95|{DURATION}")]
HedgeShare = Annotated[float, PlainValidator(values.parse_hedge_share), _text(pattern=r"[0-9]+(?:\.[0-9]+)?%")]
FirstContent = Annotated[float, PlainValidator(values.parse_first_content), _text(pattern=DURATION)]
Availability = Annotated[float, PlainValidator(values.parse_availability), _text(pattern=r"[0-9]+(?:\.[0-9]+)?%")]
Sample = Annotated[float, PlainValidator(values.parse_sample), _text(pattern=r"[0-9]+(?:\.[0-9]+)?%")]
Size = Annotated[int, PlainValidator(values.parse_size), _number(r"[0-9]+(?:B|kB|KB|MB|GB|KiB|MiB|GiB)?")]
Count = Annotated[int, PlainValidator(values.parse_count), _number(r"[0-9]+[kM]?")]
Places = Annotated[int, PlainValidator(values.parse_places), _number(r"[0-9]+", minimum=0)]
Interval = Annotated[float, PlainValidator(values.parse_interval), _text(pattern=DURATION)]
ProbePath = Annotated[str, PlainValidator(values.parse_probe_path), _text(pattern=r"/[!-~]+")]
Budget = Annotated[
    BudgetValue, PlainValidator(values.parse_budget), _text(pattern=r"[0-9]+(?:\.[0-9]+)?[kM]? (?:USD|tokens)/(?:day|month)")
]
Price = Annotated[
    float,
    PlainValidator(values.parse_price),
    WithJsonSchema({"type": ["number", "string"], "minimum": 0, "pattern": or_variable(r"[0-9]+(?:\.[0-9]+)?")}),
]
Workers = Annotated[int | None, PlainValidator(values.parse_workers), _number(r"auto|[0-9]+")]
Weight = Annotated[int, PlainValidator(values.parse_weight), _number(r"[0-9]+")]
Credential = Annotated[Secret, PlainValidator(values.parse_secret), _text()]
Retries = Annotated[
    int,
    PlainValidator(values.parse_retries),
    WithJsonSchema({"type": ["integer", "string"], "minimum": 0, "pattern": or_variable("[0-2]")}),
]
Digest = Annotated[bytes, PlainValidator(values.parse_digest), _text(pattern="sha256:[0-9a-fA-F]{64}")]
Expiry = Annotated[float, PlainValidator(values.parse_expiry), _text(pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*")]
TargetName = Annotated[tuple[str, str], PlainValidator(values.parse_target), _text(pattern=TARGET)]
Affinity = Annotated[AffinityValue, PlainValidator(values.parse_affinity), _text(pattern="none|prefix|user|header:.+")]
Listen = Annotated[addresses.Listen, PlainValidator(addresses.parse_listen), _text(pattern=r".+:[0-9]{1,5}")]
BaseUrl = Annotated[str, PlainValidator(addresses.parse_base_url), _text(pattern="https?://[^?#@]+")]
RedisUrl = Annotated[Secret, PlainValidator(addresses.parse_redis_url), _text(pattern=r"(?:rediss?|unix)://.+")]
Proxy = Annotated[str, PlainValidator(addresses.parse_proxy), _text(pattern="http://[^/?#@]+/?")]
Origin = Annotated[str, PlainValidator(addresses.parse_origin), _text(pattern="https?://[^/?#@*]+/?")]
Network = Annotated[str, PlainValidator(addresses.parse_network), _text()]
HeaderName = Annotated[bytes, PlainValidator(addresses.parse_forwarded_header), _text()]
Kind = Annotated[str, _one_of(_KINDS), _enum(_KINDS)]
Loop = Annotated[str, _one_of(_LOOPS), _enum(_LOOPS)]
Vendor = Annotated[str, _one_of(vendors.NAMES), _enum(vendors.NAMES)]
CauseName = Annotated[str, _one_of(_CAUSES), _enum(_CAUSES)]
OnLimitName = Annotated[str, _one_of(_ON_LIMIT), _enum(_ON_LIMIT)]
UsageAsked = Annotated[str, _one_of(_USAGE_ASKED), _enum(_USAGE_ASKED)]
StrategyName = Annotated[str, _one_of(_STRATEGIES), _enum(_STRATEGIES)]


def setting(default: object, description: str, *examples: object, shown: object = None, is_secret: bool = False) -> Any:
    """Declare a setting that may be left out. `shown` is its default as a person writes it, for editors."""
    extra: dict[str, Any] = {} if shown is None else {"default": shown}
    if is_secret:
        extra["writeOnly"] = True
    return Field(default_factory=lambda: default, description=description, examples=list(examples), json_schema_extra=extra)


def or_a_store(schema: dict[str, Any]) -> None:
    """Let editors take the file of stored keys beside keys by name."""
    schema["properties"] = {
        "store": {
            "type": ["string", "object"],
            "description": "File of keys that `relay keys` changes while the relay runs; a mapping here is a key named store.",
            "examples": ["keys.db"],
        }
    }
