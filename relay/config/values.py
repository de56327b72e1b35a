"""Single values as people write them: durations, sizes, counts, switches, names, digests, dates.

Every parser takes what stands in the file (text; None for nothing; a list or mapping by mistake) and raises ValueError
with a message that says what is expected and never repeats what was found.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Final

from relay.config.problems import did_you_mean
from relay.config.tree import Affinity, AffinityKind, Budget, Period, Secret

MAX_DURATION: Final = 24 * 3600.0
"""A wait longer than a day is no bound."""
MAX_SIZE: Final = 2**30
"""Bodies are held in memory; a gibibyte is more than any of them."""
MAX_COUNT: Final = 10**9
MAX_WORKERS: Final = 256
"""More than the largest machines have cores for."""

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h)")
_SECONDS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PERCENTAGE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")
_SIZE: Final = re.compile(r"([0-9]{1,12})(B|kB|KB|MB|GB|KiB|MiB|GiB)?")
_BYTES: Final[Mapping[str, int]] = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_COUNT: Final = re.compile(r"([0-9]{1,12})([kM]?)")
_BUDGET: Final = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,6}))?([kM]?) (USD|tokens)/(day|month)")
_DOLLAR: Final = 10**9
"""Billionths: the cheapest models cost two cents per million tokens, so a token of theirs costs 20 of these."""
_PRICE: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROBE_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:[/?]|$))[A-Za-z0-9._~:@!$&'()*+,;=%-]+)+(?:\?[A-Za-z0-9._~:@!$&'()*+,;=%/-]*)?")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]+")


def parse_text(value: object, expected: str = "text") -> str:
    """Return text of one line that prints."""
    if value is None or value == "":
        raise ValueError(f"has no value; expected {expected}")
    if not isinstance(value, str):
        raise ValueError(f"expected {expected}")
    if not value.isprintable():
        raise ValueError("holds a line break or another character that does not print")
    return value


def parse_duration(value: object) -> float:
    """Return seconds, more than zero and finite."""
    expected = "a duration such as 500ms, 20s, 5m or 1h"
    found = _DURATION.fullmatch(parse_text(value, expected))
    if found is None:
        raise ValueError(f"expected {expected}")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if seconds <= 0:
        raise ValueError(f"expected {expected}, more than zero: every wait has a bound")
    if seconds > MAX_DURATION:
        raise ValueError("expected a duration of at most 24h: every wait has a bound")
    return seconds


def parse_first_token(value: object) -> float | None:
    """Return seconds, or None for `auto`: learned from what came before."""
    return None if value == "auto" else _parse_duration_or(value, "auto")


def parse_hedge_after(value: object) -> float | None:
    """Return seconds, or None for `p95`: the learned percentile."""
    return None if value == "p95" else _parse_duration_or(value, "p95")


def _parse_duration_or(value: object, word: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        # Who wrote a number did not mean the word.
        is_number = isinstance(value, str) and value[:1].isdigit()
        raise ValueError(str(error) if is_number else f"{error}; or {word}") from None


def parse_hedge_share(value: object) -> float:
    """Return a part of one: more than none, and at most half of all requests."""
    expected = "a share such as 5%, at most 50%"
    found = _PERCENTAGE.fullmatch(parse_text(value, expected))
    if found is None:
        raise ValueError(f"expected {expected}")
    share = float(found[1]) / 100
    if not 0 < share <= 0.5:
        raise ValueError(f"expected {expected} and more than 0%")
    return share


def parse_first_content(value: object) -> float:
    """Return the seconds of a promise: from 10 ms to 2 minutes, the range that the histograms cover."""
    seconds = parse_duration(value)
    if not 0.01 <= seconds <= 120:
        raise ValueError("expected a duration from 10ms to 2m")
    return seconds


def parse_availability(value: object) -> float:
    """Return the share that a percentage names, from 95% to 99.999%: an alert at 14.4 times a larger budget could never fire."""
    expected = "a percentage from 95% to 99.999%, such as 99.5%"
    found = _PERCENTAGE.fullmatch(parse_text(value, expected))
    if found is None or not 95 <= float(found[1]) <= 99.999:
        raise ValueError(f"expected {expected}")
    return round(float(found[1]) / 100, 8)


def parse_sample(value: object) -> float:
    """Return a part of one, none and all included."""
    expected = "a percentage from 0% to 100%, such as 10%"
    found = _PERCENTAGE.fullmatch(parse_text(value, expected))
    if found is None or float(found[1]) > 100:
        raise ValueError(f"expected {expected}")
    return float(found[1]) / 100


def parse_size(value: object) -> int:
    """Return bytes, more than zero."""
    expected = "a size such as 512KiB, 32MiB or 256MB"
    found = _SIZE.fullmatch(parse_text(value, expected))
    if found is None:
        raise ValueError(f"expected {expected}")
    size = int(found[1]) * _BYTES[found[2] or "B"]
    if not 0 < size <= MAX_SIZE:
        raise ValueError("expected a size of at least 1 byte and at most 1GiB")
    if found[2] is None and size < _BYTES["KiB"]:
        raise ValueError(f"expected {expected}, with its unit: this many bytes are too few to be meant")
    return size


def parse_count(value: object) -> int:
    """Return a whole number, more than zero."""
    expected = "a number such as 60, 100k or 2M"
    found = _COUNT.fullmatch(parse_text(value, expected))
    if found is None:
        raise ValueError(f"expected {expected}")
    count = int(found[1]) * {"": 1, "k": 10**3, "M": 10**6}[found[2]]
    if not 0 < count <= MAX_COUNT:
        raise ValueError(f"expected {expected}, more than zero")
    return count


def parse_places(value: object) -> int:
    """Return how many places a queue has, from 0 to 10,000: what waits holds memory and a client's connection."""
    expected = "a number from 0 to 10000"
    text = parse_text(value, expected)
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 10_000):
        raise ValueError(f"expected {expected}")
    return int(text)


