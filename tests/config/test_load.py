"""What good files become: the whole tree, its defaults, what names bring along, and what is warned of."""

import hashlib
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relay.config import load
from relay.config.tree import Kind, Metrics, Secret, Server, Timeouts
from relay.config.vendors import VENDORS
from tests.config.loading import ROUTE, UPSTREAM, Loading

CONFIG = Path(__file__).parents[2] / "config"
ENVIRON = {"OPENAI_API_KEY": "sk-one", "DASHSCOPE_API_KEY": "sk-two", "ALICE_KEY_HASH": "sha256:" + "ab" * 32}


def test_smallest_file_gets_every_default(loading: Loading) -> None:
    config = loading.load(UPSTREAM + ROUTE)
    assert config.server == Server()
    assert config.metrics == Metrics()
    assert config.keys == {}
    assert config.warnings == ()
    assert config.source == str(loading.file)
    assert config.routes["fast"].timeouts == Timeouts()
    assert config.routes["fast"].targets[0].upstream is config.upstreams["mine"]
    assert config.routes["fast"].targets[0].model == "model"


@pytest.mark.parametrize("name", ["relay.example.yaml", "minimal.yaml"])
def test_shipped_example_loads_without_a_warning_and_names_its_schema(name: str) -> None:
    config = load(str(CONFIG / name), ENVIRON)
    assert config.warnings == ()
    assert (CONFIG / name).read_text().splitlines()[0] == "# yaml-language-server: $schema=./relay.schema.json"


def test_settings_shown_in_the_example_are_the_defaults_it_says_they_are() -> None:
    config = load(str(CONFIG / "relay.example.yaml"), ENVIRON)
    assert config.server == Server()
    assert config.upstreams["openai"].timeouts == Timeouts()


