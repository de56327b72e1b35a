"""The proxies that are compared: how each is configured and started, and where it listens.

Each reaches the same upstream twice, plain and over TLS with the certificate checked; models that begin with `tls-` go
the second way. The relay runs as `relay serve` runs for everybody: keys, limits, metrics, JSON log and observer on, every
setting at its default. nginx has one worker, no access log and no buffering of answers.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.process import Child, free_port

COMPARED = ("relay", "nginx", "conventional")
"""What people compare."""
NAMES = (*COMPARED, "workers", "full", "bare", "direct")
"""Those, the relay with two workers, with everything on, with everything off that can be, and no proxy at all."""
WORKERS = 2
TWICE = "workers-twice"
"""The same relay with two workers under twice a run's load: each worker then has what the one process has alone."""
KEY = "sk-bench-0123456789abcdef"
_START_SECONDS = 15.0
_LIMITS = {"rpm": 10_000_000, "concurrency": 100_000}
"""Kept, never reached. What limits of tokens cost on top stands in the table of `bench.limits`."""
_ALL_LIMITS = {**_LIMITS, "tpm": 1_000_000_000, "budget": "1000000M tokens/day"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Where the scripted upstream listens, and the authority that signed its certificate."""

    plain_port: int
    secure_port: int
    ca_file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy that runs, or the upstream itself under the name `direct`, which has no process to measure."""

    name: str
    child: Child | None
    plain_port: int
    secure_port: int
    load: int = 1
    """How many times a run's connections it gets in its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A command line and the two ports it will listen on."""

    argv: tuple[str, ...]
    plain_port: int
    secure_port: int


def _relay(folder: Path, upstream: Upstream, workers: int = 1) -> Recipe:
    port = free_port()
    config = {
        "server": {"listen": f"127.0.0.1:{port}", "workers": workers},
        "upstreams": {
            "plain": {"base_url": f"http://127.0.0.1:{upstream.plain_port}/v1", "api_key": "sk-upstream"},
            "secure": {"base_url": f"https://127.0.0.1:{upstream.secure_port}/v1", "api_key": "sk-upstream", "ca_file": upstream.ca_file},
        },
        "routes": {"tls-*": "secure/tls-*", "*": "plain/*"},
        "keys": {"bench": {"key": KEY, "limits": _LIMITS}},
    }
    path = folder / "relay.yaml"
    path.write_text(json.dumps(config, indent=2))  # JSON is YAML
    return Recipe(argv=(sys.executable, "-m", "relay", "serve", "--config", str(path)), plain_port=port, secure_port=port)


def _workers(folder: Path, upstream: Upstream) -> Recipe:
    return _relay(folder, upstream, workers=WORKERS)


def relay_with(folder: Path, upstream: Upstream, routes: dict[str, object]) -> Recipe:
    """Return the relay with routes of its own, everything else as in the comparison."""
    recipe = _relay(folder, upstream)
    path = folder / "relay.yaml"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "routes": {**config["routes"], **routes}}, indent=2))
    return recipe


def _full(folder: Path, upstream: Upstream) -> Recipe:
    """The relay with everything on that may stand in a stream's way, and every record kept."""
    recipe = _relay(folder, upstream)
    path = folder / "relay.yaml"
    config = json.loads(path.read_text())
    plain = config["upstreams"]["plain"]
    (folder / "state").mkdir()
    every = {
        "balance": ["plain/*", "spare/*"],
        "usage": "always",
        "affinity": "prefix",
        "timeouts": {"first_token": "auto"},
        "hedge": {"after": "30s", "at_most": "5%"},
        "heartbeat": {"after": "15s", "every": "15s"},
        "on_disconnect": {"drain": "5s"},
    }
    more = {
        "upstreams": {**config["upstreams"], "spare": {**plain, "limits": {"concurrency": 10_000}}},
        "routes": {"*": every},
        "keys": {"bench": {"key": KEY, "limits": _ALL_LIMITS}},
        "prices": {f"{name}/*": {"input": 1, "output": 1} for name in ("plain", "spare")},
        "usage": {"store": str(folder / "usage.db")},
        "state_dir": str(folder / "state"),
        "tracing": {"otlp": f"http://127.0.0.1:{upstream.plain_port}"},
    }
    path.write_text(json.dumps({**config, **more}, indent=2))
    return recipe


