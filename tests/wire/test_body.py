import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.errors import CLIENT_ERRORS, ClientError
from relay.wire.body import MAX_MEMBERS, parse_body, peek_model
from relay.wire.edits import edited


def refusal(raw: bytes) -> tuple[str, str | None]:
    with pytest.raises(ClientError) as caught:
        parse_body(raw)
    assert caught.value.code in CLIENT_ERRORS
    return caught.value.code, caught.value.param


def test_a_chat_body_gives_what_the_relay_acts_on() -> None:
    raw = (
        b' {"model" : "gpt" ,"messages":[{"model":"x","Model":1}],"stream":true,'
        b'"stream_options":{"include_usage":true},"store":true,"background":null}\n'
    )
    body = parse_body(raw)
    assert body.raw is raw
    assert body.model == "gpt"
    assert body.model_span is not None
    assert raw[slice(*body.model_span)] == b'"gpt"'
    assert raw[: body.insert_at] == b" {"
    assert (body.is_empty, body.stream, body.include_usage, body.store, body.background) == (False, True, True, True, False)
    assert body.previous_response_id is None


def test_an_empty_object_names_nothing() -> None:
    body = parse_body(b"{ }")
    assert (body.model, body.model_span, body.insert_at, body.is_empty, body.stream) == (None, None, 1, True, False)


@pytest.mark.parametrize("key", [b'"mod\\u0065l"', b'"\\u006d\\u006F\\u0064\\u0065\\u006c"'])
def test_an_escaped_key_is_the_key_it_spells(key: bytes) -> None:
    body = parse_body(b'{"a":"\\"model\\":1",' + key + b' : "x"}')
    assert body.model == "x"
    assert edited(body, model="y") == b'{"a":"\\"model\\":1",' + key + b' : "y"}'
    assert refusal(b'{"model":"a",' + key + b':"b"}') == ("duplicate_key", "model")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","x":1,"model":"a"}',
        b'{"x":123456,"model":"a","x":{"x":1}}',
        b'{"model":"cheap","Model":"dear"}',
        b'{"Model":"dear"}',
        b'{"STREAM":true}',
        b'{"temperature":1,"Temperature":2}',
        '{"\u017ftream":true,"stream":false}'.encode(),
        '{"\u017ftream":true}'.encode(),
        b'{"\\u017ftore":true}',
        '{"bac\u212aground":true}'.encode(),
        '{"ba\u0441kground":1,"BA\u0421KGROUND":1}'.encode(),
        '{"\uff4d\uff4f\uff44\uff45\uff4c":"x"}'.encode(),
        b'{"stream_options":{"include_usage":true,"include_usage":false}}',
        b'{"stream_options":{"include_usage":true,"Include_Usage":false}}',
        b'{"stream_options":{"INCLUDE_USAGE":false}}',
        b'{"stream_options":{"a":1,"A":2}}',
    ],
)
def test_a21_a22_duplicates_and_case_variants_are_refused(raw: bytes) -> None:
    assert refusal(raw)[0] == "duplicate_key"


def test_deeper_objects_may_hold_what_the_top_may_not() -> None:
    assert parse_body(b'{"tools":[{"x":1,"X":2,"x":3}],"metadata":{"a":1,"A":1}}').model is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b'{"a":1,}',
        b'{"a":01}',
        b"{'a':1}",
        b'{"a":1}x',
        b'{"a":1}{}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32"),
        b'{"a":"\xff"}',
        b'{"a\xff":1}',
        b'{"a":["\xed\xa0\x80"]}',
        b'{"a":"\xc0\xaf"}',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b'{"a":tru}',
        b'\x00{"a":1}',
        b'{"a":1}\x00',
    ],
)
def test_a20_a23_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    assert refusal(raw)[0] == "invalid_json"
    assert peek_model(raw) is None


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"x"', b"null", b"true", b'[{"model":"x"}]'])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    assert refusal(raw)[0] == "invalid_body"


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"model":1}', "model"),
        (b'{"model":null}', "model"),
        (b'{"model":["a"]}', "model"),
        (b'{"model":"\\ud800"}', "model"),
        (b'{"model":"a\\udfffb"}', "model"),
        (b'{"model":"a\\u0000"}', "model"),
        (b'{"model":"a\\nb"}', "model"),
        (b'{"model":"a\\u007f"}', "model"),
        (b'{"model":"a\\u0085"}', "model"),
        (b'{"model":"' + b"a" * 257 + b'"}', "model"),
        ('{"model":"' + "é" * 129 + '"}', "model"),
        (b'{"stream":1}', "stream"),
        (b'{"stream":"true"}', "stream"),
        (b'{"store":[]}', "store"),
        (b'{"background":"x"}', "background"),
        (b'{"stream_options":true}', "stream_options"),
        (b'{"stream_options":{"include_usage":1}}', "stream_options.include_usage"),
        (b'{"previous_response_id":5}', "previous_response_id"),
        (b'{"n":12345678901234567890}', "n"),
        (b'{"n":-12345678901234567890}', "n"),
        (b'{"n":' + b"9" * 5000 + b"}", "n"),
        (b'{"n":1e999}', "n"),
        (b'{"n":-1e999}', "n"),
        (b'{"n":0.' + b"1" * 5000 + b"}", "n"),
    ],
)
def test_a20_a24_values_of_the_wrong_kind_are_refused(raw: bytes | str, param: str) -> None:
    assert refusal(raw.encode() if isinstance(raw, str) else raw) == ("invalid_value", param)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"n":1234567890123456789,"m":-1234567890123456789,"f":1e300,"g":0.1,"h":-0}',
        b'{"model":"a/b:c\\u00e9 ../x","stream":null,"stream_options":null,"previous_response_id":null}',
        b'{"model":"' + b"a" * 256 + b'"}',
        b'{"model":"\\ud83d\\ude00"}',
        b'{"a":["\\ud800"],"b":"\\udc00x \\\\ud800","\\ud801":1,"c":[123456789012345678901234567890,1e999]}',
    ],
)
def test_what_is_odd_but_legal_passes(raw: bytes) -> None:
    assert parse_body(raw).raw is raw


