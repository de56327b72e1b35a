"""W3C Trace Context: whose trace a request belongs to, and what an upstream is told of it.

What does not keep to the recommendation is treated as if it had not come, as section 4.3 there wants: a new trace begins.
Only the caller's own `tracestate` goes on; the relay adds nothing to it.
"""

import re
from typing import Final

from relay.exchange import Headers, Trace, header_values

_NAME: Final = b"traceparent"
_NAME_BYTES: Final = len(_NAME)
_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER: Final = re.compile(rb"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_MAX_STATE: Final = 512
"""Bytes of a tracestate that everybody must pass on (section 3.3.1.5); more is dropped."""
_MAX_MEMBERS: Final = 32
_SPANS: Final = 2.0**64
"""Ids there are; the largest float below 1 times this, and 1 more, is still one of them."""


def read_trace(headers: Headers, new_id: str, *, sample: float = 0.0) -> Trace:
    """Return the trace that a client's headers name, or one that begins here with `new_id` (32 hexadecimal digits).

    `sample` is the share of traces that are recorded of those that begin here; a caller's own decision stands.
    """
    found = _parent(headers)
    if found is None:
        return Trace(id=new_id, is_sampled=sample > 0 and _is_drawn(new_id, sample))
    return Trace(
        id=found[2].decode("ascii"),
        parent=found[3].decode("ascii"),
        is_sampled=bool(int(found[4], 16) & 1),
        state=_state(header_values(headers, b"tracestate")),
    )


def span_id(chance: float) -> str:
    """Return a span's id for a number in [0, 1): 16 hexadecimal digits, not all of them zero."""
    return "%016x" % (1 + int(chance * _SPANS))


def trace_lines(trace: Trace, span: str) -> list[bytes]:
    """Return the header lines for an upstream; `span` is the call to it, and so the parent of what it does."""
    lines = [f"traceparent: 00-{trace.id}-{span}-{'01' if trace.is_sampled else '00'}".encode("ascii")]
    if trace.state is not None:
        lines.append(b"tracestate: " + trace.state)
    return lines


def _parent(headers: Headers) -> re.Match[bytes] | None:
    """Return the one traceparent, read; None where there is none, or none that keeps to the recommendation."""
    for name, _ in headers:
        if len(name) == _NAME_BYTES and name.lower() == _NAME:
            break
    else:
        return None  # nearly all requests
    parents = header_values(headers, _NAME)
    found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    return found if found is not None and _is_known(found) else None


def _is_drawn(trace: str, sample: float) -> bool:
    """Tell whether a trace is among those recorded: its id decides, as it does for other samplers (its last 7 bytes are random)."""
    return int(trace[-14:], 16) < sample * 2**56


def _is_known(found: re.Match[bytes]) -> bool:
    """Tell whether ids are not zero and the version can be read: 00 has four fields, a later one may have more, ff is none."""
    version, trace, parent, _, more = found.groups()
    return version != b"ff" and (version != b"00" or more is None) and trace.strip(b"0") != b"" and parent.strip(b"0") != b""


def _state(values: list[bytes]) -> bytes | None:
    """Return one tracestate of all that came, or None when any of it cannot be read."""
    members = [member for value in values for part in value.split(b",") if (member := part.strip(b" \t"))]
    names = {member.partition(b"=")[0] for member in members}
    if not members or len(members) > _MAX_MEMBERS or len(names) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return None
    state = b",".join(members)
    return state if len(state) <= _MAX_STATE else None
