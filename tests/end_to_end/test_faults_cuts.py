"""A recorded stream, cut on real sockets wherever it can be cut, in every way: never a success before `data: [DONE]` has ended.

`make test` cuts around every event's borders and at every 16th byte, `make slow` at every byte. Whatever the upstream's framing, the
client gets an honest status or a stream without its terminal chunk, and the official SDK raises.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from itertools import accumulate
from typing import Any, Literal

import httpx2
import openai
import pytest

from tests.conftest import RelayWith
from tests.end_to_end.fault_bed import check_error_event
from tests.end_to_end.recorded import events_of, stream_bytes
from tests.end_to_end.sdk import Flavour, Sdk
from tests.fakes.client import Response
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import EVENT_STREAM, BodyFraming, head
from tests.fakes.upstream import Peer, ScriptedUpstream

How = Literal["fin", "rst"]
HOWS: tuple[How, ...] = ("fin", "rst")
FRAMINGS: tuple[BodyFraming, ...] = ("chunked", "length", "close")
STEP = 16
AT_ONCE = 24
"""Exchanges at the same time: enough to keep both processes busy."""
HONEST = {"upstream_truncated", "upstream_reset", "upstream_empty_response"}


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """One recorded stream; it is whole once `proof` bytes have come."""

    path: str
    data: bytes
    proof: int

    @property
    def events(self) -> list[bytes]:
        """Its events."""
        return events_of(self.data)

    @property
    def positions(self) -> list[int]:
        """Where it is cut: two bytes around every border, and every 16th byte."""
        borders = [0, *accumulate(map(len, self.events))]
        near = {border + offset for border in borders for offset in range(-2, 3)}
        return sorted(position for position in near | set(range(0, len(self.data), STEP)) if 0 <= position <= len(self.data))


CHAT_BYTES = stream_bytes("openai-chat-stream-text.sse")
RESPONSES_BYTES = stream_bytes("openai-responses-stream-text.sse")
CHAT = Recording("/v1/chat/completions", CHAT_BYTES, CHAT_BYTES.index(b"data: [DONE]\n") + len(b"data: [DONE]\n"))
RESPONSES = Recording("/v1/responses", RESPONSES_BYTES, len(RESPONSES_BYTES))
RECORDINGS = {"chat": CHAT, "responses": RESPONSES}


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """One cut; its name is the model that is asked for."""

    recording: str
    position: int
    how: How
    framing: BodyFraming

    @property
    def name(self) -> str:
        """The model that brings it about."""
        return f"{self.recording}:{self.position}:{self.how}:{self.framing}"

    @classmethod
    def parse(cls, name: str) -> "Cut":
        """Read a model's name."""
        recording, position, how, framing = name.split(":")
        return cls(recording, int(position), how, framing)  # type: ignore[arg-type]

    @property
    def is_proven(self) -> bool:
        """Whether the terminator has come before it."""
        return self.position >= RECORDINGS[self.recording].proof


async def cut_short(peer: Peer) -> None:
    """Answer with the recording up to the position that the model names, and end there; half events are half chunks."""
    cut = Cut.parse(peer.request.model or "")
    recording = RECORDINGS[cut.recording]
    framing = {"chunked": [("Transfer-Encoding", "chunked")], "length": [("Content-Length", str(len(recording.data) + 1))], "close": []}
    await peer.send(head(200, [*EVENT_STREAM, *framing[cut.framing]]))
    left = cut.position
    for event in recording.events:
        if left <= 0:
            break
        part = event[:left]
        left -= len(event)
        if cut.framing == "chunked":
            part = b"%x\r\n" % len(event) + part + (b"\r\n" if len(part) == len(event) else b"")
        await peer.send(part)
    await (peer.fin() if cut.how == "fin" else peer.rst())


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[RelayProcess]:
    """A relay in front of the upstream that cuts."""
    shared_upstream.answers(cut_short)
    relay = await shared_relay_with(config_for(shared_upstream))
    yield relay
    await relay.assert_identities()


