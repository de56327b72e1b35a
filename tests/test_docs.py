"""The documentation against the code: tables, defaults, ids and file names that would otherwise grow old in silence."""

import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

from relay.config import load, reference, schema
from relay.config.tree import Server, Timeouts
from relay.errors import (
    CLIENT_ERRORS,
    Break,
    ConnectFailed,
    ConnectFault,
    Draining,
    ErrorAnswer,
    ErrorEvent,
    InternalError,
    Malformation,
    MalformedResponse,
    Overloaded,
    Phase,
    RelayError,
    StreamBroken,
    UpstreamRefused,
    UpstreamTimeout,
    error_answer,
)
from relay.exchange import BAD, GOOD, AttemptResult, Blame, Operation, Outcome, UsageSource
from relay.telemetry.families import all_families

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text()
ERRORS: Final = (ROOT / "docs/errors.md").read_text()
FAULTS: Final = (ROOT / "docs/faults.md").read_text()

FAILURES: Final[list[RelayError]] = [
    *(ConnectFailed(fault) for fault in ConnectFault),
    *(UpstreamTimeout(phase) for phase in Phase),
    *(MalformedResponse(what) for what in Malformation),
    *(StreamBroken(how, anything=True) for how in Break),
    *(UpstreamRefused(status) for status in range(300, 600)),
    Draining(),
    Overloaded(),
    InternalError(),
]


def section(text: str, title: str) -> str:
    """Return what stands under the heading `title`, up to the next heading of its level."""
    _, _, rest = text.partition(f"## {title}\n")
    assert rest, f"no section {title!r}"
    return re.split(r"^## ", rest, maxsplit=1, flags=re.M)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row of `text`, headings and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(("| `", "| F", "| A"))]


def documented(answer: ErrorAnswer) -> list[str]:
    return [f"`{answer.code}`", str(answer.status), f"`{answer.type}`"]


def test_client_errors_are_documented_as_the_code_has_them() -> None:
    expected = [[f"`{code}`", str(status), f"`{type_}`", text.rstrip(".")] for code, (status, type_, text) in CLIENT_ERRORS.items()]
    assert rows(section(ERRORS, "The caller's side")) == expected


def test_upstream_errors_are_documented_as_the_code_has_them() -> None:
    written = {row[0]: row[:3] for row in rows(section(ERRORS, "The upstream's side, and the relay's own"))}
    made = {f"`{answer.code}`": documented(answer) for answer in map(error_answer, FAILURES)}
    in_stream = error_answer(ErrorEvent(429, kind="rate_limit_error", code=None))
    made[f"`{in_stream.code}`"] = [f"`{in_stream.code}`", "as the event says", f"`{in_stream.type}`"]
    assert written == made


def test_outcomes_are_documented_with_what_they_count_as() -> None:
    written = [(row[0].strip("`"), row[2]) for row in rows(section(ERRORS, "Outcomes"))]
    sides = {outcome: "good" if outcome in GOOD else "bad" if outcome in BAD else "not counted" for outcome in Outcome}
    assert written == [(outcome.value, side) for outcome, side in sides.items()]


def test_codes_of_the_readme_and_of_the_faults_exist() -> None:
    known = {answer.code for answer in map(error_answer, FAILURES)} | set(CLIENT_ERRORS) | {"upstream_error_in_stream"}
    codes = {code for row in rows(section(README, "Errors")) for code in re.findall(r"`(\w+)`", row[0])}
    codes |= {code for row in rows(FAULTS) if row[0].startswith("F") for code in re.findall(r"`(\w+)`", row[3])}
    assert codes <= known, codes - known


def test_outcomes_of_the_faults_exist() -> None:
    named = {word for row in rows(FAULTS) if row[0].startswith("F") for word in re.findall(r"`(\w+)`", row[4])}
    assert named <= {outcome.value for outcome in Outcome}


def test_metrics_are_documented_by_the_names_that_the_code_has() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    sources = [path.read_text() for path in sorted((ROOT / "relay/telemetry").glob("*.py"))]
    exported = {name for source in sources for name in re.findall(r'"(relay_[a-z_]+)"', source)}
    assert {row[0].strip("`") for row in rows(page)} == exported
    assert set(re.findall(r"`(relay_[a-z_]+)`", README)) <= exported


