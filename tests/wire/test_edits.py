"""Edits of a body change what they are for and no other byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.body import parse_body
from relay.wire.edits import Bound, edited

ASKING = '"stream_options":{"include_usage":true}'


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('{"stream":true}', "{" + ASKING + ',"stream":true}'),
        ('\n { "stream" : true }\n', "\n {" + ASKING + ', "stream" : true }\n'),
        ('{"stream":true,"stream_options":null}', '{"stream":true,' + ASKING + "}"),
        ('{"stream_options":{},"stream":true}', "{" + ASKING + ',"stream":true}'),
        ('{"stream_options": { } ,"stream":true}', '{"stream_options": {"include_usage":true } ,"stream":true}'),
        ('{"stream_options":{"include_usage":false}}', "{" + ASKING + "}"),
        ('{"stream_options":{"include_usage": null , "x":1}}', '{"stream_options":{"include_usage": true , "x":1}}'),
        ('{"stream_options":{"x":[1,"}"]}}', '{"stream_options":{"include_usage":true,"x":[1,"}"]}}'),
        ('{"stream_options":{"x":"é","include_usage":false}}', '{"stream_options":{"x":"é","include_usage":true}}'),
        ('{"stream_options":{"include_usage":true}}', '{"stream_options":{"include_usage":true}}'),
        ('{"stream_options":{"include_usage" :true, "x":1}}', '{"stream_options":{"include_usage" :true, "x":1}}'),
    ],
)
def test_a_stream_is_made_to_tell_its_usage(raw: str, expected: str) -> None:
    changed = edited(parse_body(raw.encode()), asks_usage=True)
    assert changed.decode() == expected
    assert parse_body(changed).include_usage


def test_both_edits_at_once_wherever_the_members_stand() -> None:
    for raw in ('{"stream_options":{"a":1},"model":"x"}', '{"model":"x","stream_options":{"a":1}}', '{"model":"x"}', '{"a":1}'):
        value = json.loads(edited(parse_body(raw.encode()), model="y", asks_usage=True))
        assert (value["model"], value["stream_options"]["include_usage"]) == ("y", True)
    assert edited(parse_body(b"{}"), model="y", asks_usage=True) == b'{"model":"y",' + ASKING.encode() + b"}"


_values = st.recursive(st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8), lambda x: st.lists(x, max_size=3))


@given(
    st.dictionaries(st.sampled_from("abcdef"), _values, max_size=4),
    st.none() | st.dictionaries(st.sampled_from(["u", "v", "include_usage"]), st.booleans(), max_size=3),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_all_other_members_keep_their_values(
    more: dict[str, object], options: dict[str, bool] | None, is_named: bool, indent: int | None
) -> None:
    asked = {**more, **({"stream_options": options} if is_named else {})}
    value = json.loads(edited(parse_body(json.dumps(asked, indent=indent).encode()), asks_usage=True))
    assert value == {**asked, "stream_options": {**(options or {} if is_named else {}), "include_usage": True}}


CHAT = ("max_completion_tokens", "max_tokens")


@pytest.mark.parametrize(
    ("raw", "names", "expected"),
    [
        ('{"max_tokens":100}', CHAT, '{"max_tokens":9}'),
        ('{"a":1, "max_tokens" : 100 }', CHAT, '{"a":1, "max_tokens" : 9 }'),
        ('{"max_tokens":8}', CHAT, '{"max_tokens":8}'),
        ('{"max_tokens":100,"max_completion_tokens":5}', CHAT, '{"max_tokens":9,"max_completion_tokens":5}'),
        ('{"max_tokens":"many"}', CHAT, '{"max_tokens":9}'),
        ('{"a":1}', CHAT, '{"max_completion_tokens":9,"a":1}'),
        ('{"a":1}', CHAT[::-1], '{"max_tokens":9,"a":1}'),
        ('{"max_completion_tokens":null}', CHAT, '{"max_completion_tokens":9}'),
        ('{"max_tokens":null}', CHAT, '{"max_completion_tokens":9,"max_tokens":null}'),
        ("{}", ("max_output_tokens",), '{"max_output_tokens":9}'),
        ('{"input":"max_tokens"}', (), '{"input":"max_tokens"}'),
    ],
)
def test_an_answer_is_bounded(raw: str, names: tuple[str, ...], expected: str) -> None:
    assert edited(parse_body(raw.encode()), bound=Bound(9, names)).decode() == expected


def test_all_edits_at_once() -> None:
    raw = b'{"max_tokens":100,"model":"x","stream_options":{}}'
    assert edited(parse_body(raw), model="y", asks_usage=True, bound=Bound(9, CHAT)) == (
        b'{"max_tokens":9,"model":"y","stream_options":{"include_usage":true}}'
    )