async def take(relay: RelayProcess, cuts: Iterable[Cut], *, version: str = "HTTP/1.1") -> list[tuple[Cut, Response, dict[str, Any]]]:
    """Make every cut; return each with what the client got and what the log says."""
    places = asyncio.Semaphore(AT_ONCE)
    already = len(relay.logs("request"))

    async def one(cut: Cut) -> tuple[Cut, Response]:
        async with places, await relay.connect() as client:
            await client.post(RECORDINGS[cut.recording].path, {"model": cut.name, "stream": True}, version=version)
            return cut, await client.read_response()

    taken = await asyncio.gather(*map(one, cuts))
    lines = await relay.wait_log(count=already + len(taken), within=5)
    by_name = {line["model"]: line for line in lines[already:]}
    return [(cut, response, by_name[cut.name]) for cut, response in taken]


def check(cut: Cut, response: Response, line: dict[str, Any], *, broken_end: str = "cut") -> None:
    """Compare one cut's end with what may be."""
    data = RECORDINGS[cut.recording].data[: cut.position]
    if cut.is_proven:
        assert (line["outcome"], response.status, response.end) == ("complete", 200, "complete")
        assert response.body == data
        return
    if response.status != 200:
        assert (line["outcome"], response.status) == ("upstream_failed", 502)
        assert response.error_code in HONEST
        return
    assert line["outcome"] == "upstream_cut"
    assert response.end == broken_end, "a cut looked like a success"
    if broken_end == "rst":
        return
    is_at_border = data.endswith(b"\n\n")
    sent = response.body
    if is_at_border and len(sent) > len(data):
        sent = data
        event = response.body[len(data) :]
        # The Responses API names its events; what follows is the same.
        check_error_event(event.removeprefix(b"event: error\n").replace(b'{"type":"error",', b"{", 1), line["error_code"])
        assert event.startswith(b"event: error\n") == (cut.recording == "responses")
    assert data.startswith(sent)
    assert cut.how == "rst" or sent == data, "bytes that came were not passed on"


def every(recording: str, positions: Iterable[int]) -> list[Cut]:
    return [Cut(recording, position, how, framing) for position in positions for how in HOWS for framing in FRAMINGS]


@pytest.mark.parametrize("recording", list(RECORDINGS))
async def test_a_stream_that_is_cut_never_looks_whole(recording: str, relay: RelayProcess) -> None:
    taken = await take(relay, every(recording, RECORDINGS[recording].positions))
    for cut, response, line in taken:
        check(cut, response, line)
    outcomes = {line["outcome"] for _, _, line in taken}
    assert outcomes == {"complete", "upstream_cut", "upstream_failed"}, "the table has lost a part"


async def test_a_client_of_http_1_0_sees_a_reset(relay: RelayProcess) -> None:
    positions = CHAT.positions[::4]
    for cut, response, line in await take(relay, every("chat", positions), version="HTTP/1.0"):
        check(cut, response, line, broken_end="rst")


@pytest.mark.slow
@pytest.mark.parametrize("recording", list(RECORDINGS))
async def test_a_stream_that_is_cut_at_any_byte_never_looks_whole(recording: str, relay: RelayProcess) -> None:
    for start in range(0, len(RECORDINGS[recording].data) + 1, 200):
        stop = min(start + 200, len(RECORDINGS[recording].data) + 1)
        for cut, response, line in await take(relay, every(recording, range(start, stop))):
            check(cut, response, line)


SAMPLE = sorted({*CHAT.positions[::30], *range(CHAT.proof - 16, CHAT.proof + 2, 3), CHAT.proof - 1, CHAT.proof})


@pytest.mark.parametrize("flavour", ["sync", "async"])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_the_official_sdk_raises_on_every_cut(framing: BodyFraming, flavour: Flavour, relay: RelayProcess) -> None:
    async with Sdk(flavour, relay.url) as sdk:
        for position in SAMPLE:
            for how in HOWS:
                cut = Cut("chat", position, how, framing)
                call = sdk.items("chat.completions.create", model=cut.name, messages=[{"role": "user", "content": "hi"}])
                if cut.is_proven:
                    reasons = [choice.finish_reason for chunk in await call for choice in chunk.choices]
                    assert reasons[-1] == "stop"
                    continue
                with pytest.raises((openai.OpenAIError, httpx2.HTTPError)):
                    await call