def test_metrics_are_documented_with_their_types_and_labels() -> None:
    written = {row[0].strip("`"): (row[1], row[2].replace("`", "")) for row in rows((ROOT / "docs/metrics.md").read_text())}
    declared = {family.name: (family.kind.value, ", ".join(family.labels)) for family in all_families()}
    assert {name: written[name] for name in declared} == declared


@pytest.mark.parametrize(
    ("start", "values"),
    [
        ("- `operation`:", {operation.value for operation in Operation}),
        ("- `result` of attempts:", {result.value for result in AttemptResult}),
        ("- `blame`:", {blame.value for blame in Blame}),
        ("- `source`:", {source.value for source in UsageSource}),
    ],
)
def test_label_values_are_documented_as_the_code_has_them(start: str, values: set[str]) -> None:
    (line,) = [line for line in (ROOT / "docs/metrics.md").read_text().splitlines() if line.startswith(start)]
    assert set(re.findall(r"`(\w+)`", line.removeprefix(start))) == values


def seconds(text: str) -> float:
    match = re.fullmatch(r"`(\d+)(s|m|h)`", text)
    assert match, text
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def mebibytes(text: str) -> int:
    match = re.fullmatch(r"`(\d+)(KiB|MiB)`", text)
    assert match, text
    return int(match[1]) * {"KiB": 2**10, "MiB": 2**20}[match[2]]


def test_defaults_of_the_readme_are_the_defaults() -> None:
    written = {row[0].strip("`"): row[1] for row in rows(section(README, "Limits and defaults"))}
    timeouts, server = Timeouts(), Server()
    for field in fields(Timeouts):
        if field.name == "first_token_auto":
            continue  # a word instead of the number
        assert seconds(written[f"timeouts.{field.name}"]) == getattr(timeouts, field.name)
    assert written["server.listen"] == f"`{server.host}:{server.port}`"
    assert mebibytes(written["server.max_body"]) == server.max_body
    assert mebibytes(written["server.max_header"]) == server.max_header
    assert seconds(written["server.drain"]) == server.drain


def test_the_sdk_version_that_the_readme_names_is_the_one_that_runs() -> None:
    assert f"`openai` Python SDK {version('openai')}" in README


def test_the_configuration_in_the_readme_loads_without_a_warning(tmp_path: Path) -> None:
    example = re.search(r"^```yaml\n(.*?)^```", README, flags=re.M | re.S)
    assert example
    file = tmp_path / "relay.yaml"
    file.write_text(example[1])
    config = load(str(file), {"OPENAI_API_KEY": "sk-made-up"})
    assert set(config.routes) == {"fast", "openai/*", "*"}
    assert not config.warnings


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`?make ([a-z]+)", section(README, "Development"))) <= targets
    assert {"run", "test", "bench"} <= targets


def test_links_between_pages_lead_to_files() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


ID: Final = re.compile(r"(?<![A-Za-z0-9])([FA])(\d{1,2})(?![A-Za-z0-9])")
TEST_NAME_ID: Final = re.compile(r"_([fa])(\d{1,2})(?=[_(])")


def ids_in(folder: str) -> dict[str, str]:
    """Map each fault id that the sources under `folder` name to one file that names it."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path != Path(__file__):
            text = path.read_text()
            found |= {f"{letter.upper()}{number}": path.name for letter, number in ID.findall(text) + TEST_NAME_ID.findall(text)}
    return found


def test_every_fault_that_code_or_tests_name_is_documented() -> None:
    named = ids_in("tests") | ids_in("relay")
    missing = sorted(set(named.items()) - {(row[0], named.get(row[0], "")) for row in rows(FAULTS)})
    assert not missing


def test_every_documented_fault_is_named_by_a_test() -> None:
    unproven = [row[0] for row in rows(FAULTS) if row[0] not in ids_in("tests")]
    assert not unproven


def test_the_reference_of_settings_is_what_the_schema_makes() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    assert page.partition("<!-- relay schema --markdown -->\n\n")[2] == reference() + "\n", "`make docs` writes it anew"


def test_the_reference_names_every_setting_of_every_section() -> None:
    made = schema()
    for section in (made, *made["$defs"].values()):
        assert all(f"| `{name}` |" in reference() for name in section["properties"])


def test_the_example_names_every_setting() -> None:
    example, made = (ROOT / "config/relay.example.yaml").read_text(), schema()
    names = {name for section in (made, *made["$defs"].values()) for name in section["properties"]}
    assert not {name for name in names if not re.search(rf"\b{name}:", example)}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == pages
