"""Each mistake is named with its line and path, and says what is expected; all mistakes of a file come at once."""

import pytest

from relay.config import ConfigInvalid, load
from tests.config.loading import ROUTE, UPSTREAM, Loading

HASH = "sha256:" + "0" * 64

LIMITED = "upstreams: {{mine: {{base_url: 'http://127.0.0.1:9/v1', {}}}}}\n"

MISTAKES = [
    # what is written, line, path, part of the message
    (UPSTREAM + ROUTE + "sever: {}", 3, "sever", 'unknown setting; did you mean "server"?'),
    (UPSTREAM + ROUTE + "cache: {}", 3, "cache", "unknown setting"),
    (UPSTREAM + ROUTE + "server: {max_boddy: 3}", 3, "server.max_boddy", 'did you mean "max_body"?'),
    (UPSTREAM + ROUTE + "timeouts: {first_tokn: 3s}", 3, "timeouts.first_tokn", 'did you mean "first_token"?'),
    (UPSTREAM + ROUTE + "timeouts: {total: 90 parsecs}", 3, "timeouts.total", "expected a duration such as 500ms"),
    (UPSTREAM + ROUTE + "timeouts: {total: 12:30}", 3, "timeouts.total", "expected a duration"),
    (UPSTREAM + ROUTE + "timeouts: {total: 60}", 3, "timeouts.total", "expected a duration"),
    (UPSTREAM + ROUTE + "timeouts: {total: 0s}", 3, "timeouts.total", "more than zero"),
    (UPSTREAM + ROUTE + "timeouts: {total: .inf}", 3, "timeouts.total", "expected a duration"),
    (UPSTREAM + ROUTE + "timeouts: {total: 99h}", 3, "timeouts.total", "at most 24h"),
    (UPSTREAM + ROUTE + "timeouts: {total: null}", 3, "timeouts.total", "has no value"),
    (UPSTREAM + ROUTE + "timeouts: {total: ''}", 3, "timeouts.total", "has no value"),
    (UPSTREAM + ROUTE + "workers: 2", 3, "workers", "unknown setting; it belongs under `server`"),
    (UPSTREAM + ROUTE + "server: {state_dir: x}", 3, "server.state_dir", "unknown setting; it belongs at the top of the file"),
    (UPSTREAM + "routes: {a: {to: mine/m, write: 1s}}", 2, "routes.a.write", "unknown setting; it belongs under `routes.a.timeouts`"),
    (UPSTREAM + "routes: {a: {to: mine/m, limits: {rps: 1}}}", 2, "routes.a.limits.rps", "here are rpm, tpm, concurrency, budget"),
    (UPSTREAM + "routes: {a: {to: mine/m, heartbeat: 9s}}", 2, "routes.a.heartbeat", "expected settings such as {after: 15s, every: 15s}"),
    (UPSTREAM + "routes: {a: {to: mine/m, fallback_on: x}}", 2, "routes.a.fallback_on", "expected a list such as [context_length]"),
    ("upstreams:\n\tmine: {}\n", 2, "", "the line begins with a tab; indent with spaces"),
    (UPSTREAM + ROUTE + "timeouts: [1]", 3, "timeouts", "expected settings"),
    (UPSTREAM + ROUTE + "server: {drain: 0}", 3, "server.drain", "expected a duration"),
    (UPSTREAM + ROUTE + "server: {max_body: 0}", 3, "server.max_body", "at least 1 byte"),
    (UPSTREAM + ROUTE + "server: {max_body: 32}", 3, "server.max_body", "with its unit"),
    (LIMITED.format("timeout: 3s") + ROUTE, 1, "upstreams.mine.timeout", 'did you mean "timeouts"?'),
    (UPSTREAM + ROUTE + "server: {max_body: 0x10}", 3, "server.max_body", "expected a size"),
    (UPSTREAM + ROUTE + "server: {max_body: -5MB}", 3, "server.max_body", "expected a size"),
    (UPSTREAM + ROUTE + "server: {max_connections: many}", 3, "server.max_connections", "expected a number"),
    (UPSTREAM + ROUTE + "server: {listen: 8080}", 3, "server.listen", "expected HOST:PORT"),
    (UPSTREAM + ROUTE + "server: {listen: '127.0.0.1:99999'}", 3, "server.listen", "expected HOST:PORT"),
    (UPSTREAM + ROUTE + "server: {listen: ':8080'}", 3, "server.listen", "0.0.0.0:PORT is every address"),
    (UPSTREAM + ROUTE + "server: {listen: '0.0.0.0:8080'}", 3, "server.listen", "add `keys`, or listen on 127.0.0.1"),
    (UPSTREAM + ROUTE + "server: {listen: '[::]:8080'}\nkeys: {}", 3, "server.listen", "there are no keys"),
    (UPSTREAM + ROUTE + "server: {listen: 'relay.example:8080'}", 3, "server.listen", "there are no keys"),
    (UPSTREAM + ROUTE + "server: {cors_origins: ['*']}", 3, "server.cors_origins[0]", "list the origins"),
    (UPSTREAM + ROUTE + "server: {cors_origins: '*'}", 3, "server.cors_origins", "expected a list"),
    (UPSTREAM + ROUTE + "server: {cors_origins: [https://a.example/x]}", 3, "server.cors_origins[0]", "without a path"),
    (UPSTREAM + ROUTE + "server: {trusted_proxies: [10.0.0.1/8]}", 3, "server.trusted_proxies[0]", "expected an address or network"),
    (UPSTREAM + ROUTE + "server: {loop: uvlop}", 3, "server.loop", 'did you mean "uvloop"?'),
    (LIMITED.format("limits: {queue: 3}") + ROUTE, 1, "upstreams.mine.limits.queue", "has no effect without `concurrency`"),
    (LIMITED.format("limits: {concurrency: 0}") + ROUTE, 1, "upstreams.mine.limits.concurrency", "more than zero"),
    (LIMITED.format("limits: {concurrency: 4, queue: 10001}") + ROUTE, 1, "upstreams.mine.limits.queue", "a number from 0 to 10000"),
    (LIMITED.format("limits: {concurency: 4}") + ROUTE, 1, "upstreams.mine.limits.concurency", 'did you mean "concurrency"?'),
    (LIMITED.format("health: {every: 3s}") + ROUTE, 1, "upstreams.mine.health.path", "is missing"),
    (LIMITED.format("health: {path: models}") + ROUTE, 1, "upstreams.mine.health.path", "a path such as /models"),
    (LIMITED.format("health: {path: /../admin}") + ROUTE, 1, "upstreams.mine.health.path", "a path such as /models"),
    (LIMITED.format("health: {path: /models, every: 100ms}") + ROUTE, 1, "upstreams.mine.health.every", "at least 1s"),
    (UPSTREAM + ROUTE + "metrics: {listen: everywhere}", 3, "metrics.listen", "expected HOST:PORT"),
    (UPSTREAM + ROUTE + "metrics: {slo: {ttft: 3m}}", 3, "metrics.slo.ttft", "from 10ms to 2m"),
    (UPSTREAM + ROUTE + "metrics: {slo: {availability: 90%}}", 3, "metrics.slo.availability", "from 95% to 99.999%"),
    (UPSTREAM + ROUTE + "metrics: {slo: {availability: 0.995}}", 3, "metrics.slo.availability", "such as 99.5%"),
    (UPSTREAM + ROUTE + "default_model: slow", 3, "default_model", 'no route serves "slow"'),
    (UPSTREAM + ROUTE + "default_model:", 3, "default_model", "has no value"),
    (UPSTREAM + ROUTE + UPSTREAM, 3, "upstreams", "appears twice; the first is on line 1"),
    (UPSTREAM + "routes: {a: mine/x, b: mine/y, a: mine/z}", 2, "routes.a", "appears twice; the first is on line 2"),
    (UPSTREAM + "routes: {no: mine/x, b: mine/y}", 2, "routes.no", "YAML reads this name as a boolean; put it in quotes"),
    (UPSTREAM + "routes: {12:30: mine/x, b: mine/y}", 2, "routes.12:30", "a number; put it in quotes"),
    (UPSTREAM + "routes: {4: mine/x, b: mine/y}", 2, "routes.4", "a number; put it in quotes"),
    (UPSTREAM + "routes: {4.10: mine/x, b: mine/y}", 2, "routes.4.10", "a number; put it in quotes"),
    (UPSTREAM + "routes: {2026-01-01: mine/x, b: mine/y}", 2, "routes.2026-01-01", "a date; put it in quotes"),
    (UPSTREAM + "routes: {~: mine/x, b: mine/y}", 2, "routes.~", "nothing; put it in quotes"),
    (UPSTREAM + "routes: {[a]: mine/x, b: mine/y}", 2, "routes", "a name must be text"),
    (UPSTREAM + "routes:\n  <<: {a: mine/x}\n  b: mine/y", 3, "routes.<<", "merge keys"),
    (UPSTREAM + "routes:\n  a: &x mine/x\n  b: mine/y", 3, "routes.a", "anchors"),
    (UPSTREAM + "routes:\n  b: mine/y\n  a: *x", 4, "routes.a", "aliases"),
    (UPSTREAM + "routes:\n  b: mine/y\n  a: !!str mine/x", 4, "routes.a", "tags"),
    (UPSTREAM + "routes:\n  b: mine/y\n  a: !!python/object/apply:os.system [ls]", 4, "routes.a", "tags"),
    (UPSTREAM + "routes:\n  *: mine/y", 3, "", "must be quoted"),
    (UPSTREAM + "routes: {a: mine}", 2, "routes.a", "expected one target written as upstream/model"),
    (UPSTREAM + "routes: {a: mine/}", 2, "routes.a", "expected one target"),
    (UPSTREAM + "routes: {a: mien/x}", 2, "routes.a", 'no upstream named "mien"; did you mean "mine"?'),
    (UPSTREAM + "routes: {a: mine/*}", 2, "routes.a", "only a route whose name ends in *"),
    (UPSTREAM + "routes: {'*': mine/a*b}", 2, "routes.*", "only at the end"),
    (UPSTREAM + "routes: {'a*b': mine/x}", 2, "routes.a*b", "only at the end of a route's name"),
    (UPSTREAM + "routes: {'a\\nb ': mine/x}", 2, "routes.a\\nb ", "a route's name is a model's name"),
    (UPSTREAM + "routes: {}", 2, "routes", "no route: add one"),
    (UPSTREAM + "routes: mine/x", 2, "routes", "expected names"),
    (UPSTREAM, 1, "routes", "no route: add one"),
    ("upstreams: {}\n" + ROUTE, 1, "upstreams", "no upstream: add one"),
    (ROUTE, 1, "upstreams", "no upstream: add one"),
    ("upstreams: {'a b': {kind: demo}}\nroutes: {x: 'a b/x'}", 1, "upstreams.a b", "a name has at most 64 letters"),
    ("upstreams: {opnai: {api_key: k}}\nroutes: {a: opnai/x}", 1, "upstreams.opnai", 'has no base_url; did you mean "openai"?'),
    ("upstreams: {my-own: {api_key: k}}\nroutes: {a: my-own/x}", 1, "upstreams.my-own", "only these are known by name: openai, "),
    ("upstreams: {mine: [1]}\n" + ROUTE, 1, "upstreams.mine", "expected settings"),
    ("upstreams: {mine: {kind: olama}}\n" + ROUTE, 1, "upstreams.mine.kind", "expected one of openai, demo"),
    ("upstreams: {mine: {kind: demo, base_url: 'http://127.0.0.1:9/v1'}}\n" + ROUTE, 1, "upstreams.mine.base_url", "has no effect"),
    ("upstreams: {mine: {kind: demo, allow_private: maybe}}\n" + ROUTE, 1, "upstreams.mine.allow_private", "expected true or false"),
    (UPSTREAM + ROUTE + "keys: {a: {}}", 3, "keys.a", "has neither hash nor key"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{key: abc, hash: '{HASH}'}}}}", 3, "keys.a.key", "stands beside hash"),
    (UPSTREAM + ROUTE + "keys: {a: {hash: 'sha256:12'}}", 3, "keys.a.hash", "64 hexadecimal digits"),
    (UPSTREAM + ROUTE + "keys: {a: {key: 'a b'}}", 3, "keys.a.key", "cannot be sent in a header"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', routes: [fsat]}}}}", 3, "keys.a.routes[0]", 'did you mean "fast"?'),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', routes: []}}}}", 3, "keys.a.routes", "is empty"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', routes: fast}}}}", 3, "keys.a.routes", "expected a list"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', enabled: yes}}}}", 3, "keys.a.enabled", "expected true or false"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', expires: soon}}}}", 3, "keys.a.expires", "expected a date"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', expires: 2026-13-40}}}}", 3, "keys.a.expires", "expected a date"),
    (UPSTREAM + ROUTE + f"keys:\n  a: {{hash: '{HASH}'}}\n  b: {{hash: '{HASH}'}}", 5, "keys.b", 'is the same key as "a"'),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{rpd: 1}}}}}}", 3, "keys.a.limits.rpd", "unknown setting"),
    (
        UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{rpm: 0}}}}}}",
        3,
        "keys.a.limits.rpm",
        "expected a number such as 60, 100k",
    ),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{rpm: many}}}}}}", 3, "keys.a.limits.rpm", "expected a number"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{budget: 20 EUR/month}}}}}}", 3, "keys.a.limits.budget", "20 USD/month"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{budget: 1.5 tokens/day}}}}}}", 3, "keys.a.limits.budget", "whole tokens"),
    (UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{budget: 0 USD/day}}}}}}", 3, "keys.a.limits.budget", "more than zero"),
    (
        UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{budget: 1 USD/day}}}}}}",
        3,
        "keys.a.limits.budget",
        '`prices` has nothing for "mine/model"',
    ),
    (
        UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{per_route: {{fsat: {{rpm: 1}}}}}}}}}}",
        3,
        "keys.a.limits.per_route.fsat",
        'did you mean "fast"?',
    ),
    (
        UPSTREAM + ROUTE + f"keys: {{a: {{hash: '{HASH}', limits: {{per_route: {{fast: {{}}}}}}}}}}",
        3,
        "keys.a.limits.per_route.fast",
        "holds no limit",
    ),
    (UPSTREAM + ROUTE + "prices: {model: {input: 1, output: 2}}", 3, "prices.model", "written as upstream/model"),
    (UPSTREAM + ROUTE + "prices: {mien/model: {input: 1, output: 2}}", 3, "prices.mien/model", 'did you mean "mine"?'),
    (UPSTREAM + ROUTE + "prices: {mine/model: {input: -1, output: 2}}", 3, "prices.mine/model.input", "US dollars per million"),
    (UPSTREAM + ROUTE + "prices: {mine/model: {input: 1}}", 3, "prices.mine/model.output", "is missing"),
    (UPSTREAM + ROUTE + "state_dir:", 3, "state_dir", "has no value"),
    ("- a\n- b", 1, "", "expected settings"),
    ("just text", 1, "", "expected settings"),
    ("", 1, "", "the file is empty"),
    ("# nothing\n", 1, "", "the file is empty"),
    ("a: {b: ${C}}", 1, "", 'a variable must be quoted, such as "${NAME}"'),
    ("a: [1, 2\nb: 3", 2, "", "not valid YAML"),
    ("a: 1\n---\nb: 2", 2, "", "one file holds one"),
    ("a:\n\t- b", 2, "", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "line", "path", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistake_is_named_with_its_line(loading: Loading, text: str, line: int, path: str, message: str | None) -> None:
    if message is None:
        assert loading.load(text)
        return
    problem = loading.problem(text)
    assert (problem.line, problem.path) == (line, path)
    assert message in problem.message


BASE_URLS = [
    ("example.com/v1", "beginning with http"),
    ("ftp://example.com/v1", "beginning with http"),
    ("https:///v1", "expected a URL"),
    ("https://user:word@example.com/v1", "no user name or password"),
    ("https://example.com/v1?key=1", "no query"),
    ("https://example.com/v1#x", "no query and no fragment"),
    ("https://example.com:0/v1", "port from 1"),
    ("https://example.com:99999/v1", "expected a URL"),
    ("https://[::1/v1", "expected a URL"),
    ("https://exa mple.com/v1", "expected a URL"),
    ("https://bücher.example/v1", "plain letters"),
    ("https://example.com/v1/../admin", "plain segments"),
    ("https://example.com/%2e%2e/v1", "plain segments"),
    ("https://example.com/v1/chat/completions", "leave the endpoint off"),
    ("http://169.254.169.254/v1", "never called"),
    ("http://[fe80::1]/v1", "never called"),
    ("http://[::ffff:169.254.169.254]/v1", "never called"),
    ("http://0.0.0.0:9000/v1", "never called"),
    ("http://127.0.0.1:8080/v1", "would call itself"),
    ("http://localhost:8080/v1", "would call itself"),
    ("HTTP://LOCALHOST:8080", "would call itself"),
]


@pytest.mark.parametrize(("url", "message"), BASE_URLS)
def test_base_url_that_cannot_be_called_is_refused(loading: Loading, url: str, message: str) -> None:
    problem = loading.problem(f"upstreams: {{mine: {{base_url: '{url}'}}}}\n{ROUTE}")
    assert (problem.line, problem.path) == (1, "upstreams.mine.base_url")
    assert message in problem.message


@pytest.mark.parametrize("url", ["http://127.0.0.2:8080/v1", "http://127.0.0.1:8081/v1", "https://example.com:8080", "http://[::1]:8080"])
def test_other_address_on_our_port_is_not_ourselves(loading: Loading, url: str) -> None:
    assert loading.load(f"upstreams: {{mine: {{base_url: '{url}'}}}}\n{ROUTE}")


@pytest.mark.parametrize(
    "name", ["authorization", "Cookie", "Host", "content-length", "X-Forwarded-For", "proxy-authorization", "x-api-key"]
)
def test_dangerous_header_cannot_be_forwarded(loading: Loading, name: str) -> None:
    problem = loading.problem(f"upstreams: {{mine: {{base_url: 'http://127.0.0.1:9/v1', forward_headers: [x-a, {name}]}}}}\n{ROUTE}")
    assert problem.path == "upstreams.mine.forward_headers[1]"
    assert "never forwarded" in problem.message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("api_key_file: gone", "cannot be read: No such file or directory"),
        ("api_key_file: empty", "has no value"),
        ("ca_file: gone", "cannot be read"),
        ("ca_file: empty", "no certificate in PEM form"),
        ("proxy: https://proxy.example", "expected a proxy"),
        ("allow_private: false", "no call could be made"),
    ],
)
def test_setting_that_could_not_work_is_refused_at_once(loading: Loading, setting: str, message: str) -> None:
    (loading.folder / "empty").write_text("")
    problem = loading.problem(f"upstreams:\n  mine:\n    base_url: http://127.0.0.1:9/v1\n    {setting}\n{ROUTE}")
    assert (problem.line, problem.path) == (4, f"upstreams.mine.{setting.partition(':')[0]}")
    assert message in problem.message


