"""The form of issued keys: a key is recognised, a mistake in it is found, and its repr does not give it away."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.keyformat import ID_BYTES, PREFIX, SECRET_BYTES, Form, form_of, id_of, make_key

IDS = st.binary(min_size=ID_BYTES, max_size=ID_BYTES)
SECRETS = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@given(IDS, SECRETS)
def test_a_made_key_has_the_form_and_tells_its_id(id_bytes: bytes, secret: bytes) -> None:
    key = make_key(id_bytes, secret)
    assert re.fullmatch(r"sk-rl-[0-9A-Za-z]{10}-[0-9A-Za-z]{49}", key.text)
    assert form_of(key.text) is Form.OURS
    assert id_of(key.text) == key.id == key.text[6:16]
    assert key.text[17:] not in repr(key)


@given(SECRETS, SECRETS)
def test_no_bit_of_the_secret_is_lost(one: bytes, other: bytes) -> None:
    first, second = make_key(bytes(8), one).text, make_key(bytes(8), other).text
    assert (first == second) == (one == other)
    digits = first[17:60]
    assert sum(BASE62.index(digit) * 62 ** (42 - place) for place, digit in enumerate(digits)).to_bytes(32, "big") == one


@given(IDS, SECRETS, st.integers(min_value=len(PREFIX), max_value=65), st.sampled_from(BASE62 + "-_ é\n\0"))
def test_one_wrong_character_is_a_typing_mistake(id_bytes: bytes, secret: bytes, place: int, char: str) -> None:
    text = make_key(id_bytes, secret).text
    wrong = text[:place] + char + text[place + 1 :]
    assert form_of(wrong) is (Form.OURS if wrong == text else Form.MISTYPED)
    assert id_of(wrong) == (text[6:16] if wrong == text else None)


@given(IDS, SECRETS, st.integers(min_value=len(PREFIX), max_value=64))
def test_two_neighbours_swapped_or_one_left_out_is_a_typing_mistake(id_bytes: bytes, secret: bytes, place: int) -> None:
    text = make_key(id_bytes, secret).text
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    assert form_of(swapped) is (Form.OURS if swapped == text else Form.MISTYPED)
    assert form_of(text[:place] + text[place + 1 :]) is Form.MISTYPED
    assert form_of(text + "0") is Form.MISTYPED


@given(st.text(max_size=100))
def test_anything_else_is_foreign_or_mistyped_and_never_raises(text: str) -> None:
    assert form_of(text) is Form.FOREIGN or text.startswith(PREFIX)
    assert form_of(PREFIX + text) is not Form.FOREIGN


@pytest.mark.parametrize(("id_size", "secret_size"), [(7, 32), (8, 31), (8, 0), (9, 33)])
def test_too_little_chance_is_refused(id_size: int, secret_size: int) -> None:
    with pytest.raises(ValueError, match="random bytes"):
        make_key(bytes(id_size), bytes(secret_size))