def _bare(folder: Path, upstream: Upstream) -> Recipe:
    """The relay with everything off that can be: without keys and so without limits; metrics, log and observer cannot be."""
    recipe = _relay(folder, upstream)
    path = folder / "relay.yaml"
    config = json.loads(path.read_text())
    del config["keys"]
    path.write_text(json.dumps(config, indent=2))
    return recipe


def _conventional(folder: Path, upstream: Upstream) -> Recipe:
    port = free_port()
    urls = (f"http://127.0.0.1:{upstream.plain_port}", f"https://127.0.0.1:{upstream.secure_port}")
    argv = (sys.executable, "-m", "bench.conventional", str(port), *urls, upstream.ca_file)
    return Recipe(argv=argv, plain_port=port, secure_port=port)


_NGINX = """\
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 64m; client_body_buffer_size 2m;
  keepalive_requests 100000000;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Authorization "Bearer sk-upstream";
  proxy_buffering off; proxy_read_timeout 1h;
  proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca_file}; proxy_ssl_name localhost; proxy_ssl_protocols TLSv1.2 TLSv1.3;
  upstream plain {{ server 127.0.0.1:{to_plain}; keepalive 512; keepalive_requests 100000000; }}
  upstream secure {{ server 127.0.0.1:{to_secure}; keepalive 512; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{plain} backlog=4096; location / {{ proxy_pass http://plain; }} }}
  server {{ listen 127.0.0.1:{secure} backlog=4096; location / {{ proxy_pass https://secure; }} }}
}}
"""


def nginx_program() -> str | None:
    """Return the path of nginx, or None where it is not installed."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _nginx(folder: Path, upstream: Upstream) -> Recipe | None:
    program = nginx_program()
    if program is None:
        return None
    plain, secure = free_port(), free_port()
    text = _NGINX.format(
        user="user root;" if os.geteuid() == 0 else "",  # the temporary folder is the starter's own
        folder=folder,
        ca_file=upstream.ca_file,
        to_plain=upstream.plain_port,
        to_secure=upstream.secure_port,
        plain=plain,
        secure=secure,
    )
    path = folder / "nginx.conf"
    path.write_text(text)
    return Recipe(argv=(program, "-e", "stderr", "-p", str(folder), "-c", str(path)), plain_port=plain, secure_port=secure)


_RECIPES: dict[str, Callable[[Path, Upstream], Recipe | None]] = {
    "relay": _relay,
    "nginx": _nginx,
    "conventional": _conventional,
    "workers": _workers,
    "full": _full,
    "bare": _bare,
}


async def _listens(port: int, child: Child) -> bool:
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    while child.is_alive and asyncio.get_running_loop().time() < deadline:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return True
    return False


async def _all_ready(port: int) -> None:
    """Wait until every worker takes connections: a load that comes before would meet one of them only."""
    async with asyncio.timeout(_START_SECONDS):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            if b'"ready"' in answer:
                return
            await asyncio.sleep(0.05)


def recipe_of(name: str, folder: Path, upstream: Upstream) -> Recipe | None:
    """Return how a proxy is started, its files written into the folder; None when it is not installed."""
    return _RECIPES[name](folder, upstream)


async def start(name: str, folder: Path, upstream: Upstream, cores: frozenset[int] | None) -> Proxy | str:
    """Start one proxy in a folder of its own; returns why not, in words, when it cannot be compared here."""
    if name == "direct":
        return Proxy(name=name, child=None, plain_port=upstream.plain_port, secure_port=upstream.secure_port)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(name, folder, upstream)
    return "not installed" if recipe is None else await start_recipe(name, recipe, folder, cores)


async def start_recipe(name: str, recipe: Recipe, folder: Path, cores: frozenset[int] | None) -> Proxy | str:
    """Start what the recipe says; returns why not, in words, when it does not listen."""
    child = await Child.start(recipe.argv, cores=cores, complaints=folder / "stderr.log")
    if not await _listens(recipe.plain_port, child):
        await child.stop()
        return f"did not start: {child.last_words()}"
    if name == "workers":
        await _all_ready(recipe.plain_port)
    return Proxy(name=name, child=child, plain_port=recipe.plain_port, secure_port=recipe.secure_port)
