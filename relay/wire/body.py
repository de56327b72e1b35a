"""Request bodies in JSON: what the relay acts on, and where the members stand that it may replace.

One pass of msgspec splits the top-level object into its members without building their values. Its keys become `_Name`
objects that equal only themselves, so that the mapping keeps duplicates, in order; an upstream may read the first of two
equal members, or fold their case, and must never see another model than the one that was checked here.
Deeper JSON is the upstream's business, except its depth: no reader behind this one shall meet a body that exhausts its stack
(msgspec itself stops with a RecursionError, which is a refusal here).

Measured (CPython 3.11, one core of a small machine): a 1 KB chat body 8 us; 1 MiB in one message 0.25 ms; 1 MiB in 1,000
messages 0.6 ms, of which 0.4 is the depth. An exact scan, which has to tell strings from structure, takes 5 ms per MiB, so
it is kept for members with an element of more than 62 brackets; the worst 32 MiB known take 0.4 s.
"""

import re
import unicodedata
from itertools import accumulate
from operator import sub
from typing import Any, Final

import msgspec

from relay.errors import ClientError
from relay.exchange import MAX_TOKENS, JsonBody

MAX_DEPTH: Final = 64
MAX_MEMBERS: Final = 1000
"""Real bodies have a few dozen top-level members; each costs some 300 bytes to tell apart."""
MAX_MODEL_BYTES: Final = 256
_MAX_DIGITS: Final = 19
_MAX_NUMBER_BYTES: Final = 400
_MAX_COUNT_DIGITS: Final = 9
_SMALL: Final = 2**14
"""A body of this size cannot hold enough members to hurt, so they are counted afterwards."""
_WINDOW: Final = 2**16
_FREE_TO_SPLIT: Final = 2**21
"""Larger lists are split only when they have few elements: a list of a million numbers would take 70 MB."""
_MAX_ELEMENTS: Final = 2**16
_FEWOPENINGS: Final = 2**12
"""More are not looked for one by one."""
_MAX_INSIDE: Final = MAX_DEPTH - 2
"""Brackets that an element of a member may have whatever their order: the object and the member come on top."""
_BATCH: Final = 32
"""Elements looked at together: copies of a whole MiB would cost more in fresh pages than the look itself."""

_ACTED_ON: Final = frozenset({"model", "stream", "stream_options", "store", "background", "previous_response_id"})
_FLAGS: Final = {b"true": True, b"false": False, b"null": False}

OPENING: Final = re.compile(rb"[ \t\r\n]*\{")
_TO_VALUE: Final = re.compile(rb'[ \t\r\n,]*"[^"\\]*(?:\\.[^"\\]*)*"[ \t\r\n]*:[ \t\r\n]*')
_LONG_INTEGER: Final = re.compile(rb"-?[0-9]{%d,}\Z" % (_MAX_DIGITS + 1))
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(rb"\\(?:\\|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2}))")
"""Escaped backslashes and pairs, so that they are passed over; a lone surrogate is group 1."""
_MAX_ESCAPES: Final = 500_000
"""More than this in one body is not worth the time it takes to look at each (0.1 s)."""
_MAX_BRACKETS: Final = 4_000_000
"""Two million objects and lists are no request; looking at each costs 40 ns."""
_NUMBER_HEADS: Final = frozenset(b"-0123456789")
_ANSWER_BOUNDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_USUAL_OPTIONS: Final = frozenset({b'{"include_usage":true}', b'{"include_usage": true}'})

_TO_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_TO_STEP: Final = bytes.maketrans(b"[]", b"\x01\xff")
_NOT_BRACKET: Final = bytes(set(range(256)) - set(b"[]{}"))
_NOTOPENING_OR_NUL: Final = bytes(set(range(256)) - set(b"[{\0"))


class _Name:
    """A member's name that equals only itself."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Counter:
    """Makes names until there are too many: a hostile body must not fill memory before it is refused."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_MEMBERS

    def name(self, kind: type[Any], value: Any) -> _Name:
        self._left -= 1
        if self._left < 0:
            raise _too_many()
        return _name(kind, value)


def _name(kind: type[Any], value: Any) -> _Name:
    return _Name(value)


_Members = dict[_Name, msgspec.Raw]

_decode_small: Final = msgspec.json.Decoder(_Members, dec_hook=_name).decode
_decode_elements: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_string: Final = msgspec.json.Decoder(str).decode