def test_settings_commented_out_in_the_example_are_accepted_too(loading: Loading) -> None:
    (loading.folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (loading.folder / "local").write_text("sk-file\n")
    text = (CONFIG / "relay.example.yaml").read_text()
    text = re.sub(r"^( *)# ([a-z_]+: )", r"\1\2", text, flags=re.MULTILINE)
    text = text.replace("/etc/ssl/private-ca.pem", "ca.pem").replace("/run/secrets/local", "local")
    config = loading.load(text, ENVIRON)
    assert config.server.max_connections == 2000
    assert config.server.cors_origins == ("https://app.example.com",)
    assert config.server.trusted_proxies == ("10.0.0.0/8",)
    assert config.metrics == Metrics(host="127.0.0.1", port=9464)
    local = config.upstreams["local"]
    assert local.forward_headers == {b"x-team"}
    assert local.proxy == "http://proxy:3128"
    assert local.ca_file == str(loading.folder / "ca.pem")
    assert local.api_key_file == str(loading.folder / "local")
    assert local.api_key is None
    assert local.vendor == "ollama"


def test_words_that_every_example_relies_on(loading: Loading) -> None:
    config = loading.load(
        """
        server: {listen: 127.0.0.1:8080}
        upstreams:
          openai: {api_key: "${OPENAI_API_KEY}"}
          mine: {base_url: "http://127.0.0.1:9000/v1", api_key: sk-upstream}
        routes:
          fast: mine/some-model
          openai/*: openai/*
          "*": mine/*
        keys:
          alice: {key: sk-alice-plain}
        timeouts: {connect: 5s, first_token: 120s, between_tokens: 120s, write: 30s, total: 1h}
        """,
        ENVIRON,
    )
    assert config.upstreams["openai"].base_url == "https://api.openai.com/v1"
    assert config.upstreams["openai"].api_key == Secret("sk-one")
    assert not config.upstreams["openai"].allow_private
    assert config.upstreams["mine"].allow_private
    assert config.routes["openai/*"].is_wildcard
    assert config.keys[hashlib.sha256(b"sk-alice-plain").digest()].name == "alice"
    assert config.routes["fast"].timeouts == Timeouts()
    (warning,) = config.warnings
    assert warning.startswith(f"{loading.file}:11: keys.alice.key: stands in plain text")
    assert "sk-alice" not in warning


@pytest.mark.parametrize("name", sorted(VENDORS))
def test_known_name_brings_its_address(loading: Loading, name: str) -> None:
    key = "{api_key: sk-some}" if VENDORS[name].variable else ""
    upstream = loading.load(f"upstreams:\n  {name}: {key}\nroutes:\n  '*': {name}/*\n").upstreams[name]
    assert upstream.base_url == VENDORS[name].base_url
    assert upstream.kind is Kind.OPENAI
    assert not upstream.done_optional
    assert upstream.allow_private == (name in ("ollama", "vllm"))


def test_known_cloud_upstream_without_a_key_is_refused_with_the_line_to_add(loading: Loading) -> None:
    problem = loading.problem("upstreams: {openai: {}}\nroutes: {a: openai/x}\n")
    assert (problem.line, problem.path) == (1, "upstreams.openai")
    assert 'api_key: "${OPENAI_API_KEY}"' in problem.message


def test_known_name_at_an_address_of_its_own_needs_no_key(loading: Loading) -> None:
    config = loading.load("upstreams: {openai: {base_url: 'http://127.0.0.1:9000/v1/'}}\nroutes: {a: openai/x}\n")
    assert config.upstreams["openai"].base_url == "http://127.0.0.1:9000/v1"


def test_passthrough_keeps_no_credential(loading: Loading) -> None:
    upstream = loading.load("upstreams: {openai: {api_key: passthrough}}\nroutes: {a: openai/x}\n").upstreams["openai"]
    assert upstream.is_passthrough
    assert upstream.api_key is None


@pytest.mark.parametrize("key", ["passthrough", "${MINE}"])
def test_passthrough_beside_keys_is_refused_and_told_what_to_do(loading: Loading, key: str) -> None:
    text = f"{UPSTREAM}{ROUTE}keys: {{a: {{hash: 'sha256:{'0' * 64}'}}}}\n".replace("mine: {", f"mine: {{api_key: '{key}', ")
    problem = loading.problem(text, {"MINE": "passthrough"})
    assert (problem.line, problem.path) == (1, "upstreams.mine.api_key")
    assert "their key of this relay" in problem.message
    assert "give the upstream a credential of its own, or leave `keys` out" in problem.message


def test_passthrough_beside_a_key_with_a_mistake_is_refused_all_the_same(loading: Loading) -> None:
    problems = loading.problems("upstreams: {openai: {api_key: passthrough}}\nroutes: {a: openai/x}\nkeys: {a: {hash: 'sha256:12'}}\n")
    assert [problem.path for problem in problems] == ["upstreams.openai.api_key", "keys.a.hash"]


def test_passthrough_is_not_proposed_where_there_are_keys(loading: Loading) -> None:
    problem = loading.problem(f"upstreams: {{openai: {{}}}}\nroutes: {{a: openai/x}}\nkeys: {{a: {{hash: 'sha256:{'0' * 64}'}}}}\n")
    assert problem.path == "upstreams.openai"
    assert "passthrough" not in problem.message


def test_demo_upstream_has_no_address_yet(loading: Loading) -> None:
    upstream = loading.load("upstreams: {demo: {kind: demo}}\nroutes: {'*': demo/*}\n").upstreams["demo"]
    assert (upstream.kind, upstream.base_url, upstream.allow_private) == (Kind.DEMO, "", True)


def test_upstream_timeouts_override_only_what_they_say(loading: Loading) -> None:
    config = loading.load(
        """
        upstreams:
          a: {base_url: "http://127.0.0.1:1/v1", timeouts: {first_token: 5m}}
          b: {base_url: "http://127.0.0.1:1/v1"}
        routes: {x: a/x, y: b/y}
        timeouts: {connect: 250ms, total: 1.5m}
        """
    )
    assert config.routes["x"].timeouts == Timeouts(connect=0.25, first_token=300.0, total=90.0)
    assert config.routes["y"].timeouts == Timeouts(connect=0.25, total=90.0)
    assert config.upstreams["a"].timeouts == config.routes["x"].timeouts


@pytest.mark.parametrize(("written", "size"), [("2000", 2000), ("32KiB", 32768), ("256MB", 256_000_000), ("1MiB", 2**20), ("5kB", 5000)])
def test_sizes(loading: Loading, written: str, size: int) -> None:
    assert loading.load(f"server: {{max_body: {written}}}\n{UPSTREAM}{ROUTE}").server.max_body == size


@pytest.mark.parametrize(("written", "count"), [("60", 60), ("100k", 100_000), ("2M", 2_000_000)])
def test_counts(loading: Loading, written: str, count: int) -> None:
    assert loading.load(f"server: {{max_connections: {written}}}\n{UPSTREAM}{ROUTE}").server.max_connections == count


@pytest.mark.parametrize(
    ("target", "upstream", "model"),
    [
        ("mine/qwen3:8b", "mine", "qwen3:8b"),
        ("mine/meta-llama/Llama-3.3-70B:free", "mine", "meta-llama/Llama-3.3-70B:free"),
        ("'mine/model with spaces'", "mine", "model with spaces"),
    ],
)
def test_target_is_split_at_its_first_slash(loading: Loading, target: str, upstream: str, model: str) -> None:
    route = loading.load(f"{UPSTREAM}routes: {{fast: {target}}}").routes["fast"]
    assert (route.targets[0].upstream.name, route.targets[0].model) == (upstream, model)


def test_wildcard_may_lead_to_a_fixed_model(loading: Loading) -> None:
    config = loading.load(f"{UPSTREAM}routes: {{'*': mine/one, 'gpt-*': mine/gpt-*}}")
    assert config.routes["*"].targets[0].model == "one"
    assert config.routes["gpt-*"].targets[0].model == "gpt-*"


def test_key_with_hash_routes_and_expiry(loading: Loading) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    config = loading.load(
        f"{UPSTREAM}{ROUTE}keys:\n  a: {{hash: 'sha256:{digest.upper()}', routes: [fast], enabled: false, expires: 2099-12-31}}\n"
        f"  b: {{hash: 'sha256:{'0' * 64}', expires: 2099-01-02T03:04:05+01:00}}\n"
    )
    a, b = config.keys[bytes.fromhex(digest)], config.keys[bytes(32)]
    assert (a.name, a.routes, a.is_enabled) == ("a", {"fast"}, False)
    assert a.expires_at == pytest.approx(datetime(2100, 1, 1, tzinfo=UTC).timestamp(), abs=1e-3)
    assert (b.routes, b.is_enabled) == (None, True)
    assert b.expires_at == datetime(2099, 1, 2, 2, 4, 5, tzinfo=UTC).timestamp()
    assert config.warnings == ()


def test_expired_key_is_warned_of(loading: Loading) -> None:
    config = loading.load(f"{UPSTREAM}{ROUTE}keys: {{a: {{hash: 'sha256:{'0' * 64}', expires: 2020-01-01}}}}")
    assert config.warnings == (f"{loading.file}:3: keys.a.expires: has passed: the key is refused",)


def test_unused_upstream_and_plain_http_are_warned_of(loading: Loading) -> None:
    config = loading.load("upstreams: {far: {base_url: 'http://example.com/v1', api_key: k}, near: {kind: demo}}\nroutes: {a: far/x}")
    assert [warning.partition(": ")[2] for warning in config.warnings] == [
        "upstreams.far.base_url: the credential travels over http, unencrypted",
        "upstreams.near: no route leads here",
    ]


def test_empty_entry_says_as_much_as_empty_braces(loading: Loading) -> None:
    config = loading.load("server:\nkeys:\nupstreams:\n  ollama:\nroutes: {a: ollama/x}\n")
    assert config.upstreams["ollama"].base_url == "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize(
    ("listen", "metrics", "expected"),
    [
        ("127.0.0.1:8080", None, Metrics()),
        ("0.0.0.0:8080", None, Metrics(host="127.0.0.1", port=9464)),
        ("0.0.0.0:8080", "0.0.0.0:9464", Metrics(host="0.0.0.0", port=9464)),
        ("127.0.0.1:8080", "127.0.0.1:8080", Metrics()),
        ("127.0.0.1:8080", "127.0.0.1:9000", Metrics(host="127.0.0.1", port=9000)),
    ],
)
def test_metrics_stay_on_loopback_unless_told_otherwise(loading: Loading, listen: str, metrics: str | None, expected: Metrics) -> None:
    section = f"metrics: {{listen: '{metrics}'}}\n" if metrics else ""
    keys = f"keys: {{a: {{hash: 'sha256:{'0' * 64}'}}}}\n"
    assert loading.load(f"server: {{listen: '{listen}'}}\n{section}{keys}{UPSTREAM}{ROUTE}").metrics == expected


