"""How long to wait before trying again: full jitter when nobody says, else what the upstream's answer says in its own format.

No two vendors agree: seconds, milliseconds, HTTP dates, Go durations (`6m0s`), ISO timestamps, Unix times, a member of the body. The
formats tell themselves apart, so none has to be known by vendor.
"""

import re
from datetime import UTC, datetime
from typing import Final

from relay.exchange import Headers

BASE_SECONDS: Final = 0.1
CAP_SECONDS: Final = 2.0
_MAX_LENGTH: Final = 64
_MAX_BODY: Final = 64 * 2**10
_EPOCH_SECONDS: Final = 1e9
_EPOCH_MILLISECONDS: Final = 1e12
_NUMBER: Final = re.compile(r"\d{1,15}(?:\.\d{1,9})?", re.ASCII)
_PART: Final = r"(\d{1,9}(?:\.\d{1,9})?)(ns|us|µs|ms|s|m|h|d)"
_DURATION: Final = re.compile(rf"(?:{_PART}){{1,8}}", re.ASCII)
_PARTS: Final = re.compile(_PART, re.ASCII)
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_HTTP_DATE: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d{2}) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) (\d{4}) (\d{2}):(\d{2}):(\d{2}) GMT",
    re.ASCII,
)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_RETRY_DELAY: Final = re.compile(rb'"retryDelay"\s*:\s*"(\d{1,9}(?:\.\d{1,9})?)s"')
_LIMIT: Final = re.compile(
    rb"(?:x-ratelimit-(?:(reset|remaining)(?:-([a-z-]{1,32}))?)|anthropic-ratelimit-([a-z-]{1,32})-(reset|remaining))"
)


def backoff(retry: int, chance: float) -> float:
    """Return the seconds before `retry` (0 for the first), full jitter: anything up to 100 ms x 2^n, at most 2 s."""
    return chance * min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(retry, 16))


def retry_after(headers: Headers, now_unix: float, body: bytes = b"") -> float | None:
    """Return the seconds an upstream asks to be left alone; None when it does not say.

    Read in this order: `retry-after-ms` (OpenAI, Azure), `retry-after` (seconds or a date, RFC 9110 10.2.3), the body's
    google.rpc.RetryInfo (Gemini), then the resets of the limits that are used up. Unreadable values count as absent.
    """
    milliseconds = seconds = None
    resets: dict[bytes, float] = {}
    left: dict[bytes, bool] = {}
    for name, value in headers:
        match name.lower():
            case b"retry-after-ms":
                milliseconds = _number(value)
            case b"retry-after":
                seconds = _wait(value, now_unix)
            case other:
                _note_limit(other, value, now_unix, resets, left)
    if milliseconds is not None:
        return milliseconds / 1000
    if seconds is None and (found := _RETRY_DELAY.search(body[:_MAX_BODY])) is not None:
        seconds = float(found[1])
    if seconds is None:
        # A reset tells when a limit is whole again, also for limits that have plenty left: those are no reason to wait.
        used_up = [wait for kind, wait in resets.items() if not left.get(kind, False)]
        seconds = max(used_up, default=None)
    return seconds


def _note_limit(name: bytes, value: bytes, now_unix: float, resets: dict[bytes, float], left: dict[bytes, bool]) -> None:
    found = _LIMIT.fullmatch(name) if b"ratelimit-" in name else None
    if found is None:
        return
    what, kind = (found[1], found[2] or b"") if found[1] else (found[4], found[3])
    if what == b"remaining":
        count = _number(value)
        left[kind] = count is not None and count > 0
    elif (wait := _wait(value, now_unix)) is not None:
        resets[kind] = wait


def _wait(value: bytes, now_unix: float) -> float | None:
    text = value.strip().decode("utf-8", "replace")
    if not text or len(text) > _MAX_LENGTH:
        return None
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number >= _EPOCH_MILLISECONDS:
            return max(0.0, number / 1000 - now_unix)
        return max(0.0, number - now_unix) if number >= _EPOCH_SECONDS else number
    if _DURATION.fullmatch(text):
        return sum(float(amount) * _UNITS[unit] for amount, unit in _PARTS.findall(text))
    at = _instant(text)
    return None if at is None else max(0.0, at - now_unix)


def _instant(text: str) -> float | None:
    """Read an HTTP date in the one form that is not obsolete (RFC 9110 5.6.7), or an RFC 3339 timestamp."""
    found = _HTTP_DATE.fullmatch(text)
    try:
        if found is not None:
            day, month, year, hour, minute, second = found.groups()
            # 60 is a leap second; a datetime has none.
            at = datetime(int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), min(int(second), 59), tzinfo=UTC)
            return at.timestamp()
        at = datetime.fromisoformat(text)
        return at.timestamp() if at.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _number(value: bytes) -> float | None:
    text = value.strip().decode("utf-8", "replace")
    return float(text) if _NUMBER.fullmatch(text) else None