def test_all_mistakes_come_at_once_in_the_order_of_the_file(loading: Loading) -> None:
    problems = loading.problems(
        """\
        server: {drain: never, colour: red}
        upstreams:
          local: {base_url: "http://127.0.0.1:9/v1", timeouts: {first_token: 90 parsecs}}
          openai: {api_key: "${OPENAI_KEY}"}
        routes:
          fast: dashcope/qwen
          also: lokal/qwen
        keys:
          ci: {hash: "${CI_KEY_HSAH}", routes: [fsat]}
        """,
        {"CI_KEY_HASH": "x"},
    )
    assert [(problem.line, problem.path) for problem in problems] == [
        (1, "server.drain"),
        (1, "server.colour"),
        (3, "upstreams.local.timeouts.first_token"),
        (4, "upstreams.openai.api_key"),
        (6, "routes.fast"),
        (7, "routes.also"),
        (9, "keys.ci.hash"),
        (9, "keys.ci.routes[0]"),
    ]


def test_message_is_a_place_a_path_a_line_and_a_caret(loading: Loading) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        loading.load(UPSTREAM + ROUTE + "timeouts: {first_token: 90 parsecs, total: 1h}  # long\n")
    assert str(caught.value) == (
        f"{loading.file}:3:25: timeouts.first_token: expected a duration such as 500ms, 20s, 5m or 1h\n"
        "    3 | timeouts: {first_token: 90 parsecs, total: 1h}\n"
        "      |                         ^\n"
        f"{loading.file}: 1 problem"
    )


