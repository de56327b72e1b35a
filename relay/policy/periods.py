"""Days and months of the calendar, in UTC: the stretches that budgets go by."""

from datetime import UTC, datetime
from functools import lru_cache

from relay.config.tree import Period


def period_of(period: Period, unix_time: float) -> int:
    """Return the number of the calendar's day or month, UTC."""
    day = int(unix_time // 86_400)
    return day if period is Period.DAY else _month_of(day)


@lru_cache(8)
def _month_of(day: int) -> int:
    moment = datetime.fromtimestamp(day * 86_400, UTC)
    return moment.year * 12 + moment.month - 1


def until_next(period: Period, unix_time: float) -> float:
    """Return the seconds until the next day or month begins, UTC."""
    number = period_of(period, unix_time) + 1
    if period is Period.DAY:
        return number * 86_400 - unix_time
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC).timestamp() - unix_time
