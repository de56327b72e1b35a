"""The start message: where to point clients, what was found, and two snippets that stream an answer when pasted."""

from typing import Final

from relay.config.tree import Config, Kind, Route
from relay.config.vendors import VENDORS

_PROMPT: Final = "Say hello in one sentence."
_KEY_VARIABLE: Final = "RELAY_API_KEY"


def banner(config: Config, url: str) -> str:
    """Return the message for a relay that listens at `url` (scheme, host and port)."""
    base = f"{_reachable(url)}/v1"
    model = example_model(config)
    names = ", ".join(f"{name} (simulated)" if up.kind is Kind.DEMO else name for name, up in config.upstreams.items())
    auth = f' -H "Authorization: Bearer ${_KEY_VARIABLE}"' if config.asks_for_key else ""
    key = f'os.environ["{_KEY_VARIABLE}"]' if config.asks_for_key else '"none"'
    imports = "import os\n\n" if config.asks_for_key else ""
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "{_PROMPT}"}}]}}'
    lines = [
        f"relay is ready: {base}",
        f"  upstreams: {names}    (from {config.source})",
        f"  clients:   export OPENAI_BASE_URL={base}{_key_note(config)}",
    ]
    if config.key_names:
        lines.append(f"  keys:      {len(config.key_names)}; put yours into {_KEY_VARIABLE} for the lines below")
    elif config.asks_for_key:
        lines.append("  keys:      none yet; make one with: relay keys new NAME")
    if _is_guess(config):
        lines.append(f"  models:    curl -s {base}/models{auth}    ({model} below is an example)")
    lines += [
        "",
        "Try it:",
        "",
        f"curl -N {base}/chat/completions -H 'Content-Type: application/json'{auth} -d '{body}'",
        "",
        "or with `pip install openai`:",
        "",
        f"{imports}from openai import OpenAI",
        "",
        f'client = OpenAI(base_url="{base}", api_key={key})',
        f'stream = client.chat.completions.create(model="{model}", stream=True, messages=[{{"role": "user", "content": "{_PROMPT}"}}])',
        "for chunk in stream:",
        '    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)',
        "",
    ]
    return "\n".join(lines)


def _key_note(config: Config) -> str:
    """Tell what SDKs, which insist on a key, get where none is asked for."""
    takes_any = not config.asks_for_key and not any(upstream.is_passthrough for upstream in config.upstreams.values())
    return "    (OPENAI_API_KEY may be anything)" if takes_any else ""


def example_model(config: Config) -> str:
    """Return a model's name that a route serves: the default, else a literal one, else one of a wildcard's upstream."""
    if config.default_model is not None and _is_plain(config.default_model):
        return config.default_model
    literal = [name for name, route in config.routes.items() if not route.is_wildcard and _is_plain(name)]
    if literal:
        return literal[0]
    wild = min(config.routes.values(), key=lambda route: len(route.name), default=None)
    return "demo" if wild is None else _fill(wild)


def _fill(route: Route) -> str:
    """Return a name that `route`, a wildcard, turns into a model that its upstream likely has."""
    target = route.targets[0]
    name = target.upstream.name
    model = "demo" if target.upstream.kind is Kind.DEMO else VENDORS[name].example if name in VENDORS else "MODEL"
    pattern = target.model or "*"
    if not pattern.endswith("*"):
        return f"{route.name[:-1]}any"
    matched = model.removeprefix(pattern[:-1]) if model.startswith(pattern[:-1]) else "MODEL"
    return f"{route.name[:-1]}{matched}"


def _is_guess(config: Config) -> bool:
    """Tell whether the example is a name that the upstream may not have."""
    is_demo = all(upstream.kind is Kind.DEMO for upstream in config.upstreams.values())
    return not is_demo and config.default_model is None and all(route.is_wildcard for route in config.routes.values())


def _is_plain(name: str) -> bool:
    """Tell whether `name` can be pasted within quotes of a shell and of JSON as it is."""
    return name.isascii() and not any(char in name for char in "'\"\\$`! ")


def _reachable(url: str) -> str:
    """Replace the address that means all of this machine's, which no client can call."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
