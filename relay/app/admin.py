"""The admin endpoint: lists the targets with all that is known of them, rests one, or brings it back.

It is for people and tools on this machine: served on a loopback address alone, and refused to whatever a browser or a proxy sends on
behalf of somebody else. A page of a foreign site can make a browser send requests to loopback, also under a name of its own that
resolves there; it cannot do so without `Origin` or a foreign `Host`, and not with a JSON body without asking first.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from relay.app.desk import Order
from relay.errors import ClientError, RelayError, error_answer
from relay.exchange import Headers, header
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

    __slots__ = ("_carry_out",)

    def __init__(self, carry_out: Callable[[Order], Awaitable[dict[str, Any]]]) -> None:
        """Have what is asked done, here or in all workers, by `carry_out`; that raises RelayError, unknown_target for one."""
        self._carry_out = carry_out

    async def answer(self, arrival: HttpArrival, sink: ClientSink) -> None:
        """Answer one request."""
        try:
            if arrival.fault is not None:
                raise arrival.fault
            check_local(arrival.headers)
            value = await self._act(arrival)
        except RelayError as error:
            refusal = error_answer(error)
            sink.answer(refusal.status, [_JSON, (b"x-relay-error", refusal.code.encode("ascii"))], refusal.body())
            return
        sink.answer(200, [_JSON, (b"cache-control", b"no-store")], msgspec.json.encode(value) + b"\n")

    async def _act(self, arrival: HttpArrival) -> dict[str, Any]:
        if arrival.path == f"{PREFIX}targets":
            if arrival.method not in ("GET", "HEAD"):
                raise ClientError("method_not_allowed")
            return await self._carry_out(Order())
        name, action = _target_in(arrival.path)
        if arrival.method != "POST":
            raise ClientError("method_not_allowed")
        if (header(arrival.headers, b"content-type") or b"").split(b";", 1)[0].strip().lower() != b"application/json":
            raise ClientError("invalid_body", message="Send the header `content-type: application/json`.")
        body = await arrival.read(MAX_BODY, READ_SECONDS)
        seconds = _seconds_in(body) if action == "rest" else None
        report = await self._carry_out(Order(target=name, seconds=seconds))
        found = next((entry for entry in report["targets"] if entry["target"] == name), None)
        if found is None:
            raise ClientError("unknown_target")  # a reload took it out meanwhile
        return found  # type: ignore[no-any-return]


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
