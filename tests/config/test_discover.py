"""Without a file: what each variable becomes, the order of fall-backs, and what is refused."""

import pytest

from relay.config import ConfigInvalid, Problem, discover
from relay.config.tree import Config, Kind, Metrics, Secret
from relay.config.vendors import VENDORS

VARIABLES = {name: vendor.variable for name, vendor in VENDORS.items() if vendor.variable is not None}


def targets(config: Config) -> dict[str, str]:
    return {name: f"{route.targets[0].upstream.name}/{route.targets[0].model}" for name, route in config.routes.items()}


def refusals(environ: dict[str, str], listen: str | None = None) -> list[Problem]:
    with pytest.raises(ConfigInvalid) as caught:
        discover(environ, has_ollama=False, listen=listen)
    return caught.value.problems


def test_nothing_at_all_gives_the_simulator() -> None:
    config = discover({}, has_ollama=False)
    assert config.upstreams["demo"].kind is Kind.DEMO
    assert targets(config) == {"demo/*": "demo/*", "*": "demo/*"}
    assert (config.server.host, config.server.port, config.metrics) == ("127.0.0.1", 8080, Metrics())
    assert (config.source, config.keys, config.default_model) == ("environment", {}, None)


def test_ollama_alone_gets_everything() -> None:
    config = discover({}, has_ollama=True)
    assert targets(config) == {"ollama/*": "ollama/*", "*": "ollama/*"}
    assert config.upstreams["ollama"].base_url == "http://127.0.0.1:11434/v1"
    assert config.upstreams["ollama"].allow_private


@pytest.mark.parametrize(("name", "variable"), sorted(VARIABLES.items()))
def test_every_known_key_becomes_an_upstream(name: str, variable: str) -> None:
    config = discover({variable: "sk-x"}, has_ollama=False)
    assert list(config.upstreams) == [name]
    upstream = config.upstreams[name]
    assert (upstream.base_url, upstream.api_key, upstream.allow_private) == (VENDORS[name].base_url, Secret("sk-x"), False)
    assert targets(config)[f"{name}/*"] == f"{name}/*"
    assert targets(config)["*"] == f"{name}/*"


def test_variables_are_those_that_vendors_document() -> None:
    names = "ANTHROPIC DASHSCOPE DEEPSEEK GEMINI GROQ MISTRAL MOONSHOT OPENAI OPENROUTER TOGETHER XAI ZHIPU"
    assert sorted(VARIABLES.values()) == [f"{name}_API_KEY" for name in names.split()]


def test_bare_names_lead_to_their_vendor_and_the_rest_to_the_first() -> None:
    config = discover(dict.fromkeys(VARIABLES.values(), "k"), has_ollama=True)
    found = targets(config)
    for pattern, name in {
        "gpt-*": "openai",
        "o3*": "openai",
        "text-embedding-*": "openai",
        "claude-*": "anthropic",
        "qwen*": "dashscope",
        "deepseek-*": "deepseek",
        "gemini-*": "gemini",
        "grok-*": "xai",
        "mistral-*": "mistral",
        "glm-*": "zhipu",
        "kimi-*": "moonshot",
        "moonshot-*": "moonshot",
    }.items():
        assert found[pattern] == f"{name}/{pattern}"
    assert found["*"] == "openai/*"
    assert found["ollama/*"] == "ollama/*"
    assert "demo" not in config.upstreams


def test_empty_variable_counts_as_unset() -> None:
    assert list(discover({"OPENAI_API_KEY": "", "AI_MODEL_NAME": "", "PORT": ""}, has_ollama=False).upstreams) == ["demo"]


def test_base_url_variable_moves_openai() -> None:
    config = discover({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9000/v1/"}, has_ollama=False)
    assert config.upstreams["openai"].base_url == "http://127.0.0.1:9000/v1"
    assert config.upstreams["openai"].allow_private


@pytest.mark.parametrize(
    ("url", "port", "listen"),
    [
        ("http://127.0.0.1:8080/v1", None, None),
        ("http://localhost:8080/v1", None, None),
        ("http://127.0.0.1:9001", "9001", None),
        ("http://localhost:9002/v1", None, "127.0.0.1:9002"),
    ],
)
def test_base_url_variable_that_is_our_own_address_is_refused(url: str, port: str | None, listen: str | None) -> None:
    environ = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": url} | ({"PORT": port} if port else {})
    (problem,) = refusals(environ, listen)
    assert problem.path == "OPENAI_BASE_URL"
    assert "would call itself" in problem.message


def test_base_url_variable_without_a_key_is_the_clients_business() -> None:
    config = discover({"OPENAI_BASE_URL": "http://127.0.0.1:8080/v1"}, has_ollama=False)
    assert list(config.upstreams) == ["demo"]


def test_model_variable_answers_for_requests_without_a_model() -> None:
    assert discover({"AI_MODEL_NAME": "gpt-4.1-mini"}, has_ollama=False).default_model == "gpt-4.1-mini"
    (problem,) = refusals({"AI_MODEL_NAME": "a\nb"})
    assert problem.path == "AI_MODEL_NAME"


def test_other_address_than_loopback_is_refused_with_the_way_out() -> None:
    (problem,) = refusals({}, "0.0.0.0:8080")
    assert "there are no keys" in problem.message
    assert "--config" in problem.message


def test_all_problems_of_the_environment_come_at_once() -> None:
    problems = refusals({"OPENAI_API_KEY": "a b", "XAI_API_KEY": "é", "OPENAI_BASE_URL": "x"}, "0.0.0.0:1")
    assert [problem.path for problem in problems] == ["OPENAI_API_KEY", "XAI_API_KEY", ""]
    assert str(problems[0]).startswith("environment: OPENAI_API_KEY: ")