def test_line_numbers_follow_every_kind_of_line_break(loading: Loading) -> None:
    problem = loading.problem("# a\r\n# b\u2028# c\u0085# d\r" + UPSTREAM + ROUTE + "server: {drain: x}")
    assert problem.line == 7
    assert "server: {drain: x}" in problem.excerpt


def test_hostile_number_of_mistakes_is_cut_short(loading: Loading) -> None:
    text = UPSTREAM + ROUTE + "server:\n" + "".join(f"  setting_{index}: 1\n" for index in range(20_000))
    assert len(loading.problems(text)) == 50


@pytest.mark.parametrize("listen", ["8080", "127.0.0.1", "127.0.0.1:x", "[127.0.0.1]:1", ""])
def test_listen_option_that_is_no_address_is_refused(loading: Loading, listen: str) -> None:
    problem = loading.problem(UPSTREAM + ROUTE, listen=listen)
    assert str(problem).startswith("--listen: ")


def test_listen_option_beyond_loopback_needs_keys_too(loading: Loading) -> None:
    assert "there are no keys" in loading.problem(UPSTREAM + ROUTE, listen="0.0.0.0:8080").message


def test_port_variable_that_is_no_port_is_refused(loading: Loading) -> None:
    assert str(loading.problem(UPSTREAM + ROUTE, {"PORT": "http"})) == "environment: PORT: expected a port from 0 to 65535"


def test_file_that_cannot_be_read_is_one_problem(loading: Loading) -> None:
    for path in (str(loading.folder / "gone.yaml"), str(loading.folder), "a\0b"):
        with pytest.raises(ConfigInvalid, match="cannot be read"):
            load(path, {})


def test_text_in_another_encoding_is_named_with_its_line(loading: Loading) -> None:
    problem = loading.problem(b"# good\n# \xff bad\n")
    assert (problem.line, problem.message) == (2, "is not UTF-8 text")
    assert "not UTF-8" in loading.problem("a: 1".encode("utf-16")).message
