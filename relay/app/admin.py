"""The admin endpoint: lists the targets with all that is known of them, rests one, or brings it back.

It is for people and tools on this machine: served on a loopback address alone, and refused to whatever a browser or a proxy sends on
behalf of somebody else. A page of a foreign site can make a browser send requests to loopback, also under a name of its own that
resolves there; it cannot do so without `Origin` or a foreign `Host`, and not with a JSON body without asking first.
"""

import ipaddress
from time import monotonic
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from relay.config.tree import Config
from relay.errors import ClientError, error_answer
from relay.exchange import Headers, header
from relay.policy.breaker import Cause, Health
from relay.policy.slots import AllSlots
from relay.policy.targets import Targets
from relay.transport.downstream import HttpArrival
from relay.transport.sink import ClientSink

PREFIX: Final = "/admin/"
MAX_BODY: Final = 4096
READ_SECONDS: Final = 5.0
MAX_REST_SECONDS: Final = 7 * 86400.0
"""Whoever wants a target out for longer takes it out of the configuration."""
_FORWARDED: Final = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip")
_JSON: Final = (b"content-type", b"application/json")


class _Rest(msgspec.Struct, forbid_unknown_fields=True):
    seconds: float


class Admin:
    """Answers what is below /admin/."""

    __slots__ = ("_config", "_log", "_slots", "_targets")

    def __init__(self, config: Config, targets: Targets, slots: AllSlots, log: Any) -> None:
        self._config = config
        self._targets = targets
        self._slots = slots
        self._log = log

    def know(self, config: Config) -> None:
        """Tell of the targets of a new configuration."""
        self._config = config

    async def answer(self, arrival: HttpArrival, sink: ClientSink) -> None:
        """Answer one request."""
        try:
            if arrival.fault is not None:
                raise arrival.fault
            check_local(arrival.headers)
            value = await self._act(arrival)
        except ClientError as error:
            refusal = error_answer(error)
            sink.answer(refusal.status, [_JSON, (b"x-relay-error", refusal.code.encode("ascii"))], refusal.body())
            return
        sink.answer(200, [_JSON, (b"cache-control", b"no-store")], msgspec.json.encode(value) + b"\n")

    async def _act(self, arrival: HttpArrival) -> dict[str, Any]:
        if arrival.path == f"{PREFIX}targets":
            if arrival.method not in ("GET", "HEAD"):
                raise ClientError("method_not_allowed")
            return self._report(monotonic())
        name, action = _target_in(arrival.path)
        if arrival.method != "POST":
            raise ClientError("method_not_allowed")
        if (header(arrival.headers, b"content-type") or b"").split(b";", 1)[0].strip().lower() != b"application/json":
            raise ClientError("invalid_body", message="Send the header `content-type: application/json`.")
        body = await arrival.read(MAX_BODY, READ_SECONDS)
        known = {target.name for route in self._config.routes.values() for target in route.all_targets}
        if name not in known:
            raise ClientError("unknown_target")
        now = monotonic()
        seconds = None
        if action == "rest":
            seconds = _seconds_in(body)
            self._targets.rest(name, now, seconds)
        else:
            self._targets.bring_back(name, now)
        self._log.warning("admin", action=action, target=name, seconds=seconds)
        return next(entry for entry in self._report(now)["targets"] if entry["target"] == name)

    def _report(self, now: float) -> dict[str, Any]:
        routes: dict[str, list[str]] = {}
        for route in self._config.routes.values():
            for target in route.all_targets:
                routes.setdefault(target.name, []).append(route.name)
        targets = []
        for standing in self._targets.standings(now):
            pace = self._targets.pace(standing.name)
            is_well = standing.health is Health.HEALTHY
            targets.append(
                {
                    "target": standing.name,
                    "routes": routes.get(standing.name, []),
                    "health": standing.health.value,
                    "rest_seconds": round(standing.rest_seconds, 3),
                    "cause": None if is_well else _cause(self._targets.cause(standing.name, now)),
                    "trips": standing.trips,
                    "time_to_first_token_seconds": None if pace is None else round(pace, 4),
                    "in_flight": self._targets.in_flight(standing.name),
                }
            )
        return {"targets": targets, "upstreams": self._upstreams(now)}

    def _upstreams(self, now: float) -> list[dict[str, Any]]:
        credentials = self._targets.credentials(now)
        loads = {load.upstream: load for load in self._slots.loads()}
        return [
            {
                "upstream": name,
                "in_flight": loads[name].held,
                "waiting": loads[name].waiting,
                "concurrency": upstream.limits.concurrency,
                "credentials": dict(credentials.get(name, {})),
            }
            for name, upstream in self._config.upstreams.items()
        ]


def check_local(headers: Headers) -> None:
    """Refuse what did not come from a tool on this machine. Raises ClientError."""
    site = header(headers, b"sec-fetch-site")
    is_browsers = header(headers, b"origin") is not None or site not in (None, b"none", b"same-origin")
    is_forwarded = any(header(headers, name) is not None for name in _FORWARDED)
    if is_browsers or is_forwarded or not _is_loopback_name(header(headers, b"host") or b""):
        raise ClientError("not_local")


def _is_loopback_name(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _target_in(path: str) -> tuple[str, str]:
    """Split /admin/targets/UPSTREAM/MODEL/ACTION; the model may have slashes of its own."""
    rest = path.removeprefix(f"{PREFIX}targets/")
    name, _, action = rest.rpartition("/")
    if rest == path or action not in ("rest", "restore") or "/" not in name:
        raise ClientError("not_found", message="There are GET /admin/targets, and POST /admin/targets/UPSTREAM/MODEL/rest or /restore.")
    return unquote(name), action


def _seconds_in(body: bytes) -> float:
    try:
        seconds = msgspec.json.decode(body, type=_Rest).seconds
    except msgspec.DecodeError:
        seconds = 0.0
    if not 0 < seconds <= MAX_REST_SECONDS:
        raise ClientError("invalid_value", param="seconds", message='Send {"seconds": 60}: more than 0, at most a week.')
    return seconds


def _cause(cause: Cause | None) -> str:
    # Of a target that is well itself, the credentials rest.
    return "credentials" if cause is None else cause.value
