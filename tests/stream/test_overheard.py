"""What is kept of an answer: what reached the client, from its beginning, and no more than was asked for."""

from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Break, StreamBroken, UpstreamError
from relay.exchange import Outcome
from relay.stream import Overheard


class Client:
    """A port that takes everything, unless it is closed."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.got = b""
        self.told: list[object] = []
        self._is_open = is_open

    def hold(self) -> None:
        self.told.append("hold")

    def content_written(self) -> None:
        self.told.append("content")

    def terminal(self) -> None:
        self.told.append("terminal")

    def open(self, first: bytes) -> bool:
        self.got += first if self._is_open else b""
        return self._is_open

    def write(self, data: bytes) -> None:
        self.got += data

    def failed(self, error: UpstreamError) -> None:
        self.told.append(error)

    def ended(self, outcome: Outcome, code: str | None, *, is_clean: bool, can_append: bool) -> None:
        self.told.append((outcome, code, is_clean, can_append))


@given(pieces=st.lists(st.binary(max_size=9), min_size=1, max_size=9), most=st.integers(0, 30))
def test_the_beginning_is_kept_and_every_byte_passes(pieces: list[bytes], most: int) -> None:
    client, kept = Client(), bytearray()
    port = Overheard(client, kept, most)
    assert port.open(pieces[0])
    for piece in pieces[1:]:
        port.write(piece)
    whole = b"".join(pieces)
    assert client.got == whole
    assert bytes(kept) == whole[:most]


def test_what_does_not_reach_the_client_is_not_kept() -> None:
    kept = bytearray()
    assert not Overheard(Client(is_open=False), kept, 10).open(b"first")
    assert not kept


def test_everything_else_passes_on() -> None:
    client = Client()
    port = Overheard(client, bytearray(), 10)
    error = StreamBroken(Break.RESET, anything=True)
    port.hold()
    port.content_written()
    port.terminal()
    port.failed(error)
    port.ended(Outcome.COMPLETE, None, is_clean=True, can_append=False)
    assert client.told == ["hold", "content", "terminal", error, (Outcome.COMPLETE, None, True, False)]
