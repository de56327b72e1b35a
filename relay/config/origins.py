"""One upstream's settings to the origin the relay calls: what its name brings along, its credential, its way out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final
from urllib.parse import urlsplit

from relay.config import capacity, models
from relay.config.addresses import Listen, calls_itself, host_of, is_private, parse_proxy
from relay.config.problems import Path, closest, did_you_mean
from relay.config.report import Report
from relay.config.routes import merge_timeouts
from relay.config.tree import HealthCheck, Kind, Secret, Timeouts, Upstream, UpstreamLimits
from relay.config.values import parse_secret
from relay.config.variables import read_small_file
from relay.config.vendors import STRICT_STREAMS, VENDORS, vendor_of

_PASSTHROUGH: Final = "passthrough"
_KEY_WOULD_LEAVE: Final = (
    "passthrough cannot stand beside `keys`: callers would send their key of this relay on to the upstream;"
    " give the upstream a credential of its own, or leave `keys` out and listen on loopback"
)
_NEVER_DEMO: Final = frozenset(models.Upstream.model_fields) - {"kind", "timeouts", "limits"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an upstream's settings are read against."""

    timeouts: Timeouts
    listen: Listen
    environ: Mapping[str, str]
    has_keys: bool
    """Whether callers must show a key of the relay."""
    folder: FilePath
    """Where relative file names begin: the folder of the configuration file."""


def build_upstream(name: str, settings: models.Upstream, around: Surroundings, report: Report) -> Upstream | None:
    """Return the upstream; None when its mistakes, noted in `report`, leave nothing to call."""
    path: Path = ("upstreams", name)
    timeouts = merge_timeouts(around.timeouts, settings.timeouts)
    limits = _limits(path, settings.limits, report)
    if settings.kind == Kind.DEMO.value:
        for given in sorted(settings.model_fields_set.intersection(_NEVER_DEMO)):
            report.add((*path, given), "has no effect with `kind: demo`; leave it out")
        return Upstream(name=name, kind=Kind.DEMO, base_url="", allow_private=True, timeouts=timeouts, limits=limits)
    base_url = _base_url(name, settings, report)
    if base_url is None:
        return None
    if calls_itself(base_url, around.listen):
        report.add((*path, "base_url"), "this is the address the relay listens on: it would call itself")
    _check_credential(name, settings, base_url, around, report)
    is_passthrough = _is_passthrough(settings)
    vendor = settings.vendor or vendor_of(name, base_url)
    return Upstream(
        name=name,
        base_url=base_url,
        api_key=None if is_passthrough else settings.api_keys[0] if settings.api_keys else settings.api_key,
        api_keys=tuple(settings.api_keys),
        api_key_file=_file(settings.api_key_file, around.folder),
        is_passthrough=is_passthrough,
        forward_headers=frozenset(settings.forward_headers),
        allow_private=_allow_private(path, settings, base_url, report),
        ca_file=_ca_file(path, settings, around.folder, report),
        proxy=settings.proxy or _proxy(path, base_url, around.environ, report),
        done_optional=settings.done_optional,
        no_stream_options=settings.no_stream_options or vendor in STRICT_STREAMS,
        vendor=vendor,
        timeouts=timeouts,
        limits=limits,
        health=_health(settings.health),
    )


def _limits(path: Path, given: capacity.UpstreamLimits, report: Report) -> UpstreamLimits:
    if given.concurrency is None:
        for name in sorted(given.model_fields_set - {"concurrency"}):
            report.add((*path, "limits", name), "has no effect without `concurrency`; set that too, or leave it out")
    return UpstreamLimits(concurrency=given.concurrency, queue=given.queue, queue_wait=given.queue_wait)


def _health(given: capacity.HealthCheck | None) -> HealthCheck | None:
    return None if given is None else HealthCheck(path=given.path, every=given.every, timeout=given.timeout)


def environment_proxy(base_url: str, environ: Mapping[str, str]) -> str | None:
    """Return the proxy that HTTPS_PROXY and NO_PROXY choose for `base_url`, as curl reads them. Raises ValueError."""
    proxy = environ.get("https_proxy") or environ.get("HTTPS_PROXY") or ""
    host = host_of(base_url)
    if not proxy or urlsplit(base_url).scheme != "https" or is_private(host):
        return None
    direct = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").lower().replace(",", " ").split()
    if any(rule == "*" or f".{host}".endswith(f".{rule.lstrip('.')}") for rule in direct):
        return None
    return parse_proxy(proxy if "://" in proxy else f"http://{proxy}")


