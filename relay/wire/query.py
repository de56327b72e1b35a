"""Looks a parameter up in a raw query string, which itself is passed on untouched."""

from urllib.parse import unquote_plus


def query_value(query: str | None, name: str) -> str | None:
    """Return the value of `name` in `query`, decoded; None when there is none.

    None also when there are several that differ: which of them an upstream believes is not known here.
    """
    if not query:
        return None
    values = set()
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if value and unquote_plus(key) == name:
            values.add(unquote_plus(value))
    return values.pop() if len(values) == 1 else None
