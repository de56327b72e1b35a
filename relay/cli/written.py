"""Settings as a person writes them: YAML lines, moments, spans."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from relay.config.tree import Limits

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]*(?: [A-Za-z0-9._/-]+)*")
"""Text that YAML reads as it stands, within brackets too; anything else is quoted."""
_SPAN: Final = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_SECONDS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_span(text: str) -> int | None:
    """Return the seconds of `90d`, `24h`, `30m` or `0s`; None for anything else."""
    found = _SPAN.fullmatch(text)
    return None if found is None else int(found[1]) * _SECONDS[found[2]]


def moment(unix_time: float) -> str:
    """Write a moment as the configuration does, in whole seconds."""
    return datetime.fromtimestamp(int(unix_time), UTC).isoformat().replace("+00:00", "Z")


def limits_text(limits: Limits | None) -> dict[str, str]:
    """Write limits as the configuration does."""
    if limits is None:
        return {}
    counts = {"rpm": limits.rpm, "tpm": limits.tpm, "concurrency": limits.concurrency}
    written = {name: str(count) for name, count in counts.items() if count is not None}
    if limits.budget is not None:
        budget = limits.budget
        amount = f"{budget.amount / 10**9:g} USD" if budget.is_money else f"{budget.amount} tokens"
        written["budget"] = f"{amount}/{budget.period.value}"
    return written


def entry_lines(name: str, settings: Mapping[str, object]) -> list[str]:
    """Return the YAML of a named entry, indented as it stands in a section."""
    return [f"  {_scalar(name)}:", *(f"    {line}" for line in setting_lines(settings))]


def setting_lines(settings: Mapping[str, object]) -> list[str]:
    """Return the YAML of settings, a line each."""
    return [f"{name}: {_value(value)}" for name, value in settings.items()]


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(str(name))}: {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return _scalar(str(value))


def _scalar(text: str) -> str:
    is_plain = _PLAIN.fullmatch(text) is not None and not text.endswith(":") and text.lower() != "null"
    return text if is_plain else json.dumps(text, ensure_ascii=False)