def parse_body(raw: bytes) -> JsonBody:
    """Read what the relay acts on out of a chat, completion, embedding, response or moderation request.

    Raises ClientError: `invalid_json` (not strict JSON in strict UTF-8, or nested deeper than 64), `invalid_body` (not an
    object, or more than 1,000 members), `duplicate_key` (also case variants, and a member the relay acts on in another
    spelling), `invalid_value` (wrong kind, an integer of more than 19 digits, a number that is no finite double).
    """
    members = members_of(raw)
    _refuse_depth(raw, members)
    values = _unique(members, _ACTED_ON)
    for name, value in values.items():
        if memoryview(value)[0] in _NUMBER_HEADS:
            _refuse_number(name, value)
    model = values.get("model")
    opening = OPENING.match(raw)
    assert opening is not None
    options = values.get("stream_options")
    answers = count_of(values.get("n")) or 1
    asks_usage = options is not None and _include_usage(options)
    return JsonBody(
        raw=raw,
        model=None if model is None else _model(model),
        model_span=None if model is None else span_of(raw, opening.end(), members, model),
        insert_at=opening.end(),
        is_empty=not members,
        stream=_flag(values, "stream"),
        include_usage=asks_usage,
        options_span=None if options is None or asks_usage else span_of(raw, opening.end(), members, options),
        store=_flag(values, "store"),
        background=_flag(values, "background"),
        previous_response_id=_previous_response_id(values),
        answer_tokens=_answer_tokens(values, answers),
        answers=answers,
    )


def peek_model(raw: bytes) -> str | None:
    """Return the `model` of a JSON object; None for anything else, also when another reader might see another model."""
    try:
        members = members_of(raw)
        model = _unique(members, frozenset({"model"})).get("model")
        return None if model is None else _model(model)
    except ClientError:
        return None


