"""A secret's value stands in no message, warning or `repr`, wherever in the file it was put."""

import hashlib
import traceback

import pytest

from relay.config import ConfigInvalid, discover
from tests.config.loading import CANARY, ROUTE, UPSTREAM, Loading

BROKEN = "server: {drain: never}\n"
SPLIT = CANARY[:9] + "\\n" + CANARY[9:]

MISPLACED = [
    "upstreams: {openai: {api_key: CANARY, colour: red}}",
    "upstreams: {openai: {apikey: CANARY}}",
    "upstreams: {openai: {api_keys: [CANARY, CANARY]}}",
    "upstreams: {openai: {api_keys: [x, CANARY], api_key: CANARY}}",
    "upstreams: {openai: {api_keys: CANARY}}",
    "upstreams: {openai: {api_keys: {CANARY: CANARY}}}",
    "upstreams: {openai: {api_key: x, vendor: CANARY, limits: {queue: CANARY}}}",
    "upstreams: {openai: {api_key: [CANARY, CANARY]}}",
    "upstreams: {openai: {api_key: CANARY, api_key_file: CANARY}}",
    "upstreams: {openai: {api_keys: [{CANARY: CANARY}, [CANARY]]}}",
    "upstreams: {openai: {api_keys: ['CANARY x']}}",
    "upstreams: {openai: {token: CANARY, colour: red}}",
    "upstreams: {openai: CANARY}",
    "upstreams: {openai: [CANARY]}",
    "upstreams: {openai: {CANARY}}",
    "upstreams: {openai: {CANARY: CANARY}}",
    "upstreams: {openai: {api_key: {CANARY}}}",
    "upstreams: {openai: {api_key: [CANARY]}}",
    "upstreams: {openai: {api_key: 'CANARY\\n'}}",
    'upstreams: {openai: {api_key: "CANARY\\n"}}',
    'upstreams: {openai: {api_key: "CANARY more"}}',
    "upstreams: {openai: {api_key: CANARY, api_key: CANARY}}",
    "upstreams: {openai: {api_key: &a CANARY}}",
    "upstreams: {openai: {api_key: !!str CANARY}}",
    "upstreams: {openai: {api_key: !CANARY x}}",
    "upstreams: {openai: {api_key: *CANARY}}",
    "upstreams: {openai: {api_key: &CANARY x}}",
    "upstreams: {openai: {api_key: '${CANARY}'}}",
    "upstreams: {openai: {api_key: '${file:CANARY}'}}",
    "upstreams: {openai: {api_key: '${X:-CANARY y}'}}",
    "upstreams: {openai: {api_key: '${X:?CANARY}'}}",
    "upstreams: {openai: {api_key: '${CANARY'}}",
    "upstreams: {openai: {base_url: CANARY}}",
    "upstreams: {openai: {base_url: 'https://user:CANARY@example.com/v1'}}",
    "upstreams: {openai: {base_url: 'https://example.com/v1?key=CANARY'}}",
    "upstreams: {openai: {base_url: 'https://example.com/v1', proxy: 'http://u:CANARY@proxy:1'}}",
    "upstreams: {openai: {api_key_file: CANARY}}",
    "upstreams: {openai: {ca_file: CANARY, api_key: x}}",
    "upstreams: {openai: {kind: CANARY}}",
    "upstreams: {openai: {forward_headers: ['authorization CANARY']}}",
    "upstreams: {CANARY: {api_key: x}}",
    "upstreams: {openai: {api_key: |\n  CANARY\n  more\n }}",
    "upstreams:\n  openai:\n    api_key: |\n      CANARY\n      more\n",
    "upstreams:\n  openai:\n    api_key: CANARY\n      more\n",
    "upstreams:\n  openai:\n    api_key:\n      CANARY\n    colour: red\n",
    'upstreams:\n  openai:\n    api_key: "CANARY\n    colour: red\n',
    "upstreams:\n  openai:\n    api_key: 'CANARY\n",
    "upstreams:\n  openai:\n    api_key: CANARY: x\n",
    "upstreams:\n  openai:\n    api_key: x # CANARY\n    colour: red # CANARY\n",
    "upstreams:\n  openai:\n    - api_key: CANARY\n   bad: indent\n",
    "upstreams:\n  openai:\n    api_key: @CANARY\n",
    "upstreams:\n  openai:\n    api_key: `CANARY\n",
    "upstreams:\n  openai:\n    ? CANARY\n    : CANARY\n",
    "keys: {alice: CANARY}",
    "keys: CANARY",
    "keys: [CANARY]",
    "keys: {CANARY: {}}",
    "keys: {CANARY: [fast]}",
    "keys: {alice: {key: CANARY, hash: CANARY}}",
    "keys: {alice: {key: CANARY, routes: [CANARY]}}",
    "keys: {alice: {key: CANARY, expires: CANARY}}",
    "keys: {alice: {key: CANARY}, bob: {key: CANARY}}",
    "keys:\n  alice: {key: CANARY}\n  no: {key: CANARY}\n",
    "routes: {fast: CANARY}",
    "routes: {fast: CANARY/x}",
    "routes: {fast: [CANARY, CANARY/x, {to: CANARY}, [CANARY], {CANARY: x}]}",
    "routes: {fast: {api_key: CANARY, to: mine/x}}",
    "routes: {fast: {to: [mine/x], affinity: 'header:CANARY y', strategy: CANARY}}",
    "routes: {fast: {balance: [{to: CANARY/x, weight: CANARY, timeouts: {connect: CANARY}}], fallback: CANARY}}",
    "routes: {fast: {balance: CANARY}}",
    "routes: {fast: mine/x, CANARY: y}",
    "default_model: CANARY",
    "server: {listen: CANARY}",
    "server: {trusted_proxies: [CANARY], cors_origins: [CANARY]}",
    "CANARY: x",
    "CANARY",
    "{CANARY",
    "- CANARY",
    "x: 1\x01 CANARY",
    "%CANARY x\n---\na: b",
    "a: 1\n---\nCANARY: b",
]


