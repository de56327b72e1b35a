"""What an upstream's refusing answer means: a closed set, and what follows from each member.

The status comes first, then the words in `code` and `type`, then the vendor's own, and the message where nothing else tells. A
message may quote the caller: where a class puts blame on our credential for a 400, the whole message has to be the vendor's fixed
text, so that no request can talk a good credential into a rest.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Refusal(Enum):
    """Why an upstream refused."""

    BAD_CREDENTIAL = "bad_credential"
    FORBIDDEN = "forbidden"
    """The credential may not do this here; elsewhere it may."""
    NO_QUOTA = "no_quota"
    """The account has nothing left: no wait within reason helps."""
    NO_MODEL_QUOTA = "no_model_quota"
    """As above, for this model alone."""
    THROTTLED = "throttled"
    SLOW_DOWN = "slow_down"
    """The rate grew too fast, not too high: wants a longer wait than a limit."""
    OVERLOADED = "overloaded"
    """The upstream is full for everybody."""
    SERVER = "server"
    CONTEXT_LENGTH = "context_length"
    CONTENT_POLICY = "content_policy"
    MODEL_NOT_FOUND = "model_not_found"
    """No such model for this account there, or no such path."""
    TIMEOUT = "timeout"
    CONFLICT = "conflict"
    REDIRECT = "redirect"
    CALLER = "caller"
    """The caller's own fault."""


class Fallback(Enum):
    """When another target may be tried."""

    ALWAYS = "always"
    MAPPED = "mapped"
    """When we chose the model's name: then it is our configuration that is wrong."""
    ASKED = "asked"
    """When the route asks for it (`fallback_on`)."""
    NEVER = "never"


class Blame(Enum):
    """Whose health suffers."""

    TARGET = "target"
    CREDENTIAL = "credential"
    """At this target."""
    ACCOUNT = "account"
    """The credential, wherever it is used."""
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequence:
    """What follows from a refusal."""

    falls_back: Fallback
    blames: Blame
    rest_seconds: float = 0.0
    """Rest at once for this long, or for what the upstream asks when that is longer; 0 leaves it to the breaker's counts."""
    can_repeat: bool = False
    """Whether the same target may be asked again (within the retry budget)."""
    is_final: bool = False
    """Whether asking again is useless, so that the caller is told not to."""


CONSEQUENCES: Final[Mapping[Refusal, Consequence]] = {
    # A wrong key stays wrong: a minute keeps the probes few without needing a restart once it is put right.
    Refusal.BAD_CREDENTIAL: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.ACCOUNT, rest_seconds=60.0, is_final=True),
    Refusal.FORBIDDEN: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.CREDENTIAL, rest_seconds=60.0, is_final=True),
    Refusal.NO_QUOTA: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.ACCOUNT, rest_seconds=300.0, is_final=True),
    Refusal.NO_MODEL_QUOTA: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.CREDENTIAL, rest_seconds=300.0, is_final=True),
    # Limits are counted per minute or less; a second is enough to let another credential go first.
    Refusal.THROTTLED: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.CREDENTIAL, rest_seconds=1.0, can_repeat=True),
    Refusal.SLOW_DOWN: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.CREDENTIAL, rest_seconds=5.0),
    Refusal.OVERLOADED: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.TARGET, can_repeat=True),
    Refusal.SERVER: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.TARGET, can_repeat=True),
    Refusal.CONTEXT_LENGTH: Consequence(falls_back=Fallback.ASKED, blames=Blame.NOBODY, is_final=True),
    Refusal.CONTENT_POLICY: Consequence(falls_back=Fallback.ASKED, blames=Blame.NOBODY, is_final=True),
    Refusal.MODEL_NOT_FOUND: Consequence(falls_back=Fallback.MAPPED, blames=Blame.NOBODY, is_final=True),
    Refusal.TIMEOUT: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.NOBODY, can_repeat=True),
    Refusal.CONFLICT: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.NOBODY, can_repeat=True),
    Refusal.REDIRECT: Consequence(falls_back=Fallback.ALWAYS, blames=Blame.TARGET, is_final=True),
    Refusal.CALLER: Consequence(falls_back=Fallback.NEVER, blames=Blame.NOBODY, is_final=True),
}

_MAX_MESSAGE: Final = 2000
_SEPARATORS: Final = str.maketrans("", "", "_-. ")

