"""The house rules, read off the source: who imports whom, sizes, no effects at import, a chunk path that never waits.

Every module belongs to a room (its first name below `relay`); a module without a room fails, so the table stays whole.
Each check returns its findings as `file:line: what`, and a test below it shows that it finds what it is there for.
"""

import ast
import builtins
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent

MAX_MODULE_LINES: Final = 400
MAX_FUNCTION_LINES: Final = 50

# Rooms, lowest first, each with the rooms it may import besides itself; the version in `relay` itself is for everybody.
_BASE: Final = frozenset({"errors", "config", "exchange"})
_PURE_TOP: Final = _BASE | {"wire", "policy", "providers", "dialects"}
_CORE: Final = _PURE_TOP | {"stream", "forward"}
_HALL: Final = _CORE | {"gateway"}
MAY_IMPORT: Final[dict[str, frozenset[str]]] = {
    "__init__": frozenset(),
    "errors": frozenset(),
    "config": frozenset({"errors"}),
    "exchange": frozenset({"errors", "config"}),
    "wire": _BASE,
    "policy": _BASE,
    "providers": _BASE | {"wire", "policy"},
    "dialects": _BASE | {"wire", "policy"},
    "demo": _BASE | {"wire"},
    "stream": _PURE_TOP,
    "forward": _PURE_TOP | {"stream"},
    "gateway": _CORE,
    "stores": _PURE_TOP,
    "usage": frozenset(),
    "telemetry": _BASE | {"usage"},
    "transport": _HALL | {"demo"},
    "app": _HALL | {"demo", "stores", "telemetry", "transport", "usage"},
    "workers": _HALL | {"stores", "telemetry", "transport", "app"},
    "cli": _PURE_TOP | {"usage", "app", "workers", "telemetry"},
    "__main__": frozenset({"cli"}),
}

PURE: Final = frozenset({"errors", "exchange", "wire", "policy", "providers", "dialects", "stream", "demo"})
"""Rooms that are tested without a network and without sleeping: time and chance come in as arguments."""
IMPURE_LIBRARIES: Final = frozenset(
    {"aiohttp", "asyncio", "httptools", "os", "prometheus_client", "random", "select", "selectors", "socket", "ssl"}
    | {"structlog", "subprocess", "threading", "time", "uvloop", "yaml"}
)
HOME_OF: Final[dict[str, frozenset[str]]] = {
    "aiohttp": frozenset({"transport", "app"}),
    "aiohappyeyeballs": frozenset({"transport"}),
    "httptools": frozenset({"transport"}),
    "opentelemetry": frozenset({"telemetry"}),
    "prometheus_client": frozenset({"telemetry"}),
    "pydantic": frozenset({"config"}),
    "redis": frozenset({"stores"}),
    "uvloop": frozenset({"app"}),
    "yaml": frozenset({"config", "telemetry"}),
}
"""Libraries with one home: replacing one is work in that room alone."""
READS_ENVIRONMENT: Final = frozenset({"config", "cli"})

CHUNK_PATH: Final = (
    ("relay/wire/sse.py", "EventSplitter.feed"),
    ("relay/wire/openai.py", "EventObserver.feed"),
    ("relay/stream/events.py", "EventRelay._feed_held"),
    ("relay/stream/events.py", "EventRelay._feed_early"),
    ("relay/stream/events.py", "EventRelay._pass"),
    ("relay/stream/events.py", "EventRelay._pass_tallied"),
    ("relay/stream/events.py", "EventRelay._pass_tail"),
    ("relay/stream/events.py", "EventRelay._feed_braked"),
    ("relay/stream/flow.py", "Tally.tell"),
    ("relay/stream/flow.py", "Brake.split"),
    ("relay/stream/flow.py", "Brake.goes_on"),
    ("relay/stream/unasked.py", "WithoutUsage.write"),
    ("relay/wire/unasked.py", "UsageRemover.feed"),
    ("relay/wire/unasked.py", "UsageRemover.feed_any"),
    ("relay/stream/bodies.py", "WholeRelay._feed_held"),
    ("relay/stream/bodies.py", "WholeRelay._pass"),
    ("relay/stream/bodies.py", "OpaqueRelay._pass"),
    ("relay/transport/tls.py", "TlsLink.data_received"),
    ("relay/transport/connection.py", "Connection.data_received"),
    ("relay/transport/connection.py", "Connection.on_body"),
    ("relay/transport/sink.py", "ClientSink._write_chunk"),
    ("relay/transport/sink.py", "ClientSink._write_raw"),
)
"""From the upstream's socket to the client's: what runs for every chunk of every stream."""
WAKES_OR_DECODES: Final = frozenset(
    {"call_at", "call_later", "call_soon", "create_task", "ensure_future", "get_running_loop", "observe", "set_result", "strptime"}
)
"""Calls that have no place in a chunk: they wake a task, arm a timer or touch a histogram."""