def parse_interval(value: object) -> float:
    """Return seconds between two probes, at least one: what asks more often is load."""
    seconds = parse_duration(value)
    if seconds < 1:
        raise ValueError("expected a duration of at least 1s, such as 30s")
    return seconds


def parse_probe_path(value: object) -> str:
    """Return a path below an upstream's base_url, perhaps with a query."""
    expected = "a path such as /models"
    text = parse_text(value, expected)
    if len(text) > 512 or _PROBE_PATH.fullmatch(text) is None:
        raise ValueError(f"expected {expected}")
    return text


def parse_retries(value: object) -> int:
    """Return how often a target may be asked again: at most three attempts are made in all."""
    if value not in ("0", "1", "2", 0, 1, 2) or isinstance(value, bool):
        raise ValueError("expected 0, 1 or 2")
    return int(str(value))


def parse_budget(value: object) -> Budget:
    """Return an amount of US dollars or tokens per day or month."""
    expected = "a budget such as 20 USD/month or 1M tokens/day"
    found = _BUDGET.fullmatch(parse_text(value, expected))
    if found is None:
        raise ValueError(f"expected {expected}")
    whole, part, multiple, unit, period = found.groups()
    is_money = unit == "USD"
    if part is not None and not is_money:
        raise ValueError("expected whole tokens, such as 1500k tokens/day")
    factor = {"": 1, "k": 10**3, "M": 10**6}[multiple]
    amount = int(whole + (part or "").ljust(6, "0")) * factor * (_DOLLAR // 10**6) if is_money else int(whole) * factor
    if not 0 < amount <= MAX_COUNT * _DOLLAR:
        raise ValueError(f"expected {expected}, more than zero and less than a billion dollars")
    return Budget(amount=amount, is_money=is_money, period=Period(period))


def parse_price(value: object) -> float:
    """Return US dollars per million tokens; 0 for what costs nothing."""
    expected = "US dollars per million tokens, such as 0.40"
    text = parse_text(value, expected)
    if _PRICE.fullmatch(text) is None:
        raise ValueError(f"expected {expected}")
    return float(text)


def parse_workers(value: object) -> int | None:
    """Return how many processes may serve; None for as many as there are cores."""
    expected = f"auto, or a number of processes from 1 to {MAX_WORKERS}"
    text = parse_text(value, expected)
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_WORKERS):
        raise ValueError(f"expected {expected}")
    return int(text)