@pytest.mark.parametrize(
    ("written", "port", "listen", "expected"),
    [
        ("", None, None, ("127.0.0.1", 8080)),
        ("", "9001", None, ("127.0.0.1", 9001)),
        ("server: {listen: '127.0.0.1:9002'}\n", "9001", None, ("127.0.0.1", 9002)),
        ("server: {listen: '127.0.0.1:9002'}\n", "9001", "[::1]:9003", ("::1", 9003)),
        ("", None, "localhost:0", ("localhost", 0)),
    ],
)
def test_command_line_before_file_before_port_variable(
    loading: Loading, written: str, port: str | None, listen: str | None, expected: tuple[str, int]
) -> None:
    server = loading.load(written + UPSTREAM + ROUTE, {"PORT": port} if port else {}, listen=listen).server
    assert (server.host, server.port) == expected


def test_proxy_comes_from_the_environment_for_public_https_only(loading: Loading) -> None:
    config = loading.load(
        """
        upstreams:
          a: {base_url: "https://a.example.com/v1"}
          b: {base_url: "https://b.internal.example/v1"}
          c: {base_url: "http://c.example.com/v1"}
          d: {base_url: "https://127.0.0.1:9000/v1"}
          e: {base_url: "https://e.example.com/v1", proxy: "http://own.example:3128/"}
        routes: {a: a/x, b: b/x, c: c/x, d: d/x, e: e/x}
        """,
        {"HTTPS_PROXY": "http://proxy.example", "NO_PROXY": "localhost, .internal.example"},
    )
    assert {name: upstream.proxy for name, upstream in config.upstreams.items()} == {
        "a": "http://proxy.example:80",
        "b": None,
        "c": None,
        "d": None,
        "e": "http://own.example:3128",
    }