def test_a_lone_surrogate_in_a_text_moves_nothing() -> None:
    raw = b'{"a":"\\ud800 \\\\ud800 \\ud83d\\ude00","model":"x","previous_response_id":"resp_1"}'
    body = parse_body(raw)
    assert edited(body, model="y") == raw.replace(b'"x"', b'"y"')
    assert body.previous_response_id == "resp_1"


def nested(depth: int, kind: str) -> bytes:
    pairs = {"list": (b"[", b"]"), "object": (b'{"a":', b"}"), "mixed": (b'[{"a":', b"}]")}
    start, end = pairs[kind]
    count = depth // 2 if kind == "mixed" else depth
    return start * count + b"1" + end * count


@pytest.mark.parametrize("kind", ["list", "object", "mixed"])
@pytest.mark.parametrize("filler", [b"", b'"[[[{{{\\"[[",' * 30, b'"\\\\",' * 200, b'{"a":[{}]},' * 400, b'"x]]]}}}",' * 50])
def test_a19_depth_is_limited_to_64(kind: str, filler: bytes) -> None:
    # The top-level object is one level, the list around the filler another.
    assert parse_body(b'{"a":[' + filler + nested(62, kind) + b"," + filler + b"0]}")
    assert refusal(b'{"a":[' + filler + nested(64, kind) + b"," + filler + b"0]}")[0] == "invalid_json"
    assert refusal(b'{"a":[' + nested(64, kind) + b"," + filler + b"0]}")[0] == "invalid_json"


@pytest.mark.parametrize("depth", [62, 63])
def test_depth_64_passes_and_65_does_not(depth: int) -> None:
    raw = b'{"a":[' + b"[" * depth + b"]" * depth + b',"\\"[","x"]}'
    if depth == 62:
        assert parse_body(raw)
    else:
        assert refusal(raw)[0] == "invalid_json"
    objects = b'{"a":{"b":' + nested(depth, "object") + b"}}"
    if depth == 62:
        assert parse_body(objects)
    else:
        assert refusal(objects)[0] == "invalid_json"


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' + b'{"b":' * 5000]
)
def test_a19_a_depth_bomb_is_refused_without_recursion(raw: bytes) -> None:
    assert refusal(raw)[0] in ("invalid_json", "invalid_body")
    assert peek_model(raw) is None


def test_brackets_in_texts_are_no_depth_across_a_window_of_the_scan() -> None:
    text = b'"' + b"[" * 70_000 + b'\\"\\\\"'
    assert parse_body(b'{"a":[[' + text + b"," + text + b"]]}")


@pytest.mark.parametrize("count", [MAX_MEMBERS + 1, 100_000])
def test_a18_a_flood_of_members_is_refused(count: int) -> None:
    raw = b"{" + b",".join(b'"%d":0' % i for i in range(count)) + b"}"
    assert refusal(raw)[0] == "invalid_body"


def test_a18_a_flood_of_containers_is_refused() -> None:
    assert refusal(b'{"a":[' + b"[]," * 2_100_000 + b"[]]}")[0] == "invalid_body"


