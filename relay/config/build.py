"""From checked entries to the one tree, with every name that one entry says of another looked up."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Final

from relay.config import models
from relay.config.listening import Override, needs_keys, place_metrics
from relay.config.origins import Surroundings, build_upstream
from relay.config.problems import did_you_mean, shown
from relay.config.report import Report
from relay.config.routes import RouteBuilder, merge_timeouts
from relay.config.sections import Draft
from relay.config.tree import Config, Key, Route, Server, Slo, Timeouts, Upstream

_WEAK: Final = 16
"""Fewer characters than this can be guessed."""


def build(draft: Draft, report: Report, *, override: Override, environ: Mapping[str, str], folder: FilePath) -> Config:
    """Return the tree. Raises ConfigInvalid with everything that `report` holds, then."""
    listen = override.apply(draft.server.listen if "listen" in draft.server.model_fields_set else None)
    timeouts = merge_timeouts(Timeouts(), draft.timeouts)
    around = Surroundings(timeouts=timeouts, listen=listen, environ=environ, has_keys=draft.has_keys, folder=folder)
    upstreams = {
        name: upstream
        for name, settings in draft.upstreams.items()
        if settings is not None and (upstream := build_upstream(name, settings, around, report)) is not None
    }
    routes = _routes(draft, upstreams, report)
    keys = _keys(draft, report)
    _check_default(draft, report)
    exposed = needs_keys(listen, has_keys=draft.has_keys)
    if exposed is not None:
        report.add(("server", "listen"), exposed)
    report.raise_if_any()
    for name in sorted(upstreams.keys() - {target.upstream.name for route in routes.values() for target in route.all_targets}):
        report.warn(("upstreams", name), "no route leads here")
    return Config(
        server=_server(draft.server, listen[0], listen[1]),
        upstreams=upstreams,
        routes=routes,
        keys=keys,
        metrics=replace(place_metrics(draft.metrics.listen, listen), slo=_slo(draft.metrics.slo)),
        default_model=draft.default_model,
        warnings=tuple(report.warnings),
        source=report.file,
    )


def _server(given: models.Server, host: str, port: int) -> Server:
    return Server(
        host=host,
        port=port,
        max_body=given.max_body,
        max_header=given.max_header,
        max_connections=given.max_connections,
        cors_origins=tuple(given.cors_origins),
        trusted_proxies=tuple(given.trusted_proxies),
        loop=given.loop,
        drain=given.drain,
    )


def _slo(given: models.Slo) -> Slo:
    return Slo(ttft=given.ttft, availability=given.availability)


def _routes(draft: Draft, upstreams: Mapping[str, Upstream], report: Report) -> dict[str, Route]:
    builder = RouteBuilder(named=draft.upstreams, upstreams=upstreams, report=report)
    built = ((name, builder.build(name, given)) for name, given in draft.routes.items() if given is not None)
    return {name: route for name, route in built if route is not None}


def _keys(draft: Draft, report: Report) -> dict[bytes, Key]:
    keys: dict[bytes, Key] = {}
    for name, settings in draft.keys.items():
        _check_key_routes(name, draft, report)
        if settings is None:
            continue
        digest = _digest(name, settings, report)
        if "routes" in settings.model_fields_set and not settings.routes:
            report.add(("keys", name, "routes"), "is empty, so the key is good for nothing; leave it out for all routes")
        if settings.expires is not None and settings.expires <= time.time():
            report.warn(("keys", name, "expires"), "has passed: the key is refused")
        if digest is None:
            continue
        if digest in keys:
            report.add(("keys", name), f'is the same key as "{shown(keys[digest].name)}"')
        keys[digest] = Key(
            name=name,
            routes=frozenset(settings.routes) if "routes" in settings.model_fields_set else None,
            is_enabled=settings.enabled,
            expires_at=settings.expires,
        )
    return keys


def _digest(name: str, settings: models.Key, report: Report) -> bytes | None:
    if settings.hash is not None and settings.key is not None:
        report.add(("keys", name, "key"), "stands beside hash; keep one of the two, best the hash")
    if settings.hash is not None:
        return settings.hash
    if settings.key is None:
        report.add(("keys", name), "has neither hash nor key: add `hash: sha256:...`", at_name=True)
        return None
    key = settings.key.reveal().encode()
    weak = f" and has fewer than {_WEAK} characters" if len(key) < _WEAK else ""
    report.warn(("keys", name, "key"), f"stands in plain text{weak}; keep a long random key's hash instead (`hash: sha256:...`)")
    return hashlib.sha256(key).digest()


def _check_key_routes(name: str, draft: Draft, report: Report) -> None:
    for index, route in enumerate(draft.key_routes[name]):
        if isinstance(route, str) and route and route not in draft.routes and draft.routes and not report.is_full:
            report.add(("keys", name, "routes", index), f'no route named "{shown(route)}"{did_you_mean(route, draft.routes)}')


def _check_default(draft: Draft, report: Report) -> None:
    model = draft.default_model
    if model is None or not draft.routes:
        return
    served = model in draft.routes or any(name.endswith("*") and model.startswith(name[:-1]) for name in draft.routes)
    if not served:
        report.add(("default_model",), f'no route serves "{shown(model)}"{did_you_mean(model, draft.routes)}')
