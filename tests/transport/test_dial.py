"""Connecting: which addresses may be called, which names, and what each failure is."""

import asyncio
import socket
import ssl
from collections.abc import Callable

import pytest

from relay.config.tree import Upstream
from relay.errors import ConnectFailed, ConnectFault
from relay.transport import dial
from relay.transport.dial import Dialer, is_allowed, names_private
from tests.fakes.certificates import Authority
from tests.fakes.ports import free_port
from tests.fakes.upstream import ScriptedUpstream
from tests.transport.doubles import FakeHome

NEVER = [
    "169.254.169.254",
    "169.254.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "fe80::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "::",
    "::ffff:0.0.0.0",
    "224.0.0.1",
    "ff02::1",
    "100.100.100.200",
    "::ffff:100.100.100.200",
    "192.0.0.192",
    "fd00:ec2::254",
]
PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "198.18.0.1",
    "0.1.2.3",
    "fd00::1",
    "fc00::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "2001:db8::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("is_private_allowed", [False, True])
def test_metadata_link_local_and_no_addresses_are_never_called(address: str, is_private_allowed: bool) -> None:
    """A27."""
    assert not is_allowed(address, is_private_allowed=is_private_allowed)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_called_where_they_are_allowed(address: str) -> None:
    """A27."""
    assert not is_allowed(address, is_private_allowed=False)
    assert is_allowed(address, is_private_allowed=True)


@pytest.mark.parametrize("address", PUBLIC)
@pytest.mark.parametrize("is_private_allowed", [False, True])
def test_public_addresses_are_called(address: str, is_private_allowed: bool) -> None:
    assert is_allowed(address, is_private_allowed=is_private_allowed)


@pytest.mark.parametrize(
    ("host", "is_private"),
    [
        ("localhost", True),
        ("ollama", True),
        ("127.0.0.1", True),
        ("10.0.0.5", True),
        ("::1", True),
        ("a.localhost", True),
        ("printer.local", True),
        ("host.docker.internal", True),
        ("vllm.models.svc", True),
        ("vllm.models.svc.cluster.local", True),
        ("api.openai.com", False),
        ("localhost.example.com", False),
        ("internal.example.com", False),
        ("notlocal", True),
        ("evil-local.com", False),
    ],
)
def test_a_host_says_itself_whether_it_is_local(host: str, is_private: bool) -> None:
    assert names_private(host) is is_private


def resolving_to(*addresses: str) -> Callable[..., object]:
    async def getaddrinfo(host: str, port: int, **options: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)) for address in addresses]

    return getaddrinfo


async def fault_of(upstream: Upstream, seconds: float = 2.0) -> ConnectFault:
    home = FakeHome()
    with pytest.raises(ConnectFailed) as caught:
        await Dialer(upstream, {}).dial(home, seconds)
    return caught.value.fault


async def test_a_public_name_that_leads_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A27."""
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolving_to("127.0.0.1", "169.254.169.254"))
    port = free_port()
    public = f"http://api.example.com:{port}/v1"
    assert await fault_of(Upstream(name="x", base_url=public)) is ConnectFault.FORBIDDEN
    assert await fault_of(Upstream(name="x", base_url=public, allow_private=True)) is ConnectFault.REFUSED


async def test_a_local_name_that_leads_to_a_metadata_service_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A27."""
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolving_to("169.254.169.254"))
    assert await fault_of(Upstream(name="x", base_url="http://metadata.google.internal/v1", allow_private=True)) is ConnectFault.FORBIDDEN


async def test_a_name_that_does_not_resolve_is_told_so() -> None:
    """F3."""
    assert await fault_of(Upstream(name="x", base_url="http://nowhere.invalid/v1")) is ConnectFault.DNS


