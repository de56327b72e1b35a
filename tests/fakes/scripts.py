"""Ready-made scripts for the scripted upstream: whole answers, event streams with every kind of end, silence.

Each function returns a script, so a table of cases is a table of calls.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.fakes.upstream import Peer

Script = Callable[["Peer"], Awaitable[None]]
Pairs = Iterable[tuple[str | bytes, str | bytes]]
BodyFraming = Literal["chunked", "length", "close"]
End = Literal["clean", "fin", "rst", "hang"]

MISSING_BYTES = 1000
"""How much more than it sends a length-framed answer promises when it is to be cut."""
EVENT_STREAM: tuple[tuple[str, str], ...] = (("Content-Type", "text/event-stream; charset=utf-8"),)
JSON: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
LAST_CHUNK = b"0\r\n\r\n"


def head(status: int, headers: Pairs = (), *, reason: str = "Scripted", version: str = "HTTP/1.1") -> bytes:
    """Build a response head; str is written as Latin-1, bytes as they are."""
    lines = [f"{version} {status} {reason}".encode("latin-1")]
    lines += [_bytes(name) + b": " + _bytes(value) for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def respond(status: int = 200, headers: Pairs = JSON, body: bytes = b"") -> Script:
    """Answer with a body of known length; the connection stays open."""
    answer = head(status, [*headers, ("Content-Length", str(len(body)))]) + body

    async def script(peer: "Peer") -> None:
        await peer.send(answer)

    return script


def json_answer(value: object, status: int = 200, headers: Pairs = ()) -> Script:
    """Answer with JSON."""
    return respond(status, [*JSON, *headers], json.dumps(value).encode())


def error_answer(status: int, *, code: str | None = None, type: str = "server_error", headers: Pairs = ()) -> Script:
    """Answer with an error body in OpenAI's shape."""
    return json_answer({"error": {"message": f"scripted {status}", "type": type, "param": None, "code": code}}, status, headers)


def body(
    chunks: Sequence[bytes],
    *,
    status: int = 200,
    headers: Pairs = JSON,
    framing: BodyFraming = "chunked",
    end: End = "clean",
    pause: float = 0.0,
    version: str = "HTTP/1.1",
) -> Script:
    """Answer with a body in pieces, each one HTTP chunk and one write; `pause` seconds stand before each but the first.

    `clean` completes the framing (a close-delimited body by FIN, else the connection stays); `fin` and `rst` end it short; `hang`
    leaves it open and silent until the relay closes.
    """
    lines: list[tuple[str | bytes, str | bytes]] = list(headers)
    if framing == "chunked":
        lines.append(("Transfer-Encoding", "chunked"))
    elif framing == "length":
        lines.append(("Content-Length", str(sum(map(len, chunks)) + (0 if end == "clean" else MISSING_BYTES))))
    top = head(status, lines, version=version)

    async def script(peer: "Peer") -> None:
        await peer.send(top)
        for number, chunk in enumerate(chunks):
            await asyncio.sleep(pause if number else 0)
            await (peer.send_chunk(chunk) if framing == "chunked" else peer.send(chunk))
        await _end(peer, framing, end)

    return script


def sse(
    chunks: Sequence[bytes],
    *,
    framing: BodyFraming = "chunked",
    end: End = "clean",
    headers: Pairs = EVENT_STREAM,
    status: int = 200,
    pause: float = 0.0,
) -> Script:
    """Answer with an event stream; as `body`, with the content type of one."""
    return body(chunks, status=status, headers=headers, framing=framing, end=end, pause=pause)


def raw(*pieces: bytes, end: End = "clean", pause: float = 0.0) -> Script:
    """Write bytes exactly as given, one write each; `clean` keeps the connection open for the next request."""

    async def script(peer: "Peer") -> None:
        for number, piece in enumerate(pieces):
            await asyncio.sleep(pause if number else 0)
            await peer.send(piece)
        await _end(peer, "raw", end)

    return script


def hang() -> Script:
    """Take the request and never answer; ends when the relay closes."""
    return raw(end="hang")


def close() -> Script:
    """Take the request and close with a FIN, without one byte of an answer."""
    return raw(end="fin")


def reset() -> Script:
    """Take the request and reset the connection."""
    return raw(end="rst")


def in_turn(*scripts: Script) -> Script:
    """Answer the first request by the first script and so on; the last one stays."""
    left = list(scripts)

    async def script(peer: "Peer") -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(peer)

    return script


def after(seconds: float, then: Script) -> Script:
    """Wait before answering; a relay that leaves meanwhile ends the script."""

    async def script(peer: "Peer") -> None:
        try:
            async with asyncio.timeout(seconds):
                await peer.wait_closed()
        except TimeoutError:
            await then(peer)

    return script


async def _end(peer: "Peer", framing: str, end: End) -> None:
    match end:
        case "clean" if framing == "chunked":
            await peer.send(LAST_CHUNK)
        case "clean" if framing == "close":
            await peer.fin()
        case "clean":
            return
        case "fin":
            await peer.fin()
        case "rst":
            await peer.rst()
        case "hang":
            await peer.wait_closed()


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