def members_of(raw: bytes) -> _Members:
    """Split an object into its members, in order. Raises ClientError: `invalid_json`, `invalid_body`."""
    try:
        return _split(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not isinstance(error, msgspec.DecodeError) or b"\\u" not in raw or raw.count(b"\\") > _MAX_ESCAPES:
            raise _unreadable(error) from None
        softened = _soften(raw)
    try:
        return _split(softened)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(error) from None


def _split(raw: bytes) -> _Members:
    if not raw.isascii():
        raw.decode()  # msgspec passes over strings it need not build without looking at their encoding
    if len(raw) > _SMALL:
        return msgspec.json.Decoder(_Members, dec_hook=_Counter().name).decode(raw)
    members = _decode_small(raw)
    if len(members) > MAX_MEMBERS:
        raise _too_many()
    return members


def _soften(raw: bytes) -> bytes:
    """Put U+FFFD in place of escaped lone surrogates, length unchanged: msgspec refuses them, many upstreams do not."""
    return _SURROGATE.sub(lambda found: b"\\ufffd" if found[1] else found[0], raw)


def _unreadable(error: Exception) -> ClientError:
    return ClientError("invalid_body" if isinstance(error, msgspec.ValidationError) else "invalid_json")


def _too_many() -> ClientError:
    return ClientError("invalid_body", message="The request body has too many members.")


def _unique(members: _Members, acted_on: frozenset[str]) -> dict[str, msgspec.Raw]:
    values: dict[str, msgspec.Raw] = {}
    folded = set()
    for name, value in members.items():
        text = name.text
        fold = _fold(text)
        if fold in folded or (fold in acted_on and fold != text):
            raise ClientError("duplicate_key", param=text[:64])
        folded.add(fold)
        values[text] = value
    return values


def _fold(name: str) -> str:
    """Fold as the laxest reader would: case, compatibility forms, U+017F for s, U+212A for k."""
    if name.isascii():
        return name.lower()
    if len(name) > MAX_MODEL_BYTES:
        return name  # no upstream has a member like this; normalising megabytes is not worth anybody's time
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _refuse_number(name: str, value: msgspec.Raw) -> None:
    view = memoryview(value)
    if view.nbytes > _MAX_NUMBER_BYTES or _LONG_INTEGER.match(view) or abs(float(bytes(view))) == float("inf"):
        raise ClientError(
            "invalid_value", param=name[:64], message="The body holds a number that is larger or longer than most readers take."
        )


_NO_NAME: Final = f"`model` must be text of at most {MAX_MODEL_BYTES} bytes, without control characters."


def _model(value: msgspec.Raw) -> str:
    try:
        # An escaped lone surrogate is U+FFFD by now, which no model's name has either.
        model = _decode_string(value)
    except msgspec.DecodeError:
        raise ClientError("invalid_value", param="model", message=_NO_NAME) from None
    if len(model.encode()) > MAX_MODEL_BYTES or _CONTROL.search(model) or "\ufffd" in model:
        raise ClientError("invalid_value", param="model", message=_NO_NAME)
    return model


def _flag(values: dict[str, msgspec.Raw], name: str, param: str | None = None) -> bool:
    value = values.get(name)
    if value is None:
        return False
    flag = _FLAGS.get(bytes(value))
    if flag is None:
        raise ClientError("invalid_value", param=param or name, message=f"`{param or name}` must be true or false.")
    return flag


def _include_usage(value: msgspec.Raw) -> bool:
    data = bytes(value)
    if data in _USUAL_OPTIONS:
        return True
    if data == b"null":
        return False
    if data[:1] != b"{":
        raise ClientError("invalid_value", param="stream_options", message="`stream_options` must be an object.")
    options = _unique(members_of(data), frozenset({"include_usage"}))
    return _flag(options, "include_usage", "stream_options.include_usage")


def _answer_tokens(values: dict[str, msgspec.Raw], answers: int) -> int | None:
    """Return what all answers together may have: where bounds differ, as if the upstream knew only the laxest one.

    A value that is no count is the upstream's to refuse.
    """
    bounds = [bound for name in _ANSWER_BOUNDS if (bound := count_of(values.get(name))) is not None]
    return min(max(bounds) * answers, MAX_TOKENS) if bounds else None


def count_of(value: msgspec.Raw | None) -> int | None:
    """Return a number that counts something; None for any other value."""
    if value is None:
        return None
    data = bytes(value)
    return int(data) if len(data) <= _MAX_COUNT_DIGITS and data.isdigit() else None


def _previous_response_id(values: dict[str, msgspec.Raw]) -> str | None:
    value = values.get("previous_response_id")
    if value is None or bytes(value) == b"null":
        return None
    try:
        return _decode_string(value)
    except msgspec.DecodeError:
        raise ClientError("invalid_value", param="previous_response_id", message="`previous_response_id` must be text.") from None


def span_of(raw: bytes, start: int, members: _Members, wanted: msgspec.Raw) -> tuple[int, int]:
    """Find where a member's value stands, `start` being just after the opening brace.

    Values' lengths are known: only what lies between them is read again.
    """
    position = start
    for value in members.values():
        found = _TO_VALUE.match(raw, position)
        assert found is not None
        position = found.end() + memoryview(value).nbytes
        if value is wanted:
            return found.end(), position
    raise AssertionError("not a member")


def _refuse_depth(raw: bytes, members: _Members) -> None:
    if len(raw) <= _SMALL and raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    for value in members.values():
        if memoryview(value)[0] in b"[{":
            data = bytes(value)
            if _is_suspect(data) and _depth_exceeds(data, MAX_DEPTH - 1):
                raise ClientError("invalid_json")


def _is_suspect(data: bytes) -> bool:
    """Tell whether the member could be too deep: a list of messages is long, not deep."""
    openings = _openings(data)
    if openings is not None and len(openings) < MAX_DEPTH:
        return False
    if data[0] != b"["[0] or (len(data) > _FREE_TO_SPLIT and data.count(b",") > _MAX_ELEMENTS):
        return True
    elements = _decode_elements(data)
    if openings is not None and _are_spread(openings, longest=max(map(len, elements), default=0)):
        return False
    for start in range(0, len(elements), _BATCH):
        # NUL stands nowhere in valid JSON, so it can separate the elements.
        batch = b"\0".join(elements[start : start + _BATCH]).translate(None, _NOTOPENING_OR_NUL)
        if max(map(len, batch.split(b"\0"))) > _MAX_INSIDE:
            return True
    return False


def _openings(data: bytes) -> list[int] | None:
    """Return where opening brackets stand, those in strings too, in order; None when there are many.

    `find` runs at the speed of memory where there are few; `count` and `translate` look at every byte.
    """
    positions: list[int] = []
    for bracket in (b"[", b"{"):
        position = data.find(bracket)
        while position >= 0:
            if len(positions) >= _FEWOPENINGS:
                return None
            positions.append(position)
            position = data.find(bracket, position + 1)
    positions.sort()
    return positions


def _are_spread(openings: list[int], *, longest: int) -> bool:
    """Tell whether so many as would make an element too deep never stand within the length of one."""
    return all(map(longest.__lt__, map(sub, openings[_MAX_INSIDE:], openings)))


def _depth_exceeds(data: bytes, limit: int) -> bool:
    """Measure the nesting of valid JSON in linear time and bounded memory."""
    brackets = _outside_strings(data).translate(_TO_SQUARE, _NOT_BRACKET)
    if len(brackets) > _MAX_BRACKETS:
        raise _too_many()
    levels = 4
    for _ in range(levels):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets) and max(accumulate(memoryview(brackets.translate(_TO_STEP)).cast("b"))) > limit - levels


def _outside_strings(data: bytes) -> bytes:
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = []
    is_inside = 0
    for start in range(0, len(data), _WINDOW):
        parts = data[start : start + _WINDOW].split(b'"')
        outside.append(b"".join(parts[is_inside::2]))
        is_inside ^= len(parts) + 1 & 1
    return b"".join(outside)
