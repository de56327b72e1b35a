"""TLS over our own pair of buffers against a real server, on both loops: handshakes, large bodies both ways, and every end."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from relay.transport.tls import TlsLink
from tests.fakes.certificates import Authority

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
MEBIBYTE = 2**20


class Collecting(asyncio.Protocol):
    """The protocol above the link: it keeps what comes, and when something changes it tells."""

    def __init__(self) -> None:
        self.transport: TlsLink | None = None
        self.data = bytearray()
        self.made = 0
        self.losses: list[Exception | None] = []
        self.pauses: list[str] = []
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsLink)
        self.transport = transport
        self.made += 1

    def data_received(self, data: bytes) -> None:
        assert data
        self.data += data
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.losses.append(exc)
        self.changed.set()

    def pause_writing(self) -> None:
        self.pauses.append("pause")

    def resume_writing(self) -> None:
        self.pauses.append("resume")
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5.0):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run a coroutine function on each loop; nothing may be left for the loop to complain about."""

    def run_on(case: Callable[[], Awaitable[None]]) -> None:
        complaints: list[object] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            await case()
            # The server's side ends in its own time, and would be cancelled with the loop.
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:
                await asyncio.wait(others, timeout=5.0)
            await asyncio.sleep(0.02)

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main())
        assert complaints == []

    return run_on


async def serve(handler: Handler, context: ssl.SSLContext | None) -> asyncio.Server:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    return await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=context, limit=MEBIBYTE)


async def connect(server: asyncio.Server, context: ssl.SSLContext, name: str = "localhost") -> tuple[TlsLink, Collecting]:
    protocol = Collecting()
    link = TlsLink(context, name, protocol)
    port = server.sockets[0].getsockname()[1]
    await asyncio.get_running_loop().create_connection(lambda: link, "127.0.0.1", port)
    async with asyncio.timeout(5.0):
        await link.ready
    return link, protocol


def test_bytes_go_both_ways(run: Callable[..., None], authority: Authority) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def case() -> None:
        server = await serve(echo, authority.server())
        link, protocol = await connect(server, authority.client())
        assert (protocol.made, protocol.transport) == (1, link)
        for number in range(20):
            link.write(b"%03d" % number)
            await protocol.until(lambda: len(protocol.data) == 3 * (number + 1))  # waited for in the same turn
        assert protocol.data == b"".join(b"%03d" % number for number in range(20))
        assert not link.is_closing()
        link.abort()
        await protocol.until(lambda: bool(protocol.losses))
        assert link.is_closing()
        link.write(b"late")
        link.pause_reading()
        link.resume_reading()
        assert link.get_write_buffer_size() == 0
        server.close()

    run(case)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_large_bodies_go_both_ways(run: Callable[..., None], authority: Authority, version: ssl.TLSVersion) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await reader.readexactly(8 * MEBIBYTE)
        writer.write(body)
        await writer.drain()

    async def case() -> None:
        context = authority.server()
        context.maximum_version = version
        server = await serve(echo, context)
        link, protocol = await connect(server, authority.client())
        body = bytes(range(256)) * (8 * MEBIBYTE // 256)
        for start in range(0, len(body), MEBIBYTE):
            link.write(body[start : start + MEBIBYTE])
        await protocol.until(lambda: len(protocol.data) >= len(body) or bool(protocol.losses))
        assert protocol.data == body
        assert protocol.pauses[:1] == ["pause"] and protocol.pauses[-1] == "resume"
        link.abort()
        await protocol.until(lambda: bool(protocol.losses))
        server.close()

    run(case)


def test_a_paused_link_delivers_no_more_and_then_all(run: Callable[..., None], authority: Authority) -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        for _ in range(32):
            writer.write(b"x" * MEBIBYTE)
            await writer.drain()
        writer.write(b"end")
        await reader.read()

    async def case() -> None:
        server = await serve(pour, authority.server())
        link, protocol = await connect(server, authority.client())
        link.write(b"!")
        await protocol.until(lambda: len(protocol.data) > 0)
        link.pause_reading()
        held = len(protocol.data)
        await asyncio.sleep(0.05)
        assert len(protocol.data) == held
        link.resume_reading()
        await protocol.until(lambda: protocol.data.endswith(b"end"))
        assert len(protocol.data) == 32 * MEBIBYTE + 3
        link.abort()
        await protocol.until(lambda: bool(protocol.losses))
        server.close()

    run(case)


def test_the_servers_goodbye_is_a_clean_end_after_all_that_it_said(run: Callable[..., None], authority: Authority) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * MEBIBYTE)
        await writer.drain()

    async def case() -> None:
        server = await serve(speak, authority.server())
        _, protocol = await connect(server, authority.client())
        await protocol.until(lambda: bool(protocol.losses))
        assert len(protocol.data) == MEBIBYTE
        assert protocol.losses == [None]
        server.close()

    run(case)


def test_a_reset_is_told_as_one(run: Callable[..., None], authority: Authority) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def case() -> None:
        server = await serve(reset, authority.server())
        link, protocol = await connect(server, authority.client())
        await protocol.until(lambda: protocol.data == b"hello")
        link.write(b"!")
        await protocol.until(lambda: bool(protocol.losses))
        assert isinstance(protocol.losses[0], ConnectionResetError)
        server.close()

    run(case)


def test_garbage_in_the_middle_is_an_end_told_once(run: Callable[..., None], authority: Authority) -> None:
    async def garble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.readexactly(1)
        with writer.get_extra_info("socket").dup() as sock:
            sock.send(b"\x17\x03\x03\x00\x05wrong")
        await reader.read()

    async def case() -> None:
        server = await serve(garble, authority.server())
        link, protocol = await connect(server, authority.client())
        await protocol.until(lambda: protocol.data == b"hello")
        link.write(b"!")
        await protocol.until(lambda: bool(protocol.losses))
        await asyncio.sleep(0.02)
        assert len(protocol.losses) == 1
        assert protocol.data == b"hello"
        server.close()

    run(case)


def test_a_certificate_for_another_host_fails_the_handshake(run: Callable[..., None], authority: Authority) -> None:
    """F4."""

    async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def case() -> None:
        server = await serve(idle, authority.server("elsewhere.example"))
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # the server's side complains
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(server, authority.client())
        server.close()

    run(case)


def test_a_server_that_leaves_during_the_handshake_fails_it(run: Callable[..., None], authority: Authority) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    async def case() -> None:
        server = await serve(leave, None)
        with pytest.raises(ConnectionError):
            await connect(server, authority.client())
        server.close()

    run(case)


def test_a_server_that_does_not_speak_tls_fails_the_handshake(run: Callable[..., None], authority: Authority) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async def case() -> None:
        server = await serve(speak, None)
        with pytest.raises(ssl.SSLError):
            await connect(server, authority.client())
        server.close()

    run(case)
