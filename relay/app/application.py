"""One relay: its parts put together, and its life from start over drain to stop.

SIGTERM: not ready, no new connections, streams may finish for `server.drain`, the rest get an error event; a second
signal stops at once. SIGHUP: a new configuration is built whole and swapped in, or refused whole.
"""

import asyncio
import contextlib
import random
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from time import monotonic, time
from typing import Any, Final

from relay import __version__
from relay.app.accounts import Accounts
from relay.app.admin import Admin
from relay.app.checks import HealthChecks
from relay.app.crew import Crew
from relay.app.desk import Desk, Order, log_fields
from relay.app.keywatch import KeyWatch
from relay.app.listening import listen, max_connections, serve, url_of
from relay.app.pages import Pages
from relay.app.reloading import Read, Reloads, fixed_changes
from relay.app.running import Running
from relay.app.tracing import spans_for, unix_offset
from relay.config.addresses import is_loopback
from relay.config.listening import needs_keys
from relay.config.stored import with_stored
from relay.config.tree import Config, HealthCheck, Key, Kind, Target, Timeouts, Upstream, Usage
from relay.errors import ConnectFailed
from relay.exchange import Outcome
from relay.forward import Forwarder
from relay.forward.turns import Turns
from relay.gateway import Gateway
from relay.gateway.catalog import Catalog
from relay.gateway.planning import Snapshot
from relay.policy.routing import Router
from relay.policy.slots import AllSlots
from relay.policy.targets import Targets
from relay.providers.openai import OpenAIProvider
from relay.stores import SLOTS_IDENTITY, TOKENS_IDENTITY
from relay.stream import HoldBudget
from relay.telemetry.exemplars import Exemplars
from relay.telemetry.lag import LagTimer, Lateness
from relay.telemetry.libraries import LibraryLog
from relay.telemetry.logs import LogWriter, RequestLog, make_logger, make_request_line
from relay.telemetry.metrics import Metrics
from relay.telemetry.observers import Observers
from relay.telemetry.prompts import PromptLog
from relay.telemetry.usage import UsageLog
from relay.transport.credentials import Credentials
from relay.transport.demo import DemoServer
from relay.transport.downstream import Downstream, Page
from relay.transport.fetch import ask_health, fetch
from relay.transport.listener import RelayServer
from relay.transport.upstream import UpstreamPools
from relay.usage import UsageLedger

FAST_EXIT_SECONDS: Final = 1.0


