"""Looks a parameter up in a raw query string, which itself is passed on untouched."""

from urllib.parse import unquote_plus


def query_value(query: str | None, name: str) -> str | None:
    """Return the first non-empty value of `name` in `query`, decoded; None when there is none."""
    if not query:
        return None
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if value and unquote_plus(key) == name:
            return unquote_plus(value)
    return None
