"""The composition root: makes every part, starts them, drains and stops them.

SIGTERM: not ready, no new connections, streams may finish for `server.drain`, the rest get an error event; a second
signal stops at once. SIGHUP: a new configuration is built whole and swapped in, or refused whole.
"""

import asyncio
import contextlib
import random
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from time import monotonic, time
from typing import Any

from relay import __version__
from relay.attempt import Attempting
from relay.catalog import Catalog
from relay.config.listening import needs_keys
from relay.config.tree import Config, Kind, Server, Target, Timeouts, Upstream
from relay.errors import ConnectFailed
from relay.exchange import Headers, Outcome, header
from relay.forward import Forwarder
from relay.gateway import Gateway, Snapshot
from relay.policy.routing import Router
from relay.policy.targets import Targets
from relay.providers.openai import OpenAIProvider
from relay.stream import HoldBudget
from relay.telemetry.logs import LogWriter, RequestLog, make_logger, make_request_line
from relay.telemetry.metrics import Metrics
from relay.telemetry.observers import Observers
from relay.transport.credentials import Credentials
from relay.transport.demo import DemoServer
from relay.transport.downstream import Downstream, Page
from relay.transport.fetch import fetch
from relay.transport.listener import Incoming, RelayServer, Sent
from relay.transport.upstream import UpstreamPools

BACKLOG = 2048
SEND_BUFFER = 256 * 2**10
"""Kernel's share of what waits for a slow client; the default lets megabytes pile up."""
FAST_EXIT_SECONDS = 1.0
FIXED_SETTINGS = ("max_header", "max_connections", "cors_origins", "trusted_proxies", "loop")
"""Settings of `server` that the listeners were made with."""

Reload = Callable[[], Config]