@pytest.mark.parametrize("text", MISPLACED, ids=range(len(MISPLACED)))
def test_canary_anywhere_in_a_bad_file_is_in_no_message(loading: Loading, text: str) -> None:
    written = text.replace("CANARY", CANARY)
    for whole in (written, f"{written}\n{BROKEN}"):
        with pytest.raises(ConfigInvalid) as caught:
            loading.load(whole)
        told = str(caught.value) + repr(caught.value) + repr(caught.value.problems) + "".join(traceback.format_exception(caught.value))
        assert "CANARY" not in told
        assert CANARY[-6:] not in told


PLAIN = [
    text
    for text in MISPLACED
    if any(
        part in text for part in ("openai: CANARY", "[CANARY]", "{CANARY}", "api", "token", "alice: CANARY", "keys: CANARY", "key: CANARY,")
    )
    and not any(
        part in text
        for part in (
            "${",
            "_file",
            "CANARY: {",
            "CANARY: [",
            "expires",
            "routes: [",
            "base_url: CANARY",
            "cors",
            "vendor",
            "affinity",
            "fast: [CANARY",
        )
    )
]


@pytest.mark.parametrize("text", PLAIN, ids=range(len(PLAIN)))
def test_canary_without_the_look_of_a_credential_is_hidden_by_where_it_stands(loading: Loading, text: str) -> None:
    for written in (text.replace("CANARY", "hunter2CANARY"), text.replace("CANARY", "hunter2CANARY") + "\n" + BROKEN):
        assert "CANARY" not in "\n".join(str(problem) for problem in loading.problems(written))


@pytest.mark.parametrize(
    "variable", [f"{CANARY}\n", f"{CANARY}\r\nX-Evil: 1", f"{CANARY}\x00", f"{CANARY} x", f"é{CANARY}", f"{CANARY}\udcff"]
)
def test_variable_that_cannot_stand_in_a_header_is_refused_unseen(loading: Loading, variable: str) -> None:
    problem = loading.problem("upstreams: {openai: {api_key: '${K}'}}\nroutes: {a: openai/x}", {"K": variable})
    assert (problem.line, problem.path) == (1, "upstreams.openai.api_key")
    assert "cannot be sent in a header" in problem.message
    assert "CANARY" not in str(problem)