class App:
    """One relay."""

    def __init__(self, config: Config, *, reload: Read | None, log_file: Any = None, crew: Crew | None = None) -> None:
        """Make a relay, one of several when it has a `crew`; it reads its configuration again with `reload`."""
        self._crew = crew
        worker = None if crew is None else crew.index
        self._writer = LogWriter(log_file or sys.stderr.buffer, is_shared=crew is not None)
        is_terminal = (log_file or sys.stderr).isatty()
        self._log = make_logger(self._writer, is_terminal=is_terminal, worker=worker)
        self._request_log = RequestLog(self._log, make_request_line(self._writer, self._log, is_terminal=is_terminal, worker=worker))
        self._libraries = LibraryLog(self._log)
        self._config = self._bound = config
        """What was in force when the listeners were made: a reload cannot change it."""
        self._credentials = Credentials()
        self._pools = UpstreamPools(lambda upstream, seconds: self._metrics.connected(upstream, seconds))
        self._running = Running()
        self._targets = Targets()
        self._targets.know(config)
        self._turns = Turns(AllSlots())
        self._turns.slots.know(config)
        self._metrics = self._counting(config)
        self._usage = None if config.usage is None else _usage_log(config.usage, self._log)
        self._spans = spans_for(config.tracing, self._log)
        exemplars = None if self._spans is None or crew is not None else Exemplars(self._metrics.registry, clock=unix_offset)
        prompts = PromptLog(self._writer, worker=worker) if config.logs_prompts else None
        observers = (self._metrics, self._request_log, self._usage, self._spans, exemplars, prompts)
        self._observers = Observers(each for each in observers if each is not None)
        self._accounts: Accounts | None = None
        self._lateness = Lateness()
        self._lag: LagTimer | None = None
        self._checks = HealthChecks(self._ask_health, self._targets, self._log, random.random)
        self.desk = Desk(config, self._targets, self._turns.slots)
        self._demo: DemoServer | None = None
        self._demo_url = ""
        self._gateway: Gateway | None = None
        self._servers: list[tuple[RelayServer, asyncio.Server]] = []
        """The API's first, then the one that only tells about the process, which stays open while streams finish."""
        self._stopping = asyncio.Event()
        self._is_hurried = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._pages = Pages(self._metrics, self._stopping.is_set, self._are_limits_degraded, crew)
        self._reloads = Reloads(reload, self._change, self._refused, self._log)
        self._key_watch = KeyWatch(self._use_keys, self._log)

    def _counting(self, config: Config) -> Metrics:
        """Return metrics that ask the other parts for what those count."""
        return Metrics(
            config,
            __version__,
            connections=self._pools.counts,
            dropped=lambda: self._writer.dropped,
            queued=lambda: self._turns.queued,
            standings=lambda: [(target.name, target.health.value) for target in self._targets.standings(monotonic())],
            credentials=lambda: self._targets.credentials(monotonic()),
            spans_dropped=lambda: 0 if self._spans is None else self._spans.dropped,
            usage_dropped=lambda: 0 if self._usage is None else self._usage.dropped,
            shares=lambda: self._accounts.shares() if self._accounts is not None else (),
            reserved=lambda: self._accounts.reserved() if self._accounts is not None else {},
            limits_degraded=self._are_limits_degraded,
            identities=(SLOTS_IDENTITY, TOKENS_IDENTITY),
        )

    async def start(self) -> str:
        """Listen; return the address to use. Raises OSError when the address cannot be had."""
        self._libraries.open()
        config = self._config = await asyncio.to_thread(self._key_watch.refreshed, self._config)
        directory = config.state_dir or (None if self._crew is None else self._crew.directory)
        self._accounts = Accounts(directory, config.redis, self._log, self._on_limits_change)
        await self._accounts.start(self._turns.slots)
        sock = listen(config.server.host, config.server.port, is_shared=self._crew is not None)
        await self._start_demo(config)
        forwarder = Forwarder(self._pools, self._running, HoldBudget(), self._targets, self._turns, random.random)
        self._gateway = Gateway(
            self._snapshot(config),
            forwarder,
            self._observers,
            targets=self._targets,
            limiter=self._accounts.ledger,
            chance=random.random,
            credential=self._credentials.current,
            make_id=_ids(),
            lateness=self._lateness.between,
            sample=0.0 if self._spans is None else config.tracing.sample,
            siblings=self._crew,
        )
        has_own = config.metrics.host is not None
        own = listen(config.metrics.host, config.metrics.port) if config.metrics.host is not None and self._crew is None else None
        await self._serve(sock, self._pages.by_path(has_metrics=not has_own), self._gateway)
        if own is not None:
            await self._serve(own, self._pages.by_path(has_metrics=True), None)
        self._metrics.loaded(is_good=True, unix_time=time())
        self._lag = LagTimer(self._lateness, self._metrics.lagged)
        self._tell_about(config)
        self._key_watch.follow(config.key_store)
        self._spawn(self._warm_up(config))
        self._checks.know(config)
        self._spawn(self._accounts.watch(lambda: self._metrics.in_flight, self._observers.violated))
        return url_of(sock)

    def _on_limits_change(self, are_degraded: bool) -> None:
        if self._crew is not None:
            self._crew.limits_changed(are_degraded=are_degraded)

    def _are_limits_degraded(self) -> bool:
        return self._accounts is not None and self._accounts.is_degraded

    async def _serve(self, sock: socket.socket, pages: dict[str, Page], gateway: Gateway | None) -> None:
        settings = self._bound.server
        limit = max_connections(settings, 1 if self._crew is None else self._crew.total)
        # Whoever can see the numbers of the process from its own machine may also steer it.
        has_admin = "/metrics" in pages and is_loopback(sock.getsockname()[0])
        downstream = Downstream(gateway, settings, pages, admin=Admin(self._carry_out) if has_admin else None)
        self._servers.append(await serve(sock, downstream, limit, self._on_failure))

    async def _carry_out(self, order: Order) -> dict[str, Any]:
        if self._crew is not None:
            return await self._crew.carry_out(order)
        report = self.desk.carry_out(order, monotonic())
        if order.target is not None:
            self._log.warning("admin", **log_fields(order))
        return report

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

    async def _ask_health(self, upstream: Upstream, check: HealthCheck) -> int | None:
        return await ask_health(self._pools, upstream, check, self._credentials.current)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_failure(self, error: object) -> None:
        self._log.error("connection_failure", error=type(error).__name__)

    # Life

    def stop(self) -> None:
        """Begin to drain; a second call ends everything at once."""
        if self._stopping.is_set():
            self.hurry()
        self.drain()

    def drain(self) -> None:
        """Begin to drain, if that has not begun."""
        self._stopping.set()

    def hurry(self) -> None:
        """End everything at once."""
        self._is_hurried = True
        self._stopping.set()

    def reload(self) -> None:
        """Swap in a new configuration, or keep the old one and say why."""
        self._reloads.ask()

    async def _change(self, config: Config) -> None:
        self.adopt(await self.prepare(config))
        self._log.info("reload", result="ok", routes=len(config.routes), upstreams=len(config.upstreams))

    async def prepare(self, config: Config) -> Snapshot:
        """Build what `config` means, and change nothing. Raises when it cannot be put in force."""
        await self._start_demo(config)
        snapshot = self._snapshot(config)
        # What counts is where the relay listens now, not where the new file would have it listen.
        exposed = needs_keys((self._bound.server.host, self._bound.server.port), has_keys=config.asks_for_key)
        if exposed is not None:
            raise ValueError(exposed)
        return snapshot

    def adopt(self, snapshot: Snapshot) -> None:
        """Put what was prepared in force."""
        assert self._gateway is not None
        config = snapshot.config
        self._tell_about(config)
        self._pools.forget_trust()
        self._config = config
        self._metrics.know(config)
        self._spawn(self._make_series())
        self._targets.know(config)
        self._turns.slots.know(config)
        self._gateway.snapshot = snapshot
        self._checks.know(config)
        self.desk.know(config)
        if self._accounts is not None:
            self._accounts.know(config)
        self._key_watch.follow(config.key_store)
        self._metrics.loaded(is_good=True, unix_time=time())

    async def _make_series(self) -> None:
        for _ in self._metrics.make_series():
            await asyncio.sleep(0)  # streams go on between two routes

    def _use_keys(self, stored: Mapping[bytes, Key]) -> None:
        """Put what the file of stored keys now holds in force."""
        assert self._gateway is not None
        config = with_stored(self._config, stored)
        if config.keys == self._config.keys:
            return
        self._config = config
        self._metrics.know_keys(config.key_names)
        snapshot = self._gateway.snapshot
        self._gateway.snapshot = replace(snapshot, config=with_stored(snapshot.config, stored))
        if self._accounts is not None:
            self._accounts.know(config)
        self._log.info("keys", result="ok", keys=len(config.key_names))

    def _refused(self) -> None:
        self._metrics.loaded(is_good=False, unix_time=time())

    def _tell_about(self, config: Config) -> None:
        """Log what a person should know of a new configuration, above all what of it has no effect before a restart."""
        if self._crew is not None:  # their supervisor tells it once
            return
        for warning in config.warnings:
            self._log.warning("configuration", message=warning)
        fixed = fixed_changes(config, self._bound)
        if fixed:
            self._log.warning("reload", message=f"{', '.join(fixed)} cannot change while the relay runs; restart it")

    @property
    def is_leaving(self) -> bool:
        """Tell whether series are left of what the configuration does not name any more."""
        return self._metrics.is_leaving

    def dump(self, *, forgets: bool) -> Iterator[bytes]:
        """Yield what was counted, in pieces for the registry of a whole crew; without what is not configured any more if told so."""
        return self._metrics.dump(forgets=forgets)

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        await self._stopping.wait()
        assert self._gateway is not None
        self._gateway.is_draining = True
        server, listener = self._servers[0]
        listener.close()
        server.retire()
        if self._metrics.in_flight:
            # Whoever waits for the process to end is told what it waits for.
            self._log.info("drain", in_flight=self._metrics.in_flight, seconds=self._config.server.drain)
        await self._idle_for(self._config.server.drain, lambda: self._is_hurried)
        self._turns.dismiss()
        self._running.cut_all(Outcome.DRAINED, "server_shutting_down")
        await self._idle_for(FAST_EXIT_SECONDS, lambda: False)

    async def _idle_for(self, seconds: float, is_enough: Callable[[], bool]) -> None:
        """Wait until nothing is in flight and every answer has left, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (self._metrics.in_flight or self._servers[0][0].has_unsent) and not is_enough():  # once in a life
                    # Nobody waits for these.
                    self._running.cut_alone()
                    await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Close whatever is open."""
        if self._lag is not None:
            self._lag.stop()
        for server, listener in self._servers:
            listener.close()
            await server.shutdown(FAST_EXIT_SECONDS)
        self._reloads.cancel()
        self._checks.close()
        self._key_watch.close()
        for task in list(self._tasks):
            task.cancel()
        self._pools.close()
        if self._accounts is not None:
            await self._accounts.close()
        if self._demo is not None:
            await self._demo.stop()
        await asyncio.sleep(0)
        if self._usage is not None:
            self._usage.close()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)
        self._libraries.close()
        self._writer.close()


def _ids() -> Callable[[], str]:
    """Return what makes request ids, which are trace ids too: 32 hexadecimal digits. They guard nothing, and asking the system for
    each costs as much as parsing a small body.
    """
    bits = random.Random().getrandbits  # noqa: S311  # seeded by the system
    return lambda: f"{bits(128):032x}"


def _usage_log(settings: Usage, log: Any) -> UsageLog:
    return UsageLog(lambda: UsageLedger(settings.store), settings.keep_days * 24, log)


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