def test_the_greatest_number_of_members_passes() -> None:
    assert parse_body(b"{" + b",".join(b'"%d":0' % i for i in range(MAX_MEMBERS)) + b"}")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"{}", b'{"model":"m"}'),
        (b" { } ", b' {"model":"m" } '),
        (b'{"a":1}', b'{"model":"m","a":1}'),
        (b'{"a":1,"model":"old"}', b'{"a":1,"model":"m"}'),
        (b'{"a":{"model":"old"},"model"\n:\t"old" }', b'{"a":{"model":"old"},"model"\n:\t"m" }'),
    ],
)
def test_replacing_the_model_touches_nothing_else(raw: bytes, expected: bytes) -> None:
    assert edited(parse_body(raw), model="m") == expected


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_replaced_model_is_escaped(name: str) -> None:
    assert json.loads(edited(parse_body(b'{"model":"x","b":[1, 2]}'), model=name)) == {"model": name, "b": [1, 2]}


NAMES = st.text(max_size=6).filter(lambda name: name.isascii() and name.isprintable() and name == name.lower() and name not in TAKEN)
TAKEN = {"model", "stream", "stream_options", "store", "background", "previous_response_id"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
ACTED_ON = {"stream": st.booleans(), "store": st.booleans(), "previous_response_id": st.text(max_size=9)}
MODELS = st.text(max_size=9).filter(lambda text: not re.search("[\x00-\x1f\x7f-\x9f\ufffd]", text))


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    members = list(draw(st.dictionaries(NAMES, VALUES, max_size=6)).items())
    members += [(name, draw(values)) for name, values in ACTED_ON.items() if draw(st.booleans())]
    if draw(st.booleans()):
        members.append(("model", draw(MODELS)))
    return dict(draw(st.permutations(members)))


@settings(deadline=None, max_examples=300)
@given(objects(), st.booleans(), st.sampled_from([None, 1]), MODELS)
def test_any_object_reads_as_json_does_and_only_its_model_changes(
    value: dict[str, Any], is_ascii: bool, indent: int | None, name: str
) -> None:
    raw = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    body = parse_body(raw)
    assert body.model == value.get("model") == peek_model(raw)
    assert (body.stream, body.store) == (value.get("stream", False), value.get("store", False))
    assert body.previous_response_id == value.get("previous_response_id")
    assert body.is_empty is (not value)
    changed = edited(body, model=name)
    assert json.loads(changed) == {**value, "model": name}
    if body.model_span is not None:
        start, end = body.model_span
        assert json.loads(raw[start:end]) == value["model"]
        assert changed[:start] == raw[:start]
        assert changed.endswith(raw[end:])
    else:
        assert changed.startswith(raw[: body.insert_at])
        assert changed.endswith(raw[body.insert_at :])


PIECES = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b'"model"',
        b'"Model"',
        b'"a"',
        b"1",
        b"null",
        b"true",
        b" ",
        b"\\",
        b"\\u",
        b"\\ud800",
        b"\xff",
        b"\x00",
        b'"stream_options":',
        b'{"model":"x"',
        b"[" * 70,
        b"]" * 70,
        b'{"a":' * 70,
        b"1e999",
        "ſ".encode(),
    ]
)


@settings(deadline=None, max_examples=500)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(PIECES, max_size=25).map(b"".join),
        st.lists(PIECES, max_size=12).map(lambda parts: b'{"a":' + b"".join(parts) + b"}"),
    )
)
def test_any_bytes_are_read_or_refused_and_nothing_else_is_raised(raw: bytes) -> None:
    peek_model(raw)
    try:
        body = parse_body(raw)
    except ClientError as error:
        assert error.code in ("invalid_json", "invalid_body", "duplicate_key", "invalid_value")
        return
    assert isinstance(json.loads(raw), dict)
    assert isinstance(json.loads(edited(body, model="m")), dict)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"model":"x","n":12345678901234567890123,"stream":5}', "x"),
        (b'{"a":1}', None),
        (b'{"model":5}', None),
        (b'{"model":"a\\nb"}', None),
        (b'{"model":"x","Model":"y"}', None),
        (b'{"model":"x","model":"x"}', None),
        (b'{"Model":"y"}', None),
        (b'["model"]', None),
        (b"----boundary", None),
    ],
)
def test_peeking_gives_a_model_only_when_every_reader_sees_the_same(raw: bytes, expected: str | None) -> None:
    assert peek_model(raw) == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"model":3}', "`model` must be text of at most 256 bytes, without control characters."),
        (b'{"stream":"yes"}', "`stream` must be true or false."),
        (b'{"stream_options":{"include_usage":1}}', "`stream_options.include_usage` must be true or false."),
        (b'{"stream_options":[]}', "`stream_options` must be an object."),
        (b'{"previous_response_id":4}', "`previous_response_id` must be text."),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_with_what_is_expected(raw: bytes, message: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_body(raw)
    assert caught.value.message == message