def test_file_names_begin_at_the_folder_of_the_file(loading: Loading, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (loading.folder / "secret").write_text("sk-from-file\n")
    monkeypatch.chdir(os.sep)
    config = loading.load("upstreams: {mine: {base_url: 'http://127.0.0.1:9/v1', api_key: '${file:secret}'}}\n" + ROUTE)
    assert config.upstreams["mine"].api_key == Secret("sk-from-file")


def test_windows_line_ends_and_a_byte_order_mark_are_read(loading: Loading) -> None:
    raw = b"\xef\xbb\xbf" + (UPSTREAM + ROUTE).replace("\n", "\r\n").encode()
    assert list(loading.load(raw).routes) == ["fast"]


def test_a_variable_in_the_way_of_a_shell_is_warned_of_and_not_shown(loading: Loading) -> None:
    config = loading.load("upstreams: {mine: {base_url: 'https://a.example/v1', api_key: $MY_KEY}}\n" + ROUTE)
    (warning,) = config.warnings
    assert "upstreams.mine.api_key: is taken as it stands; a variable is written ${NAME}" in warning
    assert "MY_KEY" not in warning
    assert config.upstreams["mine"].api_key == Secret("$MY_KEY")
    assert loading.load("upstreams: {mine: {base_url: 'https://a.example/v1', api_key: $$MY_KEY}}\n" + ROUTE).warnings == ()