# Words of `code` and `type`, in lower case and without separators.
_NO_QUOTA: Final = frozenset(
    {"insufficientquota", "creditbalanceexhausted", "organizationspendlimitexceeded", "projectspendlimitexceeded"}
    | {"organizationusagelimitexceeded", "enforcedspendlimitreached", "billingerror", "paymentrequired"}  # OpenAI, Anthropic
    | {"arrearage", "commoditynotpurchased", "prepaidbilloverdue", "postpaidbilloverdue"}  # DashScope
    | {"accountoverdueerror", "quotaexceeded", "setlimitexceeded", "exceededcurrentquotaerror"}  # Ark, Moonshot
)
_NO_MODEL_QUOTA: Final = frozenset({"allocationquotafreetieronly"})  # DashScope counts it per model
_SLOW_DOWN: Final = frozenset({"slowdown", "limitburstrate", "throttlingburstrate"})
_OVERLOADED: Final = frozenset({"engineoverloadederror", "serveroverloaded", "overloadederror", "capacityexceeded"})
_MODEL: Final = frozenset(
    {"modelnotfound", "modelnotsupported", "modelnotexist", "modelaccessdenied", "accessdeniedunpurchased", "modelnotopen"}
    | {"deploymentnotfound", "endpointaccessdenied", "invalidendpointormodelnotfound"}
)
_CONTEXT: Final = frozenset({"contextlengthexceeded", "exceedcontextsizeerror", "modelcontextwindowexceeded"})
_CONTENT: Final = frozenset(
    {"contentfilter", "contentpolicyviolation", "invalidprompt", "datainspectionfailed", "inputtextriskdetection"}
    | {"sensitivecontentdetected", "responsibleaipolicyviolation", "moderation"}
)
_CREDENTIAL: Final = frozenset({"invalidapikey", "apikeyinvalid", "authenticationerror"})
# Zhipu's codes are numbers in a string, which mean other things elsewhere.
_ZHIPU: Final[Mapping[str, Refusal]] = {
    "1113": Refusal.NO_QUOTA,
    "1304": Refusal.NO_QUOTA,
    "1308": Refusal.NO_QUOTA,
    "1310": Refusal.NO_QUOTA,
    "1211": Refusal.MODEL_NOT_FOUND,
    "1261": Refusal.CONTEXT_LENGTH,
    "1301": Refusal.CONTENT_POLICY,
    "1305": Refusal.OVERLOADED,
}

# In messages, lower case. A mistake here blames nobody.
_CONTEXT_PHRASES: Final = (
    "maximum context length",
    "prompt is too long",
    "context length of the model",
    "model's context length",
    "available context size",
    "range of input length should be",
    "exceeded model token limit",
    "input token count",
)
_CONTENT_PHRASES: Final = ("content management policy", "inappropriate content", "requires moderation", "flagged", "high risk")
# In messages of 402, 403 and 429, which a caller cannot bring about by what it writes.
_NO_QUOTA_PHRASES: Final = (
    "api usage cap",
    "insufficient balance",
    "overdue balance",
    "used all available credits",
    "monthly spending limit",
)
_NO_MODEL_QUOTA_PHRASES: Final = ("free allocated quota exceeded", "limit: 0,", "limit: 0\n")  # DashScope, Gemini
# A 400 that is about our account. Nothing may stand before or after, and no quotation inside.
_ACCOUNT_TEXTS: Final[tuple[tuple[re.Pattern[str], Refusal], ...]] = (
    (re.compile(r"your credit balance is too low[^:\"'`]{0,200}"), Refusal.NO_QUOTA),
    (
        re.compile(r"you have reached your specified (?:workspace )?api usage limits\. you will regain access on [0-9-]+ at [0-9:]+ utc\."),
        Refusal.NO_QUOTA,
    ),
    (re.compile(r"api key not valid\. please pass a valid api key\."), Refusal.BAD_CREDENTIAL),
    (re.compile(r"user location is not supported for the api use\."), Refusal.BAD_CREDENTIAL),
    (re.compile(r"api key expired\. please renew the api key\."), Refusal.BAD_CREDENTIAL),
    (
        re.compile(r"incorrect api key provided: [a-z0-9*.-]{1,64}\. you can obtain an api key from https://console\.x\.ai\.?"),
        Refusal.BAD_CREDENTIAL,
    ),
)


