"""Guesses of tokens: near enough for every script, never spent on what is not text, and corrected by what is reported."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.tree import Price
from relay.exchange import Usage
from relay.policy.estimates import (
    HIGHEST,
    IMAGE_TOKENS,
    LOWEST,
    MAX_MODELS,
    UNKNOWN_ANSWER,
    Answers,
    Ratios,
    cost_of,
    price_of,
    prompt_tokens,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("你好", 2), ("你好abcd", 3), ("\U0001f600", 1), ("é" * 10, 10)],
)
def test_four_ascii_characters_or_one_other_are_a_token(text: str, tokens: int) -> None:
    assert prompt_tokens(text.encode()) == tokens


@given(st.text())
def test_the_guess_is_that_of_the_characters(text: str) -> None:
    ascii_count = sum(character.isascii() for character in text)
    assert prompt_tokens(text.encode("utf-8", "replace")) == len(text) - ascii_count + -(-ascii_count // 4)


@pytest.mark.parametrize("count", [1, 3])
def test_an_embedded_file_counts_as_one_image_whatever_its_size(count: int) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 500_000}} for _ in range(count)]
    guess = prompt_tokens(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode())
    assert count * IMAGE_TOKENS < guess < count * (IMAGE_TOKENS + 100)


def test_an_unfinished_embedded_file_is_no_trouble() -> None:
    assert prompt_tokens(b"x;base64,AAAA") == IMAGE_TOKENS + 1


def test_a_ratio_follows_the_reports_of_its_model_alone_and_stays_within_bounds() -> None:
    ratios = Ratios()
    for _ in range(60):
        ratios.learn("mine", "m", estimated=100, reported=150)
    assert ratios.correct("mine", "m", 1000) == pytest.approx(1500, rel=0.01)
    assert ratios.correct("mine", "n", 1000) == 1000
    for reported, bound in ((10**6, HIGHEST), (1, LOWEST)):
        for _ in range(100):
            ratios.learn("mine", "m", estimated=100, reported=reported)
        assert ratios.correct("mine", "m", 1000) == 1000 * bound
    ratios.learn("mine", "o", estimated=100, reported=0)
    assert ratios.correct("mine", "o", 1000) == 1000, "an upstream that counts nothing teaches nothing"


def test_only_so_many_models_are_remembered() -> None:
    ratios = Ratios()
    for number in range(MAX_MODELS + 10):
        ratios.learn("mine", str(number), estimated=100, reported=200)
    assert ratios.correct("mine", "0", 100) == 100
    assert ratios.correct("mine", str(MAX_MODELS + 9), 1000) == pytest.approx(1100, abs=1)


def test_nothing_is_known_of_a_route_before_some_answers_have_come() -> None:
    answers = Answers()
    for _ in range(9):
        answers.learn("fast", 50)
    assert answers.expect("fast") == UNKNOWN_ANSWER
    answers.learn("fast", 50)
    assert answers.expect("fast") == pytest.approx(50, rel=0.25)
    assert answers.expect("slow") == UNKNOWN_ANSWER


@given(st.lists(st.integers(0, 100_000), min_size=10, max_size=200))
def test_nine_of_ten_answers_are_not_longer_than_expected(lengths: list[int]) -> None:
    answers = Answers()
    for length in lengths:
        answers.learn("fast", length)
    expected = answers.expect("fast")
    assert sum(length <= expected for length in lengths) >= 0.9 * len(lengths)
    assert expected <= max(8, 1.25 * max(lengths))


def test_old_habits_fade() -> None:
    answers = Answers()
    for _ in range(5_000):
        answers.learn("fast", 4_000)
    for _ in range(12_000):
        answers.learn("fast", 20)
    assert answers.expect("fast") < 30


def test_money_is_exact_and_what_was_cached_is_cheaper() -> None:
    price = Price(input=2.0, output=8.0, cached=0.5)
    assert cost_of(price, Usage(input=1_000_000, output=0)) == 2 * 10**9
    assert cost_of(price, Usage(input=1_000, output=500, cached=400)) == 600 * 2_000 + 400 * 500 + 500 * 8_000
    assert cost_of(Price(input=0.02, output=0, cached=0.02), Usage(input=1, output=0)) == 20
    assert cost_of(price, Usage(input=10, output=0, cached=50)) == 10 * 500, "no more can be cached than was read"
    assert cost_of(None, Usage(input=10, output=10)) == 0


def test_the_longest_name_that_fits_has_the_price() -> None:
    prices = {name: Price(input=cost, output=0, cached=0) for name, cost in (("a/*", 1), ("a/m-*", 2), ("a/m-1", 3))}
    found = [price_of(prices, name) for name in ("a/x", "a/m-2", "a/m-1", "b/x")]
    assert [None if price is None else price.input for price in found] == [1, 2, 3, None]