class Running:
    """The attempts under way."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: set[Attempting] = set()

    def begin(self, run: Attempting) -> None:
        """Count an attempt in."""
        self._runs.add(run)

    def end(self, run: Attempting) -> None:
        """Count an attempt out."""
        self._runs.discard(run)

    def cut_all(self, outcome: Outcome, code: str) -> None:
        """End every attempt."""
        for run in list(self._runs):
            run.cut(outcome, code)


class App:
    """One relay."""

    def __init__(self, config: Config, *, reload: Reload | None, log_file: Any = None) -> None:
        self._reload = reload
        self._writer = LogWriter(log_file or sys.stderr.buffer)
        is_terminal = (log_file or sys.stderr).isatty()
        self._log = make_logger(self._writer, is_terminal=is_terminal)
        self._request_log = RequestLog(self._log, make_request_line(self._writer, self._log, is_terminal=is_terminal))
        self._config = config
        self._bound = config.server
        """What was in force when the listeners were made: a reload cannot change it."""
        self._bound_metrics = config.metrics
        self._credentials = Credentials()
        self._pools = UpstreamPools()
        self._running = Running()
        self._targets = Targets()
        self._targets.know(config)
        self._metrics = Metrics(
            config,
            __version__,
            connections=self._pools.counts,
            dropped=lambda: self._writer.dropped,
            standings=lambda: [(target.name, target.health.value) for target in self._targets.standings(monotonic())],
        )
        self._demo: DemoServer | None = None
        self._demo_url = ""
        self._gateway: Gateway | None = None
        self._sockets: list[socket.socket] = []
        self._servers: list[tuple[RelayServer, asyncio.Server]] = []
        """The API's first, then the one that only tells about the process, which stays open while streams finish."""
        self._stopping = asyncio.Event()
        self._is_hurried = False
        self._is_reloading = False
        self._is_reload_wanted = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen; return the address to use. Raises OSError when the address cannot be had."""
        config = self._config
        sock = _listen(config.server.host, config.server.port)
        await self._start_demo(config)
        forwarder = Forwarder(self._pools, self._running, HoldBudget(), self._targets, random.random)
        self._gateway = Gateway(
            self._snapshot(config),
            forwarder,
            Observers((self._metrics, self._request_log)),
            targets=self._targets,
            chance=random.random,
            credential=self._credentials.current,
            make_id=lambda: secrets.token_hex(16),
        )
        pages: dict[str, Page] = {"/": self._root_page, "/healthz": self._health_page, "/readyz": self._ready_page}
        own = None if config.metrics.host is None else _listen(config.metrics.host, config.metrics.port)
        if own is None:
            pages["/metrics"] = self._metrics_page
        await self._serve(sock, pages, config.server, is_api=True)
        if own is not None:
            await self._serve(own, {**pages, "/metrics": self._metrics_page}, config.server, is_api=False)
        self._metrics.loaded(is_good=True, unix_time=time())
        self._tell_about(config)
        self._spawn(self._warm_up(config))
        host, port = sock.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def _serve(self, sock: socket.socket, pages: dict[str, Page], settings: Server, *, is_api: bool) -> None:
        assert self._gateway is not None
        downstream = Downstream(self._gateway, settings, pages, is_api=is_api)
        server = RelayServer(_handler(downstream), max_connections=_max_connections(settings), on_failure=self._on_failure)
        listener = await asyncio.get_running_loop().create_server(server, sock=sock, backlog=BACKLOG)
        self._servers.append((server, listener))

    async def _start_demo(self, config: Config) -> None:
        if self._demo is None and any(upstream.kind is Kind.DEMO for upstream in config.upstreams.values()):
            self._demo = DemoServer()
            self._demo_url = await self._demo.start()

    def _snapshot(self, config: Config) -> Snapshot:
        config = _with_demo(config, self._demo_url)
        return Snapshot(
            config=config,
            router=Router(config.routes, config.default_model),
            providers={name: OpenAIProvider(upstream) for name, upstream in config.upstreams.items()},
            total_seconds=max((route.timeouts.total for route in config.routes.values()), default=Timeouts().total),
            catalog=Catalog(config, lambda upstream, path: fetch(self._pools, upstream, path, self._credentials.current)),
        )

    async def _warm_up(self, config: Config) -> None:
        """Open a first connection to each remote upstream, so that the first stream does not pay for DNS and TLS."""
        for upstream in config.upstreams.values():
            if upstream.base_url.startswith("https://"):
                with contextlib.suppress(ConnectFailed):  # the first request will say so
                    await self._pools.pool(upstream).warm_up(upstream.timeouts.connect)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Pages

    def _root_page(self, headers: Headers) -> tuple[int, bytes, bytes]:
        return 200, b"text/plain; charset=utf-8", b"relay: point an OpenAI SDK's base_url at /v1 of this address.\n"

    def _health_page(self, headers: Headers) -> tuple[int, bytes, bytes]:
        return 200, b"application/json", b'{"status":"ok"}'

    def _ready_page(self, headers: Headers) -> tuple[int, bytes, bytes]:
        if self._stopping.is_set():
            return 503, b"application/json", b'{"status":"draining"}'
        return 200, b"application/json", b'{"status":"ready"}'

    async def _metrics_page(self, headers: Headers) -> tuple[int, bytes, bytes]:
        content_type, slices = self._metrics.render((header(headers, b"accept") or b"").decode("latin-1"))
        page = []
        for piece in slices:
            page.append(piece)
            await asyncio.sleep(0)  # streams go on between two slices
        return 200, content_type, b"".join(page)

    def _on_failure(self, error: object) -> None:
        self._log.error("connection_failure", error=type(error).__name__)

    # Life

    def stop(self) -> None:
        """Begin to drain; a second call ends everything at once."""
        self._is_hurried = self._stopping.is_set()
        self._stopping.set()

    def reload(self) -> None:
        """Swap in a new configuration, or keep the old one and say why."""
        if self._reload is None:
            self._log.warning("reload", message="there is no configuration file to read again")
            return
        self._is_reload_wanted = True
        if not self._is_reloading:
            self._is_reloading = True
            self._spawn(self._reload_all(self._reload))

    async def _reload_all(self, reload: Reload) -> None:
        """Reload until nobody asked again meanwhile: one at a time, so that the newest file wins."""
        while self._is_reload_wanted:
            self._is_reload_wanted = False
            await self._reload_now(reload)
        self._is_reloading = False

    async def _reload_now(self, reload: Reload) -> None:
        assert self._gateway is not None
        try:
            config = await asyncio.to_thread(reload)
            await self._start_demo(config)
            snapshot = self._snapshot(config)
        except Exception as error:  # whatever is wrong with the new file, the old configuration stays
            self._metrics.loaded(is_good=False, unix_time=time())
            self._log.error("reload", message=str(error), result="refused")
            return
        # What counts is where the relay listens now, not where the new file would have it listen.
        exposed = needs_keys((self._bound.host, self._bound.port), has_keys=bool(config.keys))
        if exposed is not None:
            self._metrics.loaded(is_good=False, unix_time=time())
            self._log.error("reload", message=exposed, result="refused")
            return
        self._tell_about(config)
        self._pools.forget_trust()
        self._config = config
        self._metrics.know(config)
        self._targets.know(config)
        self._gateway.snapshot = snapshot
        self._metrics.loaded(is_good=True, unix_time=time())
        self._log.info("reload", result="ok", routes=len(config.routes), upstreams=len(config.upstreams))

    def _tell_about(self, config: Config) -> None:
        """Log what a person should know of a new configuration, above all what of it has no effect before a restart."""
        for warning in config.warnings:
            self._log.warning("configuration", message=warning)
        fixed = [f"server.{name}" for name in FIXED_SETTINGS if getattr(config.server, name) != getattr(self._bound, name)]
        if (config.server.host, config.server.port) != (self._bound.host, self._bound.port):
            fixed.append("server.listen")
        if (config.metrics.host, config.metrics.port) != (self._bound_metrics.host, self._bound_metrics.port):
            fixed.append("metrics.listen")
        if fixed:
            self._log.warning("reload", message=f"{', '.join(fixed)} cannot change while the relay runs; restart it")

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        await self._stopping.wait()
        assert self._gateway is not None
        self._gateway.is_draining = True
        server, listener = self._servers[0]
        listener.close()
        server.retire()
        await self._idle_for(self._config.server.drain, lambda: self._is_hurried)
        self._running.cut_all(Outcome.DRAINED, "server_shutting_down")
        await self._idle_for(FAST_EXIT_SECONDS, lambda: False)

    async def _idle_for(self, seconds: float, is_enough: Callable[[], bool]) -> None:
        """Wait until nothing is in flight and every answer has left, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (self._metrics.in_flight or self._servers[0][0].has_unsent) and not is_enough():  # noqa: ASYNC110  # once in a life
                    await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Close whatever is open."""
        for server, listener in self._servers:
            listener.close()
            await server.shutdown(FAST_EXIT_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        self._pools.close()
        if self._demo is not None:
            await self._demo.stop()
        await asyncio.sleep(0)
        self._writer.close()


def run(config: Config, *, reload: Reload | None, announce: Callable[[str], None]) -> int:
    """Serve `config` until a signal ends it; call `announce` with the address once it listens. Returns an exit code."""
    with asyncio.Runner(loop_factory=_loop_factory(config.server.loop)) as runner:
        return runner.run(_main(config, reload, announce))


async def _main(config: Config, reload: Reload | None, announce: Callable[[str], None]) -> int:
    app = App(config, reload=reload)
    try:
        try:
            url = await app.start()
        except OSError as error:
            sys.stderr.write(_listen_message(config, error))
            return 1
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, app.stop)
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        announce(url)
        await app.run()
        return 0
    finally:
        await app.close()


def _handler(downstream: Downstream) -> Callable[[Incoming], Any]:
    async def handle(incoming: Incoming) -> Sent:
        return await downstream.handle(incoming)

    return handle


def _with_demo(config: Config, url: str) -> Config:
    """Give the demo upstream its address, in the upstreams and in every target."""
    demos: dict[str, Upstream] = {
        name: replace(upstream, base_url=url) for name, upstream in config.upstreams.items() if upstream.kind is Kind.DEMO
    }
    if not demos:
        return config

    def reached(targets: tuple[Target, ...]) -> tuple[Target, ...]:
        return tuple(replace(target, upstream=demos.get(target.upstream.name, target.upstream)) for target in targets)

    routes = {
        name: replace(route, targets=reached(route.targets), fallbacks=reached(route.fallbacks)) for name, route in config.routes.items()
    }
    return replace(config, upstreams={**config.upstreams, **demos}, routes=routes)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
    return sock


def _max_connections(server: Server) -> int:
    if server.max_connections is not None:
        return server.max_connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft // 2, 16)


def _listen_message(config: Config, error: OSError) -> str:
    is_main = error.filename == f"{config.server.host}:{config.server.port}"
    other = "relay serve --listen 127.0.0.1:8081" if is_main else "`metrics: {listen: ...}` in the configuration"
    return (
        f"relay: cannot listen on {error.filename or 'a loopback port for the demo upstream'}: {error.strerror}\n"
        f"Another program may be using the port; see `ss -ltnp`, or choose another one: {other}\n"
    )


def _loop_factory(wanted: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if wanted == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if wanted == "uvloop":
            raise
        return None
    return uvloop.new_event_loop
