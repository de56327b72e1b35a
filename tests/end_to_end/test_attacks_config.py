"""Hostile configuration (A50, A51) as a person meets it: `relay check` ends with 78, names the place, and repeats no secret."""

import subprocess
import sys
from pathlib import Path

import pytest

from relay.cli import main
from tests.fakes.relay import ROOT

CANARY = "sk-CANARY-4f1d7c20aa"
GOOD = "upstreams: {mine: {base_url: 'https://api.example.com/v1', api_key: sk-CANARY-4f1d7c20aa}}\nroutes: {'*': mine/*}\n"
LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))])

HOSTILE: dict[str, str] = {
    "A50 tag that runs code": GOOD + f"server: !!python/object/apply:os.system ['echo {CANARY}']\n",
    "A50 tag of our own making": GOOD + f"server: !secret {CANARY}\n",
    "A50 anchor": GOOD + "server: &s {drain: 1s}\n",
    "A50 alias": GOOD + "server: *nothing\n",
    "A50 billion laughs": GOOD + LAUGHS,
    "A50 merge": GOOD + "keys: {<<: {alice: {key: sk-CANARY-4f1d7c20aa}}}\n",
    "A50 section twice": GOOD + GOOD,
    "A50 key twice": GOOD + f"keys:\n  alice: {{key: {CANARY}}}\n  alice: {{key: other}}\n",
    "A50 setting twice": GOOD.replace("api_key:", f"api_key: {CANARY}x, api_key:"),
    "A50 bottomless": GOOD + "server: " + "[" * 5000 + "]" * 5000,
    "A50 bottomless and never closed": GOOD + "server: " + "{a: " * 5000,
    "A50 number for a name": GOOD + f"keys: {{1: {{key: {CANARY}}}, 1.0: {{key: x}}, '': {{key: y}}}}\n",
    "A50 switch in words": GOOD + f"keys: {{alice: {{key: {CANARY}, enabled: no}}}}\n",
    "A50 clock for a duration": GOOD + "server: {drain: 12:30}\n",
    "A50 null": GOOD + "server: ~\nkeys: null\ntimeouts: {connect: null}\n",
    "A50 no bound": GOOD + "timeouts: {connect: 0s, total: .inf}\n",
    "A50 two documents": GOOD + "---\n" + GOOD,
    "A50 too large": GOOD + "#" * (2**20 + 1) + "\n",
    "A50 unknown section": GOOD + f"extra: {CANARY}\n",
    "A50 not a mapping": f"- {CANARY}\n",
    "A50 nothing": "",
    "A50 NUL": GOOD + "\0\n",
    "A50 not UTF-8": GOOD + "# \udcff\n",
    "A51 variable that is not set": GOOD.replace(CANARY, "'${NOT_SET_ANYWHERE}'"),
    "A51 variable with a line break": GOOD.replace(CANARY, "'${BROKEN_KEY}'"),
    "A51 variable with a space": GOOD.replace(CANARY, "'${SPACED_KEY}'"),
    "A51 empty variable": GOOD.replace(CANARY, "'${EMPTY_KEY}'"),
    "variable never closed": GOOD.replace(CANARY, "'${BROKEN_KEY'"),
    "A44 key with a control character": GOOD.replace(CANARY, f'"{CANARY}\\r\\nX-Evil: 1"'),
    "A44 name of an upstream with a line break": GOOD.replace("mine:", '"mi\\nne":'),
    "A44 name of a route with a line break": GOOD.replace("'*': ", '"a\\r\\nX-Evil: 1": '),
    "forwarded credential": GOOD.replace("api_key:", "forward_headers: [authorization], api_key:"),
    "credentials in a URL": GOOD.replace("https://api", f"https://user:{CANARY}@api"),
    "credentials of a proxy": GOOD.replace("api_key:", f"proxy: 'http://user:{CANARY}@proxy:3128', api_key:"),
    "any origin": GOOD + "server: {cors_origins: ['*']}\n",
    "open to everybody": GOOD + "server: {listen: '0.0.0.0:8080'}\n",
}
ENVIRONMENT = {"BROKEN_KEY": f"{CANARY}\nmore", "SPACED_KEY": f"{CANARY} more", "EMPTY_KEY": "", "NESTED_KEY": "${BROKEN_KEY}"}


def check(file: Path) -> subprocess.CompletedProcess[str]:
    """Run `relay check` as a process of its own."""
    command = [sys.executable, "-m", "relay", "check", str(file)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", HOSTILE)
def test_a50_a51_hostile_configuration_is_refused_with_its_place_and_without_its_secrets(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own function, since starting Python for each file would be most of the work."""
    file = tmp_path / "relay.yaml"
    file.write_text(HOSTILE[name], errors="surrogateescape")
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    code = main(["check", str(file)])
    told = capsys.readouterr()
    assert (code, told.out) == (78, ""), told.err
    assert "Traceback" not in told.err
    assert "relay.yaml" in told.err
    assert CANARY[:12] not in told.err
    if name.startswith("A51"):
        assert any(variable in told.err for variable in ("NOT_SET_ANYWHERE", "BROKEN_KEY", "SPACED_KEY", "EMPTY_KEY")), told.err
        assert "upstreams.mine.api_key" in told.err


@pytest.mark.parametrize("name", ["A50 billion laughs", "A50 bottomless", "A51 variable with a line break"])
def test_hostile_configuration_ends_the_process_with_78(name: str, tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(HOSTILE[name])
    done = check(file)
    assert (done.returncode, done.stdout) == (78, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert CANARY[:12] not in done.stderr


def test_a51_variable_is_expanded_once(tmp_path: Path) -> None:
    """What a variable holds is text, also when it looks like another variable."""
    file = tmp_path / "relay.yaml"
    file.write_text(GOOD.replace(CANARY, "'${NESTED_KEY}'"))
    done = check(file)
    assert (done.returncode, CANARY in done.stdout + done.stderr) == (0, False), done.stderr


def test_good_configuration_is_told_without_its_secrets(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(GOOD + f"keys: {{alice: {{key: {CANARY}2}}}}\n")
    done = check(file)
    assert done.returncode == 0
    assert CANARY[:12] not in done.stdout + done.stderr
    assert "1 key" in done.stdout
