"""A parameter in a raw query: found as an upstream would find it, or not at all."""

from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.query import query_value


@pytest.mark.parametrize(
    ("query", "value"),
    [
        (None, None),
        ("", None),
        ("model", None),
        ("model=", None),
        ("model=a", "a"),
        ("x=1&model=a&y=2", "a"),
        ("model=&model=a", "a"),
        ("model=a&model=a", "a"),
        ("mod%65l=a%2Fb", "a/b"),
        ("model=a+b", "a b"),
        ("model=a%20b%3D", "a b="),
        ("model=a=b", "a=b"),
        ("Model=a", None),
        ("models=a&xmodel=b", None),
        ("model=%ff", "\ufffd"),
        ("&&model=a&", "a"),
    ],
)
def test_a_value_is_decoded_once(query: str | None, value: str | None) -> None:
    assert query_value(query, "model") == value


@pytest.mark.parametrize("query", ["model=a&model=b", "model=a&mod%65l=b", "model=a&x=1&model=A"])
def test_values_that_differ_are_no_value(query: str) -> None:
    assert query_value(query, "model") is None


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_comes_back(value: str, other: str) -> None:
    assert query_value(f"z={quote_plus(other)}&model={quote_plus(value)}", "model") == value


@given(st.text())
def test_any_query_is_survived(query: str) -> None:
    query_value(query, "model")
