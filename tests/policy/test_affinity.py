from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config.tree import Key
from relay.policy.affinity import PREFIX_BYTES, header_key, prefix_key, rank, user_key
from tests.policy.asking import ask, body

GOLDEN = [1, 2, 0]
KEYS = [f"conversation {number}".encode() for number in range(1000)]


def owners(names: list[str], weights: list[int]) -> list[str]:
    return [names[rank(key, names, weights)[0]] for key in KEYS]


@given(count=st.integers(2, 8), gone=st.integers(0, 7), salt=st.text("abcdefgh/.-", max_size=8))
@settings(max_examples=15, deadline=None)
def test_a_target_that_goes_moves_only_its_own_share(count: int, gone: int, salt: str) -> None:
    names = [f"{salt}{number}" for number in range(count)]
    left = names[gone % count]
    rest = [name for name in names if name != left]
    before, after = owners(names, [1] * count), owners(rest, [1] * len(rest))
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) <= {left}
    assert len(moved) == before.count(left)
    # Five standard deviations of a fair share.
    share = 1000 / count
    assert abs(len(moved) - share) <= 5 * (share * (1 - 1 / count)) ** 0.5


def test_a_target_that_comes_takes_its_share_from_all() -> None:
    names = ["a", "b", "c"]
    before, after = owners(names, [1, 1, 1]), owners([*names, "d"], [1, 1, 1, 1])
    moved = Counter(old for old, new in zip(before, after, strict=True) if old != new)
    assert all(new in (old, "d") for old, new in zip(before, after, strict=True))
    assert 180 <= sum(moved.values()) <= 320
    assert set(moved) == set(names)


def test_the_second_choice_is_who_takes_over() -> None:
    names = ["a", "b", "c", "d"]
    for key in KEYS[:200]:
        order = [names[i] for i in rank(key, names, [1] * 4)]
        rest = [name for name in names if name != order[0]]
        assert [rest[i] for i in rank(key, rest, [1] * 3)] == order[1:]


def test_weights_are_shares() -> None:
    counts = Counter(owners(["a", "b"], [3, 1]))
    assert 680 <= counts["a"] <= 820


def test_raising_a_weight_only_moves_keys_towards_it() -> None:
    before, after = owners(["a", "b", "c"], [1, 1, 1]), owners(["a", "b", "c"], [2, 1, 1])
    assert all(new in (old, "a") for old, new in zip(before, after, strict=True))


def test_the_configured_order_does_not_matter() -> None:
    assert owners(["x", "y", "z"], [1, 2, 1]) == owners(["y", "z", "x"], [2, 1, 1])


def test_every_process_and_machine_draws_the_same() -> None:
    assert rank(b"conversation", ["openai/gpt", "dashscope/qwen", "local/qwen"], [1, 1, 1]) == GOLDEN


def test_the_prefix_starts_at_the_messages_and_survives_the_next_turn() -> None:
    system = b'{"role":"system","content":"' + b"You are kind. " * 100 + b'"}'
    first = b'{"model":"m","messages":[' + system + b',{"role":"user","content":"hi"}]}'
    second = (
        b'{"model":"other","stream":true,"messages": [' + system + b',{"role":"user","content":"hi"},{"role":"user","content":"more"}]}'
    )
    keys = [prefix_key(ask(json=body(raw.replace(b'"messages": [', b'"messages":[')))) for raw in (first, second)]
    assert keys[0] == keys[1]
    assert keys[0] is not None and keys[0].startswith(b'"messages":[') and len(keys[0]) == PREFIX_BYTES


@pytest.mark.parametrize(
    ("raw", "start"),
    [
        (b'{"model":"m","input":"text"}', b'"input"'),
        (b'{"model":"m","prompt":"text"}', b'"prompt"'),
        (b'{"model":"m"}', b'{"model"'),
    ],
)
def test_other_endpoints_have_a_prefix_too(raw: bytes, start: bytes) -> None:
    key = prefix_key(ask(json=body(raw)))
    assert key is not None and key.startswith(start)


def test_without_a_body_there_is_no_prefix() -> None:
    assert prefix_key(ask()) is None
    assert prefix_key(ask(opaque=b'{"input":"x"}')) == b'"input":"x"}'


def test_the_user_is_what_the_body_says_else_the_key_else_the_address() -> None:
    messages = b'{"messages":[{"role":"user","content":"' + b"x" * 200_000 + b'"}]'
    assert user_key(ask(json=body(messages + b',"user":"ann"}'))) == b"ann"
    assert user_key(ask(json=body(b'{"prompt_cache_key": "k1","messages":[]}'))) == b"k1"
    assert user_key(ask(json=body(messages + b"}"), key=Key(name="alice"))) == b"alice"
    assert user_key(ask(json=body(messages + b"}"))) == b"127.0.0.1"


def test_a_header_is_found_in_any_spelling() -> None:
    request = ask(headers=((b"X-Session", b"s1"),))
    assert header_key(request, b"x-session") == b"s1"
    assert header_key(request, b"x-other") is None
