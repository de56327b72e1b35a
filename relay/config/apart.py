"""A configuration read in a process of its own: what reads takes 12 MB, and whoever serves for months need not keep it.

At start the process forks while it has no thread yet, which costs some milliseconds, and goes on importing while the fork
reads. A relay that runs has threads, so that a reload starts a new interpreter; its streams need not share theirs with the
reading either.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from relay.config.problems import ConfigInvalid
from relay.config.tree import Config

READ_SECONDS: Final = 60.0
"""For a new interpreter on a busy machine to read the largest file: a reload that takes longer is refused."""


def begin(path: str, environ: Mapping[str, str], *, listen: str | None = None) -> Callable[[], Config]:
    """Begin to do what `loader.load` does; what is returned waits for the tree. That raises ConfigInvalid."""
    if not hasattr(os, "fork") or threading.active_count() > 1:  # a fork of several threads may find locks that nobody lets go
        return lambda: _load(path, environ, listen)
    source, sink = os.pipe()
    try:
        child = os.fork()
    except OSError:  # there may be no more processes; this one can do it as well
        os.close(source)
        os.close(sink)
        return lambda: _load(path, environ, listen)
    if child == 0:
        try:
            os.close(source)
            with os.fdopen(sink, "wb") as answer:
                answer.write(attempt(path, environ, listen))
        finally:
            os._exit(0)
    os.close(sink)

    def wait() -> Config:
        with os.fdopen(source, "rb") as answer:
            told = answer.read()
        os.waitpid(child, 0)
        # Whatever ended the other process without a word shows here.
        return _found(told) if told else _load(path, environ, listen)

    return wait


def read_again(path: str, listen: str | None) -> Config:
    """Do what `loader.load` does, with this process's environment. Raises ConfigInvalid, and RuntimeError when nothing was told in time."""
    command = [*python_command("relay.config"), path, *([] if listen is None else [listen])]
    try:
        # A group of its own: a terminal's signals are for the relay.
        done = subprocess.run(  # noqa: S603  # this interpreter, with no shell
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=READ_SECONDS, check=False, process_group=0
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{path}: no process could read it: {error}") from None
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{path}: the process that read it failed with {done.returncode}: {''.join(last)}")
    return _found(done.stdout)


def attempt(path: str, environ: Mapping[str, str], listen: str | None) -> bytes:
    """Return what came of reading, for the process that asked: the tree, or what is wrong."""
    try:
        return pickle.dumps(_load(path, environ, listen))
    except ConfigInvalid as invalid:
        return pickle.dumps(invalid)


def python_command(module: str) -> list[str]:
    """Return how this interpreter runs a module of this package in a new process."""
    # As this process was started: from a folder (`python -m relay`), or installed, when a folder must not get in between.
    path = [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # what multiprocessing uses as well
    return [sys.executable, *flags, *path, "-m", module]


def _load(path: str, environ: Mapping[str, str], listen: str | None) -> Config:
    from relay.config.loader import load  # this is what is kept out of the process that serves

    return load(path, environ, listen=listen)


def _found(told: bytes) -> Config:
    found = pickle.loads(told)  # noqa: S301  # from a process that this one started
    if isinstance(found, ConfigInvalid):
        raise found
    assert isinstance(found, Config)
    return found
