"""The start message: an address that clients can use, a model that is served, snippets that run when pasted."""

import ast
import json
import shlex
from pathlib import Path

import pytest

from relay.cli.banner import banner, example_model
from relay.config import Config, discover, load
from relay.config.vendors import VENDORS
from relay.policy.routing import Router

URL = "http://127.0.0.1:8080"


def from_text(folder: Path, text: str) -> Config:
    (folder / "relay.yaml").write_text(text)
    return load(str(folder / "relay.yaml"), {})


def curl_of(message: str) -> list[str]:
    (line,) = (line for line in message.splitlines() if line.startswith("curl -N"))
    return shlex.split(line)


def python_of(message: str) -> str:
    lines = message.splitlines()
    (start,) = (index for index, line in enumerate(lines) if "pip install openai" in line)
    return "\n".join(lines[start + 1 :])


def configurations(folder: Path) -> dict[str, Config]:
    every = {vendor.variable: "k" for vendor in VENDORS.values() if vendor.variable is not None}
    mine = "upstreams: {mine: {base_url: 'http://127.0.0.1:9/v1'}, demo: {kind: demo}}\n"
    return {
        "demo": discover({}, has_ollama=False),
        "ollama": discover({}, has_ollama=True),
        **{variable: discover({variable: "k"}, has_ollama=False) for variable in every},
        "all": discover(every, has_ollama=True),
        "default": discover({"AI_MODEL_NAME": "some-model"}, has_ollama=False),
        "literal": from_text(folder, mine + "routes: {'*': demo/*, fast: mine/x}\n"),
        "keys": from_text(folder, mine + "routes: {fast: mine/x}\nkeys: {alice: {key: sk-alice-plain-key-1}}\n"),
        "fixed": from_text(folder, mine + "routes: {'a-*': mine/x}\n"),
        "prefix": from_text(folder, mine + "routes: {'a-*': mine/x-*}\n"),
        "quotes": from_text(folder, mine + "routes: {\"it's\": mine/x, '*': mine/*}\n"),
    }


def test_address_is_told_as_the_variable_that_clients_read() -> None:
    assert f"export OPENAI_BASE_URL={URL}/v1    (OPENAI_API_KEY may be anything)\n" in banner(discover({}, has_ollama=False), URL)


@pytest.mark.parametrize("kind", ["keys: {alice: {key: sk-alice-plain-key-1}}", "passthrough"])
def test_no_key_is_said_to_do_where_the_caller_needs_one_that_is_good(tmp_path: Path, kind: str) -> None:
    upstream = "upstreams: {openai: {api_key: passthrough}}\n" if kind == "passthrough" else "upstreams: {demo: {kind: demo}}\n"
    routes = "routes: {'*': openai/*}\n" if kind == "passthrough" else "routes: {'*': demo/*}\n"
    message = banner(from_text(tmp_path, upstream + routes + (kind if kind != "passthrough" else "")), URL)
    assert f"export OPENAI_BASE_URL={URL}/v1\n" in message


@pytest.mark.parametrize(("url", "told"), [("http://0.0.0.0:8080", "http://127.0.0.1:8080/v1"), ("http://[::]:80", "http://[::1]:80/v1")])
def test_address_that_nobody_can_call_is_told_as_one_that_works(url: str, told: str) -> None:
    message = banner(discover({}, has_ollama=False), url)
    assert told in message
    assert url not in message


def test_simulated_upstream_is_called_so() -> None:
    assert "demo (simulated)" in banner(discover({}, has_ollama=False), URL)


def test_every_message_names_a_model_that_a_route_serves_in_snippets_that_parse(tmp_path: Path) -> None:
    for name, config in configurations(tmp_path).items():
        model = example_model(config)
        assert Router(config.routes, config.default_model).plan(model, None).next() is not None, name
        message = banner(config, URL)
        command = curl_of(message)
        body = json.loads(command[command.index("-d") + 1])
        assert (body["model"], body["stream"]) == (model, True), name
        assert f"{URL}/v1/chat/completions" in command
        code = python_of(message)
        compile(code, name, "exec")
        constants = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
        assert {model, f"{URL}/v1"} <= constants, name


def test_keys_are_asked_for_by_variable_and_never_shown(tmp_path: Path) -> None:
    message = banner(configurations(tmp_path)["keys"], URL)
    assert "Authorization: Bearer $RELAY_API_KEY" in curl_of(message)
    assert 'os.environ["RELAY_API_KEY"]' in message
    assert "sk-alice" not in message


@pytest.mark.parametrize(
    ("name", "model"),
    [("demo", "demo"), ("ollama", "qwen3:8b"), ("OPENAI_API_KEY", "gpt-4.1-mini"), ("default", "some-model"), ("literal", "fast")],
)
def test_model_is_the_plainest_that_works(tmp_path: Path, name: str, model: str) -> None:
    assert example_model(configurations(tmp_path)[name]) == model


def test_guessed_model_is_called_an_example(tmp_path: Path) -> None:
    configs = configurations(tmp_path)
    assert "is an example" in banner(configs["ollama"], URL)
    for name in ("demo", "literal", "default"):
        assert "is an example" not in banner(configs[name], URL)
