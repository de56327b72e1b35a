"""`relay targets`: lists the targets of a running relay, lets one rest, or brings it back.

It asks the relay's admin endpoint, which answers on this machine alone: on the main address where that is loopback, else on
`metrics.listen`.
"""

import argparse
import contextlib
import http.client
import json
import os
from typing import Any, Final
from urllib.parse import quote, urlsplit

from relay.cli.exits import FAILED, OK, USAGE, find_file, say
from relay.cli.tables import table
from relay.config import load
from relay.config.addresses import is_loopback
from relay.config.values import parse_duration

WAIT_SECONDS: Final = 5.0
MAX_ANSWER: Final = 8 * 2**20
DEFAULT: Final = "http://127.0.0.1:8080"


class Refused(Exception):
    """The command cannot be done; the message is for the person."""


def add_parser(commands: Any) -> None:
    """Add `targets` and all that it can do to the commands."""
    targets = commands.add_parser("targets", help="list the targets of a running relay, rest one, or bring it back", description=__doc__)
    _add_options(targets)
    targets.set_defaults(run=_run, action=None, config=None, url=None, json=False)
    actions = targets.add_subparsers(metavar="ACTION", dest="action")
    rest = actions.add_parser("rest", help="let a target rest; the last target of a route is used all the same")
    rest.add_argument("target", metavar="NAME", help="upstream/model, as `relay targets` lists it")
    rest.add_argument("--for", metavar="SPAN", dest="span", default="10m", help="how long: 90s, 10m, 2h (default: 10m)")
    restore = actions.add_parser("restore", help="bring a target back that rests, for whatever reason")
    restore.add_argument("target", metavar="NAME", help="upstream/model, as `relay targets` lists it")
    _add_options(rest)
    _add_options(restore)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add what may stand before the action and after it; what was given before it stands where nothing comes after."""
    config = "configuration file that the relay was started with, for its address"
    parser.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help=config)
    url = f"address of the relay; without a configuration {DEFAULT}"
    parser.add_argument("--url", metavar="URL", default=argparse.SUPPRESS, help=url)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")


def _run(options: argparse.Namespace) -> int:
    try:
        url = options.url or _address(options.config)
        if options.action is None:
            found = _ask(url, "GET", "/admin/targets", None)
            print(json.dumps(found, indent=2) if options.json else _listing(found))
            return OK
        body: dict[str, object] = {"seconds": _seconds(options.span)} if options.action == "rest" else {}
        if "/" not in options.target.strip("/"):
            raise ValueError("expected UPSTREAM/MODEL, as `relay targets` lists it")
        changed = _ask(url, "POST", f"/admin/targets/{quote(options.target, safe='/*')}/{options.action}", body)
        print(json.dumps(changed, indent=2) if options.json else _listing({"targets": [changed]}))
    except Refused as refused:
        say(f"relay targets: {refused}")
        return FAILED
    except ValueError as error:
        say(f"relay targets: {error}")
        return USAGE
    return OK


def _seconds(span: str) -> float:
    try:
        return parse_duration(span)
    except ValueError as error:
        raise ValueError(f"--for: {error}") from None


def _address(file: str | None) -> str:
    """Return where the relay of a configuration has its admin endpoint."""
    path = file or find_file()
    if path is None:
        return DEFAULT
    config = load(path, os.environ)
    host, port = (config.server.host, config.server.port) if config.metrics.host is None else (config.metrics.host, config.metrics.port)
    if not is_loopback(host):
        raise Refused(f"{path} has the metrics on {host}, and the admin endpoint is on loopback alone: add `metrics: {{listen: ...}}`")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _ask(url: str, method: str, path: str, body: dict[str, object] | None) -> dict[str, Any]:
    connection = http.client.HTTPConnection(*_host_and_port(url), timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise Refused(f"no relay answers at {url}: {why}") from None
    try:
        value = json.loads(text)
        if answer.status == http.client.OK and isinstance(value, dict):
            return value
        message = value["error"]["message"]
    except (ValueError, LookupError, TypeError):
        raise Refused(f"what answers at {url} is no relay") from None
    if value["error"].get("code") == "unknown_target":
        message += " `relay targets` lists them."
    raise Refused(message if answer.status != http.client.NOT_FOUND or "target" in message else f"{url} has no admin endpoint: {message}")


def _host_and_port(url: str) -> tuple[str, int | None]:
    """Split the address of a relay. Raises ValueError."""
    expected = ValueError("--url: expected an address such as http://127.0.0.1:8080")
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets that do not close, a port that is no number
        raise expected from None
    if parts.scheme != "http" or not host:
        raise expected
    return host, port


def _listing(found: dict[str, Any]) -> str:
    rows = [
        (
            str(entry["target"]),
            str(entry["health"]) + (f" ({entry['cause']})" if entry["cause"] else ""),
            f"{entry['rest_seconds']:.0f}s" if entry["rest_seconds"] else "",
            "" if entry["time_to_first_token_seconds"] is None else f"{entry['time_to_first_token_seconds'] * 1000:.0f}ms",
            int(entry["in_flight"]),
            ", ".join(entry["routes"]),
        )
        for entry in found["targets"]
    ]
    return table(("target", "health", "rest", "first token", "in flight", "routes"), rows)