async def test_an_old_answer_serves_while_the_resolver_fails_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(dial, "monotonic", lambda: clock[0])
    loop = asyncio.get_running_loop()
    calls = []

    async def broken(host: str, port: int, **options: object) -> list[object]:
        calls.append(host)
        raise socket.gaierror(-3, "later")

    dialer = Dialer(Upstream(name="x", base_url="http://localhost:1/v1"), {})
    monkeypatch.setattr(loop, "getaddrinfo", resolving_to("127.0.0.1"))
    assert len(await dialer._resolve()) == 1
    monkeypatch.setattr(loop, "getaddrinfo", broken)
    clock[0] += dial.DNS_SECONDS - 1
    assert await dialer._resolve() and calls == []
    clock[0] += 2
    assert await dialer._resolve() and len(calls) == 1
    clock[0] += dial.DNS_STALE_SECONDS
    with pytest.raises(ConnectFailed) as caught:
        await dialer._resolve()
    assert caught.value.fault is ConnectFault.DNS


async def test_a_closed_port_is_refused() -> None:
    """F1."""
    assert await fault_of(Upstream(name="x", base_url=f"http://127.0.0.1:{free_port()}/v1")) is ConnectFault.REFUSED


async def test_a_listener_that_never_accepts_runs_into_the_time() -> None:
    """F2."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        fault = await fault_of(Upstream(name="x", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1"), 0.05)
        for filler in fillers:
            filler.close()
    assert fault is ConnectFault.TIMEOUT


async def test_certificates_for_another_host_expired_or_of_strangers_are_refused(authority: Authority) -> None:
    """F4."""
    ca_file = str(authority.file)
    cases = [(authority.server("elsewhere.example"), ca_file), (authority.server(expired=True), ca_file), (authority.server(), None)]
    for context, trusted in cases:
        async with ScriptedUpstream(tls=context) as upstream:
            assert await fault_of(Upstream(name="x", base_url=upstream.url, ca_file=trusted)) is ConnectFault.TLS


async def test_plain_http_where_tls_was_expected_is_a_tls_fault() -> None:
    async with ScriptedUpstream() as upstream:
        assert await fault_of(Upstream(name="x", base_url=upstream.url.replace("http:", "https:"))) in (
            ConnectFault.TLS,
            ConnectFault.REFUSED,
            ConnectFault.TIMEOUT,
        )


async def test_a_good_certificate_makes_a_connection(authority: Authority) -> None:
    async with ScriptedUpstream(tls=authority.server()) as upstream:
        connection = await Dialer(Upstream(name="x", base_url=upstream.url, ca_file=str(authority.file)), {}).dial(FakeHome(), 2.0)
        assert connection.is_usable
        connection.discard()
        await asyncio.sleep(0.01)
        assert connection.is_lost


async def test_who_gives_up_while_connecting_leaves_no_socket_behind() -> None:
    loop = asyncio.get_running_loop()
    begun, gone = asyncio.Event(), asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        begun.set()
        await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dialer = Dialer(Upstream(name="x", base_url=f"https://127.0.0.1:{port}/v1"), {})
    task = loop.create_task(dialer.dial(FakeHome(), 5.0))
    async with asyncio.timeout(5.0):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
    server.close()


@pytest.mark.parametrize(
    ("answer", "is_through"), [(b"HTTP/1.1 200 Connected\r\nX: y\r\n\r\n", True), (b"HTTP/1.1 407 No\r\n\r\n", False), (b"", False)]
)
async def test_a_proxy_is_asked_for_a_tunnel(answer: bytes, is_through: bool) -> None:
    asked: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if is_through:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    upstream = Upstream(name="x", base_url="http://api.example.com/v1", proxy=proxy)
    if is_through:
        connection = await Dialer(upstream, {}).dial(FakeHome(), 2.0)
        connection.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.05)
        connection.discard()
    else:
        assert await fault_of(upstream) is ConnectFault.REFUSED
    assert asked[0] == b"CONNECT api.example.com:80 HTTP/1.1\r\nHost: api.example.com:80\r\n\r\n"
    assert asked[1:] == ([b"GET / HTTP/1.1\r\n\r\n"] if is_through else [])
    server.close()


def test_tls_is_modern_and_does_not_renegotiate(authority: Authority) -> None:
    context = dial._tls_context(str(authority.file))
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED
    assert context.options & ssl.OP_NO_RENEGOTIATION