def test_canary_of_a_good_file_is_in_no_repr_and_no_warning(loading: Loading) -> None:
    (loading.folder / "secret").write_text(CANARY + "3")
    config = loading.load(
        f"""
        upstreams:
          openai: {{api_key: {CANARY}1}}
          far: {{base_url: "http://far.example.com/v1", api_key: "${{K}}"}}
          file: {{base_url: "http://127.0.0.1:9/v1", api_key: "${{file:secret}}"}}
          both: {{base_url: "http://127.0.0.1:9/v1", api_keys: [{CANARY}5, {CANARY}6]}}
          kept: {{base_url: "http://127.0.0.1:9/v1", api_key_file: secret}}
        routes: {{fast: openai/x}}
        keys: {{alice: {{key: {CANARY}4, expires: 2020-01-01}}, bob: {{key: sk-CANARY}}}}
        """,
        {"K": CANARY + "2"},
    )
    assert len(config.warnings) == 8
    assert "CANARY" not in f"{config!r} {config} {config.warnings} {config.upstreams} {config.keys} {config.upstreams['openai']!s}"
    key = config.upstreams["file"].api_key
    assert key is not None
    assert key.reveal() == CANARY + "3"
    assert hashlib.sha256(f"{CANARY}4".encode()).digest() in config.keys


def test_canary_in_the_environment_is_in_no_message_of_a_start_without_a_file() -> None:
    environ = {
        "OPENAI_API_KEY": f"{CANARY}\n",
        "GROQ_API_KEY": f"{CANARY} x",
        "XAI_API_KEY": CANARY,
        "HTTPS_PROXY": f"http://user:{CANARY}@proxy:1",
        "AI_MODEL_NAME": f"{CANARY}\x07",
    }
    with pytest.raises(ConfigInvalid) as caught:
        discover(environ, has_ollama=False)
    assert [problem.path for problem in caught.value.problems] == ["OPENAI_API_KEY", "GROQ_API_KEY", "HTTPS_PROXY", "AI_MODEL_NAME"]
    assert "CANARY" not in str(caught.value)
    config = discover({"OPENAI_API_KEY": CANARY}, has_ollama=False)
    assert "CANARY" not in repr(config)


def test_proxy_with_a_password_in_the_environment_is_refused_unseen(loading: Loading) -> None:
    problem = loading.problem(
        "upstreams: {mine: {base_url: 'https://example.com/v1'}}\n" + ROUTE, {"HTTPS_PROXY": f"http://user:{CANARY}@proxy:1"}
    )
    assert problem.path == "upstreams.mine"
    assert "HTTPS_PROXY" in problem.message
    assert "CANARY" not in str(problem)


def test_line_with_a_secret_shows_its_names_and_no_length(loading: Loading) -> None:
    problem = loading.problem(f"upstreams: {{mine: {{api_key: {CANARY}, base_url: 'http://x.y/v1', colour: red}}}} # {CANARY}\n{ROUTE}")
    assert problem.excerpt == (
        "    1 | upstreams: {mine: {api_key: ***, base_url: 'http://x.y/v1', colour: ***}}\n"
        "      |                                                             ^"
    )


def test_variable_by_name_is_shown_even_where_a_secret_stands(loading: Loading) -> None:
    problem = loading.problem("upstreams: {openai: {api_key: '${OPENAI_API_KEY}'}}\nroutes: {a: openai/x}")
    assert "'${OPENAI_API_KEY}'" in problem.excerpt


def test_secret_typed_into_another_setting_is_not_repeated(loading: Loading) -> None:
    assert "CANARY" not in str(loading.problem(f"{UPSTREAM}routes: {{fast: {CANARY}/x}}"))
