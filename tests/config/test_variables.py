"""Variables in values: each form, one pass, and a value that can never add YAML."""

from pathlib import Path

import pytest

from relay.config.variables import commit_of, expand
from tests.config.loading import ROUTE, UPSTREAM, Loading

ENVIRON = {"NAME": "value", "EMPTY": "", "NESTED": "${NAME} $$ ${file:/etc/passwd}", "FIRST_KEY": "1"}
FOLDER = Path("/nowhere")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("${NAME}", "value"),
        ("a-${NAME}-${NAME}", "a-value-value"),
        ("${NAME:-other}", "value"),
        ("${MISSING:-other}", "other"),
        ("${MISSING:-}", ""),
        ("${EMPTY:-other}", "other"),
        ("${MISSING:-http://a:1/b?c}", "http://a:1/b?c"),
        ("${NAME:?needed}", "value"),
        ("$NAME", "$NAME"),
        ("$", "$"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("$$$${NAME}", "$${NAME}"),
        ("${MISSING:-$NAME}", "$NAME"),
        ("${NESTED}", "${NAME} $$ ${file:/etc/passwd}"),
    ],
)
def test_forms(text: str, expanded: str) -> None:
    assert expand(text, ENVIRON, FOLDER) == expanded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${MISSING}", "environment variable MISSING is not set"),
        ("${FIRST_KYE}", 'environment variable FIRST_KYE is not set; did you mean "FIRST_KEY"?'),
        ("${EMPTY}", "environment variable EMPTY is set but empty; write ${EMPTY:-} where nothing is meant"),
        ("${MISSING:?get one at the desk}", "environment variable MISSING is not set: get one at the desk"),
        ("${EMPTY:?x}", "environment variable EMPTY is set but empty: x"),
        ("${}", "expected ${NAME}"),
        ("${1X}", "expected ${NAME}"),
        ("${A B}", "expected ${NAME}"),
        ("${NAME-x}", "expected ${NAME}"),
        ("${NAME:+x}", "expected ${NAME}"),
        ("${NAME", "is not closed"),
        ("${file:}", "expected ${NAME}"),
        ("${file:a\nb}", "expected ${NAME}"),
        ("${file:gone}", "file /nowhere/gone cannot be read: No such file or directory"),
    ],
)
def test_refusals_name_the_variable_and_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        expand(text, ENVIRON, FOLDER)
    assert message in str(caught.value)


@pytest.mark.parametrize(("raw", "text"), [(b"abc\n", "abc"), (b"abc\r\n", "abc"), (b"abc", "abc"), (b"abc\n\n", "abc\n")])
def test_file_loses_one_line_break_at_its_end(tmp_path: Path, raw: bytes, text: str) -> None:
    (tmp_path / "secret").write_bytes(raw)
    assert expand("${file:secret}", {}, tmp_path) == text


def test_file_of_other_sort_or_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "large").write_bytes(b"x" * 65537)
    for name, message in (("binary", "not UTF-8"), ("large", "larger than 64 KiB"), (".", "cannot be read"), ("/dev/zero", "larger than")):
        with pytest.raises(ValueError, match=message):
            expand(f"${{file:{name}}}", {}, tmp_path)


def test_value_of_a_variable_adds_no_yaml(loading: Loading) -> None:
    config = loading.load(UPSTREAM + "routes: {fast: '${TARGET}'}", {"TARGET": "mine/x, slow: mine/y"})
    assert {name: route.targets[0].model for name, route in config.routes.items()} == {"fast": "x, slow: mine/y"}


def test_variables_reach_every_kind_of_value(loading: Loading) -> None:
    config = loading.load(
        "server: {max_body: '${SIZE}', drain: '${TIME}', max_connections: '${COUNT}'}\n"
        "upstreams: {mine: {base_url: '${URL}', done_optional: '${YES}'}}\n" + ROUTE,
        {"SIZE": "1MiB", "TIME": "5s", "COUNT": "7", "URL": "http://127.0.0.1:9/v1", "YES": "true"},
    )
    assert (config.server.max_body, config.server.drain, config.server.max_connections) == (2**20, 5.0, 7)
    assert config.upstreams["mine"].done_optional


def test_unset_variable_is_told_with_its_path_and_once(loading: Loading) -> None:
    problem = loading.problem("upstreams: {openai: {api_key: '${OPENAI_KEY}'}}\nroutes: {a: openai/x}", {"OPENAI_API_KEY": "k"})
    assert problem.path == "upstreams.openai.api_key"
    assert problem.message == 'environment variable OPENAI_KEY is not set; did you mean "OPENAI_API_KEY"?'


def test_names_are_never_expanded(loading: Loading) -> None:
    config = loading.load(UPSTREAM + "routes: {'${NAME}': mine/x}", {"NAME": "fast"})
    assert list(config.routes) == ["${NAME}"]


@pytest.mark.parametrize(
    ("said", "commit"),
    [
        ("0a1B2c3", "0a1b2c3"),
        ("f" * 40, "f" * 40),
        ("", "unknown"),
        ("main", "unknown"),
        ("0a1b2c3\n", "unknown"),
        ("sk-made-up-1", "unknown"),
    ],
)
def test_the_commit_is_a_hash_or_unknown(said: str, commit: str) -> None:
    assert commit_of({"RELAY_COMMIT": said}) == commit
    assert commit_of({}) == "unknown"