def parse_weight(value: object) -> int:
    """Return a weight from 1 to 1000."""
    expected = "a weight from 1 to 1000"
    text = parse_text(value, expected)
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= 1000):
        raise ValueError(f"expected {expected}")
    return int(text)


def parse_switch(value: object) -> bool:
    """Return true or false, written so: yes, no, on and off mean different things to different readers of YAML."""
    match value:
        case "true" | "True":
            return True
        case "false" | "False":
            return False
        case _:
            raise ValueError("expected true or false")


def parse_choice(words: Sequence[str]) -> Callable[[object], str]:
    """Return a parser that accepts only `words`."""

    def parse(value: object) -> str:
        expected = f"one of {', '.join(words)}"
        text = parse_text(value, expected)
        if text not in words:
            raise ValueError(f"expected {expected}{did_you_mean(text, words)}")
        return text

    return parse


def parse_affinity(value: object) -> Affinity:
    """Return what requests must have in common; `header:NAME` names a request header."""
    words = ("none", "prefix", "user")
    expected = f"one of {', '.join(words)}, header:NAME"
    text = parse_text(value, expected)
    kind, colon, header = text.partition(":")
    if kind == "header" and _HEADER_NAME.fullmatch(header) is not None:
        return Affinity(kind=AffinityKind.HEADER, header=header.lower().encode("ascii"))
    if colon or text not in words:
        raise ValueError(f"expected {expected}{did_you_mean(text, words)}")
    return Affinity(kind=AffinityKind(text))


def parse_secret(value: object) -> Secret:
    """Return a credential that can stand in a header: printable ASCII without spaces (RFC 6750 b64token is within it)."""
    if value is None or value == "":
        raise ValueError("has no value; expected a credential, best as ${NAME} from the environment")
    if not isinstance(value, str):
        raise ValueError("expected a credential as text; a variable in { } must be quoted")
    if _HEADER_VALUE.fullmatch(value) is None:
        raise ValueError("holds a line break, space, control or non-ASCII character, so it cannot be sent in a header")
    return Secret(value)


def parse_digest(value: object) -> bytes:
    """Return the 32 bytes of `sha256:HEX`."""
    expected = "sha256: and 64 hexadecimal digits"
    found = _DIGEST.fullmatch(parse_text(value, expected))
    if found is None:
        raise ValueError(f"expected {expected}")
    return bytes.fromhex(found[1])


def parse_expiry(value: object) -> float:
    """Return the Unix time of an ISO date (its last moment, UTC) or of an ISO date and time (UTC unless it says)."""
    expected = "a date such as 2027-12-31 or a time such as 2027-12-31T18:00:00Z"
    text = parse_text(value, expected)
    try:
        moment = datetime.combine(date.fromisoformat(text), time.max) if len(text) == 10 else datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"expected {expected}") from None


def parse_model(value: object) -> str:
    """Return a model's name: at most 256 bytes without spaces at its ends."""
    text = parse_text(value, "a model's name")
    if len(text.encode()) > 256 or text != text.strip():
        raise ValueError("expected a model's name of at most 256 bytes without spaces around it")
    return text


def parse_target(value: object) -> tuple[str, str]:
    """Split `upstream/model` at its first slash; a `*` may stand only at the end of the model."""
    expected = "one target written as upstream/model, such as openai/gpt-4.1-mini"
    text = parse_text(value, expected)
    upstream, slash, model = text.partition("/")
    if not slash or not upstream or not model:
        raise ValueError(f"expected {expected}")
    if "*" in upstream or "*" in model[:-1]:
        raise ValueError("a * may stand only at the end of the model")
    return upstream, parse_model(model)


def name_flaw(name: str) -> str | None:
    """Tell what is wrong with the name of an upstream or a key, or None."""
    if _NAME.fullmatch(name) is None:
        return "a name has at most 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit"
    return None


def route_name_flaw(name: str) -> str | None:
    """Tell what is wrong with the name of a route, or None."""
    if not name or not name.isprintable() or name != name.strip() or len(name.encode()) > 256:
        return "a route's name is a model's name: at most 256 bytes that print, without spaces around it"
    if "*" in name[:-1]:
        return "a * may stand only at the end of a route's name"
    return None
