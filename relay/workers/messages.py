"""What the supervisor and a worker tell and ask each other."""

from typing import Final

import msgspec

from relay.app.desk import Order


class Begin(msgspec.Struct, tag=True):
    """The first message to a worker: who it is and what it serves."""

    index: int
    total: int
    generation: int
    config: bytes
    """The pickled tree: it comes from the supervisor over a private socket pair, and from nobody else."""
    directory: str
    """A folder that all workers share and that lives as long as the supervisor."""
    rests: dict[str, float]
    """Targets that a person put to rest, and for how many seconds more."""


class Ready(msgspec.Struct, tag=True):
    """The worker listens."""

    generation: int


class Prepare(msgspec.Struct, tag=True):
    """Build what `config` means, without putting it in force. Answered by Prepared."""

    generation: int
    config: bytes


class Prepared(msgspec.Struct, tag=True):
    """`error` tells why the configuration cannot be had; None when it can."""

    error: str | None


class Adopt(msgspec.Struct, tag=True):
    """Put the prepared configuration in force. Answered by Ready."""

    generation: int


class Drain(msgspec.Struct, tag=True):
    """Take no new work, let streams finish, end."""


class Hurry(msgspec.Struct, tag=True):
    """End at once."""


class Collect(msgspec.Struct, tag=True):
    """Tell what was counted. Answered by Counted."""

    forgets: bool = False
    """Whether to leave out, from now on, what is not configured any more: all workers do it at once, so that no sum sinks."""


class Counted(msgspec.Struct, tag=True):
    """What a worker counted so far, in pieces; told unasked as a worker's last word."""

    pieces: list[bytes]
    is_leaving: bool = False
    """Whether there is something in it that is not configured any more."""


class LimitsChanged(msgspec.Struct, tag=True):
    """The worker's limits are counted by it alone, or cannot be counted; or they are well again."""

    are_degraded: bool


class AskPage(msgspec.Struct, tag=True):
    """A client asks a worker for a page that speaks for all of them. Answered by Page."""

    path: str
    accept: str


class Page(msgspec.Struct, tag=True):
    """A page's status, content type and body."""

    status: int
    content_type: bytes
    body: bytes


class Made(msgspec.Struct, tag=True):
    """An upstream made an object: see `policy.owners`."""

    object_id: str
    upstream: str
    route: str
    key: str | None


class AskOwner(msgspec.Struct, tag=True):
    """Who made this object? Answered by Made or Unknown."""

    object_id: str


class Report(msgspec.Struct, tag=True):
    """The answer to an Order: JSON, or the code of why not."""

    body: bytes
    error: str | None = None


class Unknown(msgspec.Struct, tag=True):
    """There is no answer to that question."""


Message = (
    Begin
    | Ready
    | Prepare
    | Prepared
    | Adopt
    | Drain
    | Hurry
    | Collect
    | Counted
    | LimitsChanged
    | AskPage
    | Page
    | Made
    | AskOwner
    | Order
    | Report
    | Unknown
)


class Envelope(msgspec.Struct, array_like=True):
    """A message with the number of the question it is, or answers; 0 for what needs no answer."""

    question: int
    is_answer: bool
    message: Message


HEAD_BYTES: Final = 4
MAX_BYTES: Final = 64 * 2**20
"""Longer than any configuration and any dump: what claims to be longer is no message of ours."""

_encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Envelope).decode
"""Read one envelope. Raises msgspec.MsgspecError."""


def frame(envelope: Envelope) -> bytes:
    """Return the bytes of an envelope on the wire: its length in four bytes, then itself."""
    body = _encode(envelope)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


class Frames:
    """Cuts what a socket gives into envelopes."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Envelope]:
        """Return the envelopes that are whole now. Raises ValueError for what is no message."""
        self._buffer += data
        found = []
        while len(self._buffer) >= HEAD_BYTES:
            size = int.from_bytes(self._buffer[:HEAD_BYTES], "big")
            if size > MAX_BYTES:
                raise ValueError("a message is too long")
            end = HEAD_BYTES + size
            if len(self._buffer) < end:
                break
            found.append(decode(self._buffer[HEAD_BYTES:end]))
            del self._buffer[:end]
        return found
