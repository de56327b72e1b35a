"""Starting: where it listens, what it says, what it does before the first request."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import RelayWith
from tests.fakes.certificates import Authority
from tests.fakes.client import RawClient, Response
from tests.fakes.events import chat_stream
from tests.fakes.ports import free_port
from tests.fakes.relay import ROOT, RelayProcess, config_for
from tests.fakes.scripts import sse
from tests.fakes.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
WITHIN = 10.0


class Started:
    """`relay` as a person starts it: in a folder of its own, without a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", stderr: Path) -> None:
        self.process = process
        self._stderr = stderr

    @property
    def said(self) -> str:
        return self._stderr.read_text()

    async def wait_said(self, text: str) -> None:
        deadline = time.monotonic() + WITHIN
        while text not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            await asyncio.sleep(0.02)


@contextmanager
def started(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Started]:
    stderr = folder / "stderr"
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), **(env or {})}
    with stderr.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "relay", *arguments], cwd=folder, env=environ, stderr=file)
    try:
        yield Started(process, stderr)
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()


async def ask(port: int, model: str, prompt: str) -> Response:
    async with await RawClient.open(port) as client:
        return await client.exchange(CHAT, {"model": model, "stream": True, "messages": [{"role": "user", "content": prompt}]})


async def test_relay_alone_streams_from_the_demo_upstream(tmp_path: Path) -> None:
    port = free_port()
    with started(tmp_path, env={"PORT": str(port)}) as relay:
        await relay.wait_said(f"http://127.0.0.1:{port}/v1")
        got = await ask(port, "demo-fast", "say: hello")
        assert (got.status, got.has_done, got.end) == (200, True, "complete")
        assert b"hello" in got.body
        assert "simulated" in relay.said or "demo" in relay.said
        os.kill(relay.process.pid, signal.SIGHUP)
        await relay.wait_said("no configuration file")
        assert (await ask(port, "demo-fast", "say: again")).has_done
        relay.process.terminate()
        assert relay.process.wait(10) == 0


async def test_listen_comes_before_port(tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    with started(tmp_path, "--listen", f"127.0.0.1:{port}", env={"PORT": str(other)}) as relay:
        await relay.wait_said(f"http://127.0.0.1:{port}/v1")
        with pytest.raises(ConnectionRefusedError):
            await RawClient.open(other)


async def test_port_that_is_taken_is_said_plainly(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(tmp_path, "--listen", f"127.0.0.1:{port}") as relay:
            assert relay.process.wait(WITHIN) == 1
            assert f"cannot listen on 127.0.0.1:{port}" in relay.said
            assert "--listen" in relay.said
            assert "Traceback" not in relay.said


async def test_metrics_port_that_is_taken_is_said_plainly(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        relay = RelayProcess(config_for(upstream, metrics={"listen": f"127.0.0.1:{port}"}), tmp_path)
        relay.launch()
        try:
            assert await relay.wait_exit() == 1
            assert f"cannot listen on 127.0.0.1:{port}" in relay.stderr()
            assert "Traceback" not in relay.stderr()
        finally:
            relay.kill()


async def test_first_stream_finds_a_connection_that_is_already_open(relay_with: RelayWith, authority: Authority) -> None:
    async with ScriptedUpstream(authority.server()) as tls:
        tls.answers(sse(chat_stream("a")))
        config = config_for(tls)
        config["upstreams"]["mine"]["ca_file"] = str(authority.file)
        relay = await relay_with(config)
        await tls.wait_open_count(1)
        await asyncio.sleep(0.1)
        for _ in range(3):
            assert (await relay.post(CHAT, {"model": "m", "stream": True})).end == "complete"
        assert tls.connection_count == 1
        metrics = await relay.metrics()
        assert metrics.sum("relay_upstream_connections") == 1


async def test_upstream_that_cannot_be_reached_does_not_keep_the_relay_from_starting(
    relay_with: RelayWith, authority: Authority, upstream: ScriptedUpstream
) -> None:
    config = config_for(upstream)
    config["upstreams"]["far"] = {"base_url": f"https://127.0.0.1:{free_port()}/v1", "api_key": "sk-x"}
    upstream.answers(sse(chat_stream("a")))
    relay = await relay_with(config)
    assert (await relay.get("/readyz")).status == 200
    assert (await relay.post(CHAT, {"model": "m", "stream": True})).has_done


async def test_certificate_file_that_is_none_is_a_connection_error_of_that_upstream_alone(
    relay_with: RelayWith, authority: Authority, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The file was good when it was checked, or nobody looked inside: the relay still serves everybody else."""
    rotten = tmp_path / "rotten.pem"
    rotten.write_text("-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n")
    async with ScriptedUpstream(authority.server()) as tls:
        config = config_for(upstream)
        config["upstreams"]["tls"] = {"base_url": tls.url, "api_key": "sk-x", "ca_file": str(rotten)}
        config["routes"]["tls/*"] = "tls/*"
        upstream.answers(sse(chat_stream("a")))
        relay = await relay_with(config)
        got = await relay.post(CHAT, {"model": "tls/m", "stream": True})
        assert (got.status, got.error_code) == (502, "upstream_tls_error")
        assert (await relay.post(CHAT, {"model": "m", "stream": True})).has_done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.parametrize("output", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
async def test_a_log_that_nobody_can_write_stops_no_relay(tmp_path: Path, output: str) -> None:
    port = free_port()
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PORT": str(port)}
    command = ["sh", "-c", f'exec "$@" {output}', "sh", sys.executable, "-m", "relay"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environ)
    try:
        deadline = time.monotonic() + WITHIN
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            with suppress(OSError):
                got = await ask(port, "demo-fast", "say: hello")
                break
            await asyncio.sleep(0.05)
        assert (got.status, got.has_done) == (200, True)
        process.terminate()
        assert process.wait(WITHIN) == 0
    finally:
        process.kill()
        process.wait()
