"""From checked entries to the one tree, with every name that one entry says of another looked up."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as FilePath

from relay.config import models, telling
from relay.config.allowance import check_priced, prices_of
from relay.config.keys import build_keys
from relay.config.listening import Override, needs_keys, place_metrics
from relay.config.origins import Surroundings, build_upstream
from relay.config.problems import did_you_mean, shown
from relay.config.report import Report
from relay.config.routes import RouteBuilder, merge_timeouts
from relay.config.sections import Draft
from relay.config.tree import Config, Redis, Route, Server, Slo, Timeouts, Tracing, Upstream, Usage
from relay.config.variables import commit_of


def build(
    draft: Draft, report: Report, *, override: Override, environ: Mapping[str, str], folder: FilePath, reads_store: bool = True
) -> Config:
    """Return the tree, stored keys left out unless `reads_store`. Raises ConfigInvalid with everything that `report` holds, then."""
    listen = override.apply(draft.server.listen if "listen" in draft.server.model_fields_set else None)
    timeouts = merge_timeouts(Timeouts(), draft.timeouts)
    around = Surroundings(timeouts=timeouts, listen=listen, environ=environ, has_keys=draft.has_keys, folder=folder)
    upstreams = {
        name: upstream
        for name, settings in draft.upstreams.items()
        if settings is not None and (upstream := build_upstream(name, settings, around, report)) is not None
    }
    routes = _routes(draft, upstreams, report)
    key_store = None if draft.key_store is None else str((folder / draft.key_store).absolute())
    keys = build_keys(draft, report, key_store if reads_store else None)
    usage = _usage(draft.usage, folder, report)
    prices = prices_of(draft, report)
    check_priced(routes, keys, prices, report)
    _check_default(draft, report)
    exposed = needs_keys(listen, has_keys=draft.has_keys)
    if exposed is not None:
        report.add(("server", "listen"), exposed if override.listen is None else f"(from --listen) {exposed}")
    report.raise_if_any()
    for name in sorted(upstreams.keys() - {target.upstream.name for route in routes.values() for target in route.all_targets}):
        report.warn(("upstreams", name), "no route leads here")
    if draft.logging.prompts:
        report.warn(("logging", "prompts"), "prompts and answers are written to the log: whoever reads it reads what people asked")
    return Config(
        server=_server(draft.server, listen[0], listen[1]),
        upstreams=upstreams,
        routes=routes,
        keys=keys,
        key_store=key_store,
        metrics=replace(place_metrics(draft.metrics.listen, listen), slo=_slo(draft.metrics.slo), label_values=draft.metrics.label_values),
        tracing=_tracing(draft.tracing, environ),
        logs_prompts=draft.logging.prompts,
        usage=usage,
        prices=prices,
        state_dir=None if draft.state_dir is None else str(folder / draft.state_dir),
        redis=_redis(draft.redis),
        default_model=draft.default_model,
        warnings=tuple(report.warnings),
        source=report.file,
        commit=commit_of(environ),
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
        workers=given.workers,
    )


def _tracing(given: telling.Tracing, environ: Mapping[str, str]) -> Tracing:
    otlp = given.otlp or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None
    return Tracing(otlp=otlp, sample=given.sample, is_wanted=given.otlp is not None)


def _slo(given: telling.Slo) -> Slo:
    return Slo(ttft=given.ttft, availability=given.availability)


def _routes(draft: Draft, upstreams: Mapping[str, Upstream], report: Report) -> dict[str, Route]:
    builder = RouteBuilder(named=draft.upstreams, upstreams=upstreams, report=report)
    built = ((name, builder.build(name, given)) for name, given in draft.routes.items() if given is not None)
    return {name: route for name, route in built if route is not None}


def _usage(given: models.Usage | None, folder: FilePath, report: Report) -> Usage | None:
    if given is None:
        return None
    file = (folder / given.store).absolute()
    if not file.parent.is_dir():
        report.add(("usage", "store"), f"{file.parent} is no directory")
    return Usage(store=str(file), keep_days=given.keep_days)


def _redis(given: models.Redis | None) -> Redis | None:
    return None if given is None else Redis(url=given.url, replicas=given.replicas, timeout=given.timeout)


def _check_default(draft: Draft, report: Report) -> None:
    model = draft.default_model
    if model is None or not draft.routes:
        return
    served = model in draft.routes or any(name.endswith("*") and model.startswith(name[:-1]) for name in draft.routes)
    if not served:
        report.add(("default_model",), f'no route serves "{shown(model)}"{did_you_mean(model, draft.routes)}')
