"""The command line: `relay` serves; every other command answers without loading the server.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 failed while running; 2 wrong usage; 78 bad
configuration (EX_CONFIG of sysexits.h, so that a supervisor can tell it from a crash); 130 interrupted.
"""

import argparse
import contextlib
import difflib
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from relay import __version__
from relay.cli.banner import banner
from relay.cli.exits import BAD_CONFIG, FAILED, INTERRUPTED, OK, PLACES, USAGE, find_file, give_up, hold_standard_files, say
from relay.cli.extras import has_sdk
from relay.cli.parsing import know_themselves
from relay.config import apart
from relay.config.problems import ConfigInvalid
from relay.config.tree import Config, Slo
from relay.usage import UsageBroken, UsageLedger

_COMMANDS: Final = ("serve", "check", "explain", "keys", "rules", "schema", "targets", "usage", "version")
_OLLAMA: Final = ("127.0.0.1", 11434)
_EXPLAIN: Final = "Tell which targets a request would be tried on, in which order and by which rules. No network is used."
_SCHEMA: Final = "Print the JSON Schema of the configuration, by which editors complete and check it."
_RULES: Final = "Print recording and alert rules for Prometheus, made from what `metrics.slo` promises."
_MAX_REQUEST: Final = 32 * 2**20
_PROBE_SECONDS: Final = 0.3
"""A local server answers within a millisecond; nobody should wait longer for one that is not there."""