def classify(
    status: int, vendor: str = "", error_type: str | None = None, error_code: str | None = None, message: str | None = None
) -> Refusal:
    """Return what an answer other than 2xx means.

    `vendor` is the upstream's known name (`openai`, `dashscope`, ...), empty when it is none. Type, code and message are those of the
    error body, each None when it has none; a number in `code` comes as its digits.
    """
    words = (_plain(error_code), _plain(error_type))
    text = (message or "")[:_MAX_MESSAGE].lower()
    if vendor == "zhipu" and 400 <= status < 500 and (known := _ZHIPU.get(error_code or "")) is not None:
        return known
    match status:
        case 401:
            return Refusal.BAD_CREDENTIAL
        case 402:
            return Refusal.NO_QUOTA
        case 403:
            return _forbidden(words, text)
        case 404 | 410:
            return Refusal.MODEL_NOT_FOUND
        case 408 | 499:
            return Refusal.TIMEOUT
        case 409:
            return Refusal.CONFLICT
        case 429:
            return _too_many(vendor, words, text)
        case 498 | 503 | 529:
            return Refusal.OVERLOADED
        case _ if 300 <= status < 400:
            return Refusal.REDIRECT
        case _ if 400 <= status < 500:
            return _bad_request(words, text)
        case _:
            return Refusal.SERVER


def _too_many(vendor: str, words: tuple[str, str], text: str) -> Refusal:
    if _any(words, _SLOW_DOWN):
        return Refusal.SLOW_DOWN
    if _any(words, _OVERLOADED):
        return Refusal.OVERLOADED
    if _is_of_model(words, text):
        return Refusal.NO_MODEL_QUOTA
    if any(phrase in text for phrase in _NO_QUOTA_PHRASES):
        return Refusal.NO_QUOTA
    if "insufficientquota" in words and (vendor == "dashscope" or "error-code#token-limit" in text):
        # At DashScope this is the limit of tokens per minute, also when it is configured as just another upstream.
        return Refusal.THROTTLED
    return Refusal.NO_QUOTA if _any(words, _NO_QUOTA) else Refusal.THROTTLED


def _forbidden(words: tuple[str, str], text: str) -> Refusal:
    if (spent := _spent(words, text)) is not None:
        return spent
    if _any(words, _MODEL):
        return Refusal.MODEL_NOT_FOUND
    if _any(words, _CREDENTIAL):
        return Refusal.BAD_CREDENTIAL
    return _content(words, text) or Refusal.FORBIDDEN


def _spent(words: tuple[str, str], text: str) -> Refusal | None:
    """Tell what is used up, as far as that is said."""
    if _is_of_model(words, text):
        return Refusal.NO_MODEL_QUOTA
    return Refusal.NO_QUOTA if _any(words, _NO_QUOTA) or any(phrase in text for phrase in _NO_QUOTA_PHRASES) else None


def _is_of_model(words: tuple[str, str], text: str) -> bool:
    return _any(words, _NO_MODEL_QUOTA) or any(phrase in text for phrase in _NO_MODEL_QUOTA_PHRASES)


def _bad_request(words: tuple[str, str], text: str) -> Refusal:
    if _any(words, _NO_QUOTA):
        return Refusal.NO_QUOTA
    if _any(words, _NO_MODEL_QUOTA):
        return Refusal.NO_MODEL_QUOTA
    if _any(words, _CREDENTIAL):
        return Refusal.BAD_CREDENTIAL
    if _any(words, _MODEL):
        return Refusal.MODEL_NOT_FOUND
    for pattern, refusal in _ACCOUNT_TEXTS:
        if pattern.fullmatch(text):
            return refusal
    return _content(words, text) or Refusal.CALLER


def _content(words: tuple[str, str], text: str) -> Refusal | None:
    """Tell what is wrong with the prompt itself, which another model might take."""
    if _any(words, _CONTENT):
        return Refusal.CONTENT_POLICY
    if _any(words, _CONTEXT) or any(phrase in text for phrase in _CONTEXT_PHRASES):
        return Refusal.CONTEXT_LENGTH
    return Refusal.CONTENT_POLICY if any(phrase in text for phrase in _CONTENT_PHRASES) else None


def _any(words: tuple[str, str], known: frozenset[str]) -> bool:
    return words[0] in known or words[1] in known


def _plain(word: str | None) -> str:
    return word[:128].lower().translate(_SEPARATORS) if word else ""
