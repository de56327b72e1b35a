"""A configuration without a file: every known key in the environment is an upstream, else Ollama, else the simulator."""

from collections.abc import Mapping
from typing import Final

from relay.config.addresses import calls_itself, host_of, is_private, parse_base_url
from relay.config.listening import needs_keys, place_metrics, read_override
from relay.config.origins import environment_proxy
from relay.config.problems import ConfigInvalid, Problem
from relay.config.tree import Config, Kind, Route, Server, Target, Upstream
from relay.config.values import parse_model, parse_secret
from relay.config.variables import commit_of
from relay.config.vendors import VENDORS, vendor_of

_SOURCE: Final = "environment"


def discover(environ: Mapping[str, str], *, has_ollama: bool, listen: str | None = None) -> Config:
    """Build a configuration from `environ`: models go by their own name or as `upstream/model`.

    `has_ollama` tells whether one answers at its usual address. Raises ConfigInvalid.
    """
    host, port = read_override(listen, environ).apply(None)
    problems: list[Problem] = []
    upstreams = _upstreams(environ, (host, port), has_ollama, problems)
    exposed = needs_keys((host, port), has_keys=False)
    if exposed is not None:
        problems.append(_problem("", f"{exposed} (keys stand in a file: `relay serve --config relay.yaml`)"))
    default_model = None
    if environ.get("AI_MODEL_NAME"):
        try:
            default_model = parse_model(environ["AI_MODEL_NAME"])
        except ValueError as error:
            problems.append(_problem("AI_MODEL_NAME", str(error)))
    if problems:
        raise ConfigInvalid(problems)
    return Config(
        server=Server(host=host, port=port),
        upstreams=upstreams,
        routes=_routes(upstreams),
        metrics=place_metrics(None, (host, port)),
        default_model=default_model,
        source=_SOURCE,
        commit=commit_of(environ),
    )


def _upstreams(environ: Mapping[str, str], listen: tuple[str, int], has_ollama: bool, problems: list[Problem]) -> dict[str, Upstream]:
    found: dict[str, Upstream] = {}
    is_wrong = False
    for name, vendor in VENDORS.items():
        variable = vendor.variable
        if variable is None or not environ.get(variable):
            continue
        place = variable
        try:
            key = parse_secret(environ[variable])
            base_url = vendor.base_url
            if name == "openai" and environ.get("OPENAI_BASE_URL"):
                place = "OPENAI_BASE_URL"
                base_url = parse_base_url(environ[place])
                if calls_itself(base_url, listen):
                    raise ValueError("this is the address the relay listens on: it would call itself; unset it here, set it for clients")
            place = "HTTPS_PROXY"
            proxy = environment_proxy(base_url, environ)
        except ValueError as error:
            problems.append(_problem(place, str(error)))
            is_wrong = True
            continue
        found[name] = Upstream(
            name=name,
            base_url=base_url,
            api_key=key,
            allow_private=is_private(host_of(base_url)),
            proxy=proxy,
            vendor=vendor_of(name, base_url),
        )
    if has_ollama:
        found["ollama"] = Upstream(name="ollama", base_url=VENDORS["ollama"].base_url, allow_private=True, vendor="ollama")
    if not found and not is_wrong:
        found["demo"] = Upstream(name="demo", kind=Kind.DEMO, base_url="", allow_private=True)
    return found


def _routes(upstreams: Mapping[str, Upstream]) -> dict[str, Route]:
    routes: dict[str, Route] = {}
    for name, upstream in upstreams.items():
        _add(routes, f"{name}/*", upstream, "*")
        for pattern in VENDORS[name].patterns if name in VENDORS else ():
            _add(routes, pattern, upstream, pattern)
    for upstream in upstreams.values():
        _add(routes, "*", upstream, "*")
        break
    return routes


def _add(routes: dict[str, Route], name: str, upstream: Upstream, model: str) -> None:
    routes[name] = Route(name=name, targets=(Target(upstream=upstream, model=model),), timeouts=upstream.timeouts)


def _problem(path: str, message: str) -> Problem:
    return Problem(file=_SOURCE, path=path, message=message)