def main(argv: list[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "serve")
    if words[0] == "help":
        words = [*words[1:2], "--help"]
    if words[0] not in _COMMANDS and not words[0].startswith("-"):
        return _unknown_command(words[0])
    try:
        options, unknown = _parser(is_whole=words[0] != "serve").parse_known_args(words)
        if unknown:
            options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    except SystemExit as end:  # argparse has printed what is to be said
        return end.code if isinstance(end.code, int) else USAGE
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where what goes wrong can still be told
        return code
    except ConfigInvalid as invalid:
        print(invalid, file=sys.stderr)
        return BAD_CONFIG
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has enough
        return _give_up_output()
    except OSError as error:
        if run is _serve:
            raise
        # Commands tell of their own files themselves, so it is the output that failed.
        print(f"relay {words[0]}: {error.strerror or error}", file=sys.stderr)
        return _give_up_output()


def _give_up_output() -> int:
    give_up(sys.stdout)
    return FAILED


def _parser(*, is_whole: bool) -> argparse.ArgumentParser:
    """Return the parser; unless `is_whole`, without the commands in modules of their own, which `serve` need not import."""
    parser = argparse.ArgumentParser(prog="relay", description="A streaming reverse proxy for LLM APIs. `relay` alone serves.")
    parser.add_argument("--version", action="version", version=f"relay {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="run the relay", description=f"Run the relay. Without --config: {_places()}.")
    serve.add_argument("-c", "--config", metavar="FILE", help="configuration file")
    serve.add_argument("--listen", metavar="HOST:PORT", help="address to listen on, before what the file says")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="check a configuration file", description="Tell every problem of a file, with its place.")
    check.add_argument("file", metavar="FILE", nargs="?", help="default: the file that `relay serve` would find")
    check.set_defaults(run=_check)

    explain = commands.add_parser("explain", help="tell where a model's requests go, and by which rules", description=_EXPLAIN)
    explain.add_argument("model", metavar="MODEL", nargs="?", help="default: the one that the request names, else the default model")
    explain.add_argument("-c", "--config", metavar="FILE", help="configuration file")
    explain.add_argument("--key", metavar="NAME", help="name of the virtual key that asks")
    explain.add_argument("--request", metavar="FILE", help="JSON body of a request; - for standard input")
    explain.add_argument("--json", action="store_true", help="as JSON")
    explain.set_defaults(run=_explain)

    rules = commands.add_parser("rules", help="print Prometheus rules", description=_RULES)
    rules.add_argument("-c", "--config", metavar="FILE", help="configuration file; without one, the default promise")
    what = rules.add_mutually_exclusive_group()
    what.add_argument("--alerts", action="store_true", help="the rules (this is the default)")
    what.add_argument("--tests", action="store_true", help="cases for `promtool test rules`, over rules in alerts.yml beside them")
    rules.set_defaults(run=_rules)

    describe = commands.add_parser("schema", help="print the JSON Schema of the configuration", description=_SCHEMA)
    describe.add_argument("--markdown", action="store_true", help="as a page for people, docs/configuration.md")
    describe.set_defaults(run=_schema)

    if is_whole:
        from relay.cli import keys, targets, usage

        for each in (keys, targets, usage):
            each.add_parser(commands)

    version = commands.add_parser("version", help="print versions")
    version.add_argument("--json", action="store_true", help="as JSON")
    version.set_defaults(run=_version)
    know_themselves(parser)
    return parser


def _places() -> str:
    return f"the first of {', '.join(PLACES)}; else keys in the environment, a local Ollama, or a simulated upstream"


def _unknown_command(word: str) -> int:
    close = difflib.get_close_matches(word[:64], _COMMANDS, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(_COMMANDS)}"
    if word.endswith((".yaml", ".yml")):
        hint = "a file is named with --config: relay serve --config FILE"
    print(f"relay: no command {word[:64]!r}; {hint}", file=sys.stderr)
    return USAGE


def _serve(options: argparse.Namespace) -> int:
    hold_standard_files()
    file: str | None = options.config or find_file()
    listen: str | None = options.listen
    reload: Callable[[], Config] | None = None
    if file is not None:
        read, reload = apart.begin(file, os.environ, listen=listen), functools.partial(apart.read_again, file, listen)
        import relay.app  # noqa: F401  # meanwhile: whatever serves needs it

        config = read()
    else:
        from relay.config import discover

        config = discover(os.environ, has_ollama=_has_ollama(), listen=listen)

    if config.usage is not None and not _can_write(config.usage.store):
        return FAILED
    if config.tracing.is_wanted and not has_sdk():
        print("relay: tracing.otlp needs the extra otel: pip install 'relay[otel]'", file=sys.stderr)
        return FAILED
    if config.server.workers == 1:
        from relay.app import run  # most of the start-up time: only what serves pays for it
    else:
        from relay.workers import run

    def announce(url: str) -> None:
        with contextlib.suppress(OSError):  # a full disk, or nobody who reads: streams are served all the same
            sys.stderr.write(f"{banner(config, url)}\n")
            sys.stderr.flush()

    code = run(config, reload=reload, announce=announce)
    try:
        sys.stderr.flush()
    except OSError:
        give_up(sys.stderr)
    return code


def _can_write(path: str) -> bool:
    """Make the ledger where there is none; tell a person when that cannot be done."""
    try:
        UsageLedger(path).close()
    except UsageBroken as broken:
        say(f"relay: usage.store: {broken}")
        return False
    return True


def _check(options: argparse.Namespace) -> int:
    file: str | None = options.file or find_file()
    if file is None:
        print(f"relay check: no file given, and none of {', '.join(PLACES)} is there", file=sys.stderr)
        return USAGE
    from relay.config import load

    config = load(file, os.environ)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    counts = [
        _count(len(config.upstreams), "upstream"),
        _count(len(config.routes), "route"),
        _count(len(config.key_names), "key"),
    ]
    print(f"{file}: good: {', '.join(counts)}" + (f", {_count(len(config.warnings), 'warning')}" if config.warnings else ""))
    return OK


def _explain(options: argparse.Namespace) -> int:
    from relay.cli.explain import explain  # the other commands do without the rooms it reads
    from relay.config import discover, load

    file: str | None = options.config or find_file()
    config = load(file, os.environ) if file is not None else discover(os.environ, has_ollama=False)
    try:
        request = None if options.request is None else _read(options.request)
        found = explain(config, options.model, options.key, request, unix_time=time.time())
    except OSError as error:
        print(f"relay explain: {options.request}: cannot be read: {error.strerror}", file=sys.stderr)
        return USAGE
    except LookupError as error:
        print(f"relay explain: {error.args[0]}", file=sys.stderr)
        return USAGE
    print(json.dumps(found.json(), indent=2) if options.json else found.text())
    return OK if found.refusal is None else FAILED


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read(_MAX_REQUEST)
    with Path(file).open("rb") as source:
        return source.read(_MAX_REQUEST)


def _rules(options: argparse.Namespace) -> int:
    from relay.config import load
    from relay.telemetry.rule_tests import make_rule_tests
    from relay.telemetry.rules import make_rules, to_yaml

    file: str | None = options.config or find_file()
    slo = load(file, os.environ).metrics.slo if file is not None else Slo()
    if options.tests:
        print(to_yaml(make_rule_tests(slo, "alerts.yml"), "Run with: promtool test rules FILE. Printed by: relay rules --tests"), end="")
    else:
        print(to_yaml(make_rules(slo), "Rules for Prometheus. Printed by: relay rules"), end="")
    return OK


def _schema(options: argparse.Namespace) -> int:
    from relay.config import reference, schema

    print(reference() if options.markdown else json.dumps(schema(), indent=2))
    return OK


def _version(options: argparse.Namespace) -> int:
    versions = {"relay": __version__, "python": platform.python_version(), "aiohttp": _installed("aiohttp"), "uvloop": _installed("uvloop")}
    if options.json:
        print(json.dumps(versions))
    else:
        print(", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items()))
    return OK


def _installed(name: str) -> str | None:
    from importlib import metadata  # with all that it needs, two megabytes that a relay which serves need not hold

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _has_ollama() -> bool:
    """Ask once whether an Ollama answers at its usual address."""
    import http.client

    connection = http.client.HTTPConnection(*_OLLAMA, timeout=_PROBE_SECONDS)
    # Whatever goes wrong here means that there is none.
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/api/version")
        answer = connection.getresponse()
        return answer.status == 200 and b"version" in answer.read(1024)
    return False


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