def _base_url(name: str, settings: models.Upstream, report: Report) -> str | None:
    vendor = VENDORS.get(name)
    if settings.base_url is not None:
        return settings.base_url
    if vendor is not None:
        return vendor.base_url
    known = closest(name, VENDORS)
    hint = did_you_mean(name, VENDORS) if known else f" (only these are known by name: {', '.join(VENDORS)})"
    report.add(("upstreams", name), f"has no base_url{hint}", at_name=True)
    return None


def _check_credential(name: str, settings: models.Upstream, base_url: str, around: Surroundings, report: Report) -> None:
    path: Path = ("upstreams", name)
    vendor = VENDORS.get(name)
    if around.has_keys and _is_passthrough(settings):
        report.add((*path, "api_key"), _KEY_WOULD_LEAVE)
    given = [each for each in ("api_key", "api_keys", "api_key_file") if each in settings.model_fields_set]
    for other in given[1:]:
        report.add((*path, other), f"stands beside {given[0]}; keep one of the two")
    _check_several(path, settings, report)
    if settings.api_key_file is not None:
        try:
            parse_secret(read_small_file(around.folder / settings.api_key_file))
        except ValueError as error:
            report.add((*path, "api_key_file"), str(error))
        return
    if not given and vendor is not None and vendor.variable is not None and settings.base_url is None:
        or_callers = "" if around.has_keys else ", or `api_key: passthrough`"
        report.add(path, f'has no api_key: add `api_key: "${{{vendor.variable}}}"`{or_callers}', at_name=True)
    has_key = settings.api_key is not None or bool(settings.api_keys)
    if has_key and base_url.startswith("http:") and not is_private(host_of(base_url)) and "." in host_of(base_url):
        report.warn((*path, "base_url"), "the credential travels over http, unencrypted")


def _check_several(path: Path, settings: models.Upstream, report: Report) -> None:
    if "api_keys" in settings.model_fields_set and not settings.api_keys:
        report.add((*path, "api_keys"), "is empty")
    seen: set[Secret] = set()
    for index, key in enumerate(settings.api_keys):
        if key.reveal() == _PASSTHROUGH:
            report.add((*path, "api_keys", index), "passthrough is for `api_key` alone")
        elif key in seen:
            report.add((*path, "api_keys", index), "is the same credential as one above")
        seen.add(key)


def _is_passthrough(settings: models.Upstream) -> bool:
    return settings.api_key is not None and settings.api_key.reveal() == _PASSTHROUGH


def _allow_private(path: Path, settings: models.Upstream, base_url: str, report: Report) -> bool:
    host = host_of(base_url)
    spelled = is_private(host)
    if settings.allow_private is None:
        if not spelled and "." not in host and ":" not in host:
            report.warn((*path, "base_url"), "a host without a dot is mostly private; if it is, add `allow_private: true`")
        return spelled
    if spelled and not settings.allow_private:
        report.add((*path, "allow_private"), "is false, but base_url names a private address: no call could be made")
    return settings.allow_private


def _ca_file(path: Path, settings: models.Upstream, folder: FilePath, report: Report) -> str | None:
    if settings.ca_file is None:
        return None
    try:
        if "-----BEGIN CERTIFICATE-----" not in read_small_file(folder / settings.ca_file, limit=4 * 2**20):
            report.add((*path, "ca_file"), "holds no certificate in PEM form")
    except ValueError as error:
        report.add((*path, "ca_file"), str(error))
    return _file(settings.ca_file, folder)


def _proxy(path: Path, base_url: str, environ: Mapping[str, str], report: Report) -> str | None:
    try:
        return environment_proxy(base_url, environ)
    except ValueError as error:
        report.add(path, f"environment variable HTTPS_PROXY: {error}")
        return None


def _file(name: str | None, folder: FilePath) -> str | None:
    return None if name is None else str((folder / name).absolute())
