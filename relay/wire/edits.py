"""Edits of a request body: members set to other values, every other byte kept.

What is replaced stands where it stood; what is added stands at the beginning of its object.
"""

from typing import Final, NamedTuple

import msgspec

from relay.exchange import JsonBody
from relay.wire.body import OPENING, count_of, members_of, span_of

ASKS_USAGE: Final = b'{"include_usage":true}'
_encode: Final = msgspec.json.Encoder().encode
_Edit = tuple[int, int, bytes]


class Bound(NamedTuple):
    """The most tokens that an answer may have, and the members that can say it: the first is added where none does."""

    tokens: int
    names: tuple[str, ...]


def edited(body: JsonBody, *, model: str | None = None, asks_usage: bool = False, bound: Bound | None = None) -> bytes:
    """Return the body with `model` as its model, asking for usage at the stream's end, and with its answers bounded, as wanted."""
    replaced: list[_Edit] = []
    added: list[bytes] = []
    if model is not None and model != body.model:
        if body.model_span is None:
            added.append(b'"model":' + _encode(model))
        else:
            replaced.append((*body.model_span, _encode(model)))
    if asks_usage and not body.include_usage:
        if body.options_span is None:
            added.append(b'"stream_options":' + ASKS_USAGE)
        else:
            replaced.append((*body.options_span, _asking(body.raw[slice(*body.options_span)])))
    if bound is not None and bound.names:
        _bind(body, bound, replaced, added)
    if not replaced and not added:
        return body.raw
    return _apply(body.raw, replaced, added, body.insert_at, is_empty=body.is_empty)


def _bind(body: JsonBody, bound: Bound, replaced: list[_Edit], added: list[bytes]) -> None:
    members = members_of(body.raw)
    value = b"%d" % bound.tokens
    is_said = False
    for name, said in members.items():
        if name.text in bound.names and bytes(said) != b"null":
            is_said = True
            count = count_of(said)
            if count is None or count > bound.tokens:
                replaced.append((*span_of(body.raw, body.insert_at, members, said), value))
    if not is_said:
        # A null that says nothing would be a second member of the name.
        nulls = [said for name, said in members.items() if name.text == bound.names[0]]
        if nulls:
            replaced.append((*span_of(body.raw, body.insert_at, members, nulls[0]), value))
        else:
            added.append(b'"%b":%b' % (bound.names[0].encode("ascii"), value))


def _asking(options: bytes) -> bytes:
    """Return `stream_options` with `include_usage: true`."""
    if options == b"null":
        return ASKS_USAGE
    members = members_of(options)
    opening = OPENING.match(options)
    assert opening is not None
    for name, value in members.items():
        if name.text == "include_usage":
            return _apply(options, [(*span_of(options, opening.end(), members, value), b"true")], [], 0, is_empty=False)
    return _apply(options, [], [b'"include_usage":true'], opening.end(), is_empty=not members)


def _apply(raw: bytes, replaced: list[_Edit], added: list[bytes], insert_at: int, *, is_empty: bool) -> bytes:
    edits = list(replaced)
    if added:
        edits.append((insert_at, insert_at, b",".join(added) + (b"" if is_empty else b",")))
    pieces: list[bytes] = []
    position = 0
    for start, end, value in sorted(edits):
        pieces += (raw[position:start], value)
        position = end
    pieces.append(raw[position:])
    return b"".join(pieces)