BANNED_NAMES: Final = frozenset({"utils", "util", "helpers", "helper", "manager", "ctx", "info", "misc", "common"})

PURE_CALLS: Final = frozenset(
    {"frozenset", "set", "tuple", "list", "dict", "bytes", "bytearray", "str", "int", "float", "range", "len", "min", "max", "sum"}
    | {"sorted", "zip", "map", "enumerate", "ord", "chr", "super", "property", "staticmethod", "classmethod", "type", "object"}
)
PURE_SOURCES: Final = frozenset(
    {"dataclasses", "enum", "typing", "typing_extensions", "re", "struct", "string", "types", "collections", "functools", "itertools"}
    | {"operator", "contextlib", "abc", "msgspec", "pydantic", "relay", "ipaddress", "pathlib"}
)
"""Modules whose constructors and decorators have no effect beyond the value they return."""
PURE_METHODS: Final = frozenset(
    {"split", "join", "encode", "decode", "lower", "upper", "items", "keys", "values", "union", "format", "get", "to_bytes", "fromkeys"}
    | {"maketrans", "fromhex", "strip", "replace", "compile"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One parsed source file. `name` is dotted, `room` the first name below `relay`."""

    path: str
    name: str
    room: str
    is_package: bool
    text: str
    tree: ast.Module


def module(path: str, text: str) -> Module:
    parts = list(Path(path).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    if is_package:
        parts.pop()
    room = parts[1] if len(parts) > 1 else "__init__"
    return Module(path=path, name=".".join(parts), room=room, is_package=is_package, text=text, tree=ast.parse(text, path))


@cache
def package() -> tuple[Module, ...]:
    paths = sorted((ROOT / "relay").rglob("*.py"))
    return tuple(module(str(path.relative_to(ROOT)), path.read_text()) for path in paths)


@cache
def submodules() -> frozenset[str]:
    return frozenset(each.name for each in package())


def imports(source: Module) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) for every import, also those inside functions; `from a import b` gives a.b."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package_parts = source.name.split(".") if source.is_package else source.name.split(".")[:-1]
                kept = package_parts[: len(package_parts) - node.level + 1]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def room_of(imported: str) -> str:
    parts = imported.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "__init__"


def find_wrong_direction(source: Module) -> Iterator[str]:
    allowed = MAY_IMPORT.get(source.room)
    if allowed is None:
        yield f"{source.path}:1: room `{source.room}` is not in the table"
        return
    for line, imported in imports(source):
        if imported.split(".")[0] == "relay" and room_of(imported) not in allowed | {source.room, "__init__"}:
            yield f"{source.path}:{line}: {source.room} may not import {imported}"


def find_impurity(source: Module) -> Iterator[str]:
    if source.room not in PURE:
        return
    for line, imported in imports(source):
        if imported.split(".")[0] in IMPURE_LIBRARIES:
            yield f"{source.path}:{line}: a pure room may not import {imported}"
        if imported.startswith("relay.config") and not imported.startswith("relay.config.tree"):
            yield f"{source.path}:{line}: a pure room sees relay.config.tree only, not {imported}"


def find_strays(source: Module) -> Iterator[str]:
    for line, imported in imports(source):
        homes = HOME_OF.get(imported.split(".")[0])
        if homes is not None and source.room not in homes:
            yield f"{source.path}:{line}: {imported} belongs to {', '.join(sorted(homes))}"
        if imported in {"os.environ", "os.getenv"} and source.room not in READS_ENVIRONMENT:
            yield f"{source.path}:{line}: the environment is read in {', '.join(sorted(READS_ENVIRONMENT))} only"
    for node in ast.walk(source.tree):
        is_environment = isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}
        if is_environment and source.room not in READS_ENVIRONMENT:
            yield f"{source.path}:{node.lineno}: the environment is read in {', '.join(sorted(READS_ENVIRONMENT))} only"


def find_oversize(source: Module) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > MAX_MODULE_LINES:
        yield f"{source.path}:1: {lines} lines, more than {MAX_MODULE_LINES}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > MAX_FUNCTION_LINES:
                yield f"{source.path}:{node.lineno}: {node.name} has {size} lines, more than {MAX_FUNCTION_LINES}"


def find_smells(source: Module) -> Iterator[str]:
    for part in Path(source.path).with_suffix("").parts:
        if part.strip("_") in BANNED_NAMES:
            yield f"{source.path}:1: `{part}` says nothing about what is inside"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield f"{source.path}:{node.lineno}: global statement"
        if isinstance(node, ast.ExceptHandler) and all(isinstance(step, ast.Pass) for step in node.body):
            yield f"{source.path}:{node.lineno}: swallows an exception"
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield f"{source.path}:{node.lineno}: unfinished"
    if source.text.strip() and ast.get_docstring(source.tree) is None:
        yield f"{source.path}:1: no sentence of purpose at the head"


def origins(source: Module) -> dict[str, str]:
    """Map each name bound at module level by an import or a definition to where it comes from."""
    found: dict[str, str] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {(alias.asname or alias.name.split(".")[0]): alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "relay" if node.level else (node.module or "").split(".")[0]
            found |= {(alias.asname or alias.name): origin for alias in node.names}
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = "relay"
    return found


def is_pure_call(function: ast.expr, known: dict[str, str]) -> bool:
    """Tell whether calling `function` while a module is imported can have no effect."""
    match function:
        case ast.Name(id=name):
            if name in known:
                return known[name] in PURE_SOURCES
            return name in PURE_CALLS or (name.endswith(("Error", "Exception")) and hasattr(builtins, name))
        case ast.Attribute(value=ast.Name(id=name)) if name in known:
            return known[name] in PURE_SOURCES
        case ast.Attribute(value=ast.Attribute() as inner):
            return is_pure_call(inner, known) or function.attr in PURE_METHODS
        case ast.Attribute(attr=attribute):
            return attribute in PURE_METHODS
        case ast.Call(func=inner):
            return is_pure_call(inner, known)
        case ast.Subscript(value=inner):
            return is_pure_call(inner, known)
        case _:
            return False


def evaluated_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield what runs while a module is imported: statements that are no definition, decorators, defaults, class bodies."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from node.decorator_list
                yield from node.args.defaults
                yield from (default for default in node.args.kw_defaults if default is not None)
            case ast.ClassDef():
                yield from node.decorator_list
                yield from node.bases
                yield from (keyword.value for keyword in node.keywords)
                yield from evaluated_at_import(node.body)
            case ast.If():
                yield node.test
                if ast.unparse(node.test) != "__name__ == '__main__'":
                    yield from evaluated_at_import(node.body + node.orelse)
            case ast.Try():
                handled = [step for handler in node.handlers for step in handler.body]
                yield from evaluated_at_import(node.body + handled + node.orelse + node.finalbody)
            case _:
                yield node


STATEMENTS: Final = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Pass, ast.expr)


def walk_eager(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what is evaluated now; the body of a lambda is not."""
    yield node
    if not isinstance(node, ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from walk_eager(child)


def find_import_effects(source: Module) -> Iterator[str]:
    known = origins(source)
    for node in evaluated_at_import(source.tree.body):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, STATEMENTS) and not is_docstring:
            yield f"{source.path}:{getattr(node, 'lineno', 1)}: `{ast.unparse(node)[:60]}` runs at import"
        for part in walk_eager(node):
            if isinstance(part, ast.Call) and not is_pure_call(part.func, known):
                yield f"{source.path}:{part.lineno}: calls {ast.unparse(part.func)} at import"


def functions_named(source: Module, name: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Find `Class.method`, or every function of that name when no class is named."""
    owner, _, function = name.rpartition(".")
    found = []
    for scope in ast.walk(source.tree):
        is_owner = isinstance(scope, ast.ClassDef) and (not owner or scope.name == owner)
        if is_owner or (not owner and isinstance(scope, ast.Module)):
            found += [node for node in scope.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function]
    return found


def find_waits(source: Module, name: str) -> Iterator[str]:
    functions = functions_named(source, name)
    if not functions:
        yield f"{source.path}:1: {name} is gone; name the function that took its place in CHUNK_PATH"
    for function in functions:
        if isinstance(function, ast.AsyncFunctionDef):
            yield f"{source.path}:{function.lineno}: {name} is a coroutine"
        for node in ast.walk(function):
            if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith | ast.Yield | ast.YieldFrom):
                yield f"{source.path}:{node.lineno}: {name} waits"
            if isinstance(node, ast.Attribute) and node.attr in WAKES_OR_DECODES:
                yield f"{source.path}:{node.lineno}: {name} uses {node.attr}"


@pytest.mark.parametrize(
    "find",
    [find_wrong_direction, find_impurity, find_strays, find_oversize, find_smells, find_import_effects],
    ids=lambda f: f.__name__[5:],
)
def test_the_package_keeps_the_house_rules(find: Callable[[Module], Iterator[str]]) -> None:
    findings = [finding for source in package() for finding in find(source)]
    assert not findings, "\n" + "\n".join(findings)


@pytest.mark.parametrize(("path", "name"), CHUNK_PATH, ids=[name for _, name in CHUNK_PATH])
def test_a_chunk_is_passed_on_without_waiting(path: str, name: str) -> None:
    source = next((each for each in package() if each.path == path), None)
    assert source is not None, f"{path} is gone; name the module that took its place in CHUNK_PATH"
    findings = list(find_waits(source, name))
    assert not findings, "\n" + "\n".join(findings)


IMPORT_ALL: Final = """
import importlib, sys, threading

WATCHED = ("socket.connect", "socket.bind", "subprocess.Popen", "os.putenv", "os.system", "os.remove", "os.mkdir", "signal.pthread_kill")

def watch(event, arguments):
    if event in WATCHED:
        raise AssertionError(f"{event} at import: {arguments}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise AssertionError(f"{arguments[0]} opened for writing at import")

sys.addaudithook(watch)
for name in sys.argv[1:]:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
"""


def test_importing_every_module_touches_no_network_file_process_or_thread() -> None:
    names = sorted(submodules() - {"relay.__main__"})
    command = [sys.executable, "-B", "-W", "error", "-c", IMPORT_ALL, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# The checks are worth something only while they find what they are for.

BROKEN: Final = [
    (find_wrong_direction, "relay/wire/a.py", "from relay.forward import Forwarder"),
    (find_wrong_direction, "relay/wire/a.py", "from ..transport import upstream"),
    (find_wrong_direction, "relay/errors.py", "def f():\n    import relay.exchange"),
    (find_wrong_direction, "relay/novel.py", "pass"),
    (find_impurity, "relay/stream.py", "from time import monotonic"),
    (find_impurity, "relay/policy/a.py", "import asyncio.events"),
    (find_impurity, "relay/policy/a.py", "from relay.config import load"),
    (find_strays, "relay/forward/forwarder.py", "from aiohttp import web"),
    (find_strays, "relay/transport/a.py", "import os\nx = os.environ['HOME']"),
    (find_strays, "relay/transport/a.py", "from os import environ"),
    (find_oversize, "relay/stream.py", "x = 1\n" * (MAX_MODULE_LINES + 1)),
    (find_oversize, "relay/stream.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    (find_smells, "relay/utils.py", '"""Purpose."""'),
    (find_smells, "relay/stream.py", "x = 1"),
    (find_smells, "relay/stream.py", '"""Purpose."""\ndef f():\n    global x\n    x = 1'),
    (find_smells, "relay/stream.py", '"""Purpose."""\ntry:\n    import x\nexcept ImportError:\n    pass'),
    (find_import_effects, "relay/stream.py", "import socket\nlistener = socket.create_server(('', 0))"),
    (find_import_effects, "relay/stream.py", "for x in range(3):\n    y = x"),
    (find_import_effects, "relay/stream.py", "import time\nclass A:\n    born = time.time()"),
    (find_import_effects, "relay/stream.py", "import time\ndef f(now=time.time()):\n    return now"),
    (find_import_effects, "relay/stream.py", "open('x')"),
]


@pytest.mark.parametrize(("find", "path", "text"), BROKEN, ids=[f"{find.__name__[5:]}-{i}" for i, (find, _, _) in enumerate(BROKEN)])
def test_each_check_finds_a_broken_rule(find: Callable[[Module], Iterator[str]], path: str, text: str) -> None:
    assert list(find(module(path, text)))


HARMLESS: Final = '''"""Purpose."""
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final
import msgspec

WORDS: Final = frozenset("a b".split()) | {len("c")}
PATTERN: Final = re.compile(r"x")
_match: Final = re.compile(rb"y").match
_encode: Final = msgspec.json.Encoder(order="sorted").encode

class Kind(Enum):
    ONE = auto()

@dataclass(frozen=True, slots=True)
class Record:
    words: list[str] = field(default_factory=lambda: open("never run"))

EMPTY: Final = Record()

def late() -> None:
    open("only when called")
'''


def test_constructors_at_module_level_are_no_effect() -> None:
    assert not list(find_import_effects(module("relay/stream.py", HARMLESS)))


@pytest.mark.parametrize(
    "text",
    [
        "class A:\n    async def feed(self): ...",
        "class A:\n    def feed(self):\n        self.loop.create_task(x)",
        "class B:\n    def feed(self): ...",
    ],
    ids=["coroutine", "task", "gone"],
)
def test_a_chunk_path_that_waits_or_vanished_is_found(text: str) -> None:
    assert list(find_waits(module("relay/stream.py", text), "A.feed"))


def test_every_room_is_described_in_the_documentation() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    described = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert described == set(MAY_IMPORT) - {"__init__", "__main__"}
