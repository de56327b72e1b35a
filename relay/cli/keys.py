"""`relay keys`: make, list, check, revoke and rotate virtual keys.

A key is printed once, on stdout, and kept nowhere. Keys of a store are changed there, and a running relay follows. A
configuration file belongs to who wrote it: for keys in it the lines to change are printed, and nothing is written.
"""

import argparse
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from relay.cli.exits import FAILED, OK, USAGE, find_file, say
from relay.cli.tables import table
from relay.cli.written import entry_lines, limits_text, moment, parse_span, setting_lines
from relay.config import load
from relay.config.keys import checked, load_stored
from relay.config.keystore import KeyExists, KeyStore, KeyStoreBroken, StoredKey, read_store
from relay.config.outline import Entry, Outline, outline
from relay.config.problems import did_you_mean, shown
from relay.config.tree import Key
from relay.config.values import name_flaw
from relay.policy.keyformat import ID_BYTES, SECRET_BYTES, Form, IssuedKey, form_of, id_of, make_key

LIMITS: Final[Mapping[str, str]] = {
    "rpm": "most requests in any minute",
    "tpm": "most tokens in any minute",
    "concurrency": "most requests at once",
    "budget": 'most money or tokens a day or month: "20 USD/month", "1M tokens/day"',
}
MAX_GRACE: Final = 366 * 86400
"""A key that is good for more than a year beside its successor has not been rotated."""
_MAX_KEY: Final = 4096
_SOON: Final = "a running relay knows within a second"
_OLD_HASH: Final = "sha256:HASH_OF_THE_OLD_KEY"
_ONCE: Final = "This is the key; it is shown once:"


class Refused(Exception):
    """The command cannot be done; the message is for the person."""


def add_parser(commands: Any) -> None:
    """Add `keys` and all that it can do to the commands."""
    keys = commands.add_parser("keys", help="make, list, check, revoke and rotate virtual keys", description=__doc__)
    actions = keys.add_subparsers(metavar="ACTION", required=True)

    new = actions.add_parser("new", help="make a key; it is printed once")
    new.add_argument("name", metavar="NAME", help="who gets it")
    new.add_argument("--routes", metavar="A,B", help="routes it may use; default: all")
    new.add_argument("--expires", metavar="WHEN", help="last day (2027-12-31), moment, or span from now (90d)")
    for name, meaning in LIMITS.items():
        new.add_argument(f"--{name}", metavar="AMOUNT" if name == "budget" else "N", help=meaning)
    _finish(new, _new)

    listing = actions.add_parser("list", help="list all keys")
    listing.add_argument("--json", action="store_true", help="as JSON")
    _finish(listing, _list)

    check = actions.add_parser("check", help="tell whether a key is good, mistyped, unknown, disabled or expired")
    check.add_argument("key", metavar="KEY", nargs="?", default="-", help="default: read from standard input, where no other user sees it")
    _finish(check, _check)

    revoke = actions.add_parser("revoke", help="make a key good for nothing; its name stays taken")
    revoke.add_argument("name", metavar="NAME", help="whose key")
    _finish(revoke, _revoke)

    rotate = actions.add_parser("rotate", help="make a new key for a name; the old one stays good for a while")
    rotate.add_argument("name", metavar="NAME", help="whose key")
    rotate.add_argument("--grace", metavar="SPAN", default="24h", help="how long the old key stays good: 24h, 7d, 0s (default: 24h)")
    _finish(rotate, _rotate)


def _finish(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration file")
    parser.add_argument("--store", metavar="FILE", help="file of stored keys; default: the one that the configuration names")
    parser.set_defaults(run=lambda options: _told(run, options))


def _told(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        if run in (_new, _rotate) and sys.stdout is None:
            raise Refused("there is no standard output, so nobody would see the key; nothing is changed")
        return run(options)
    except Refused as refusal:
        say(f"relay keys: {refusal}")
        return USAGE
    except KeyStoreBroken as broken:
        say(f"relay keys: {broken}")
        return FAILED


def _outline(options: argparse.Namespace) -> Outline:
    """Return what there is: the configuration's keys and its store, `--store` before that."""
    file: str | None = options.config or find_file()
    found = outline(file, os.environ) if file is not None else Outline(file="")
    return found if options.store is None else replace(found, store=str(Path(options.store).absolute()))


# Making


def _new(options: argparse.Namespace) -> int:
    found = _outline(options)
    flaw = name_flaw(options.name)
    if flaw is not None:
        raise Refused(flaw)
    if options.name in found.keys:
        raise Refused(f"there is a key named {options.name} in {found.file}, line {found.keys[options.name].line}")
    key = _issue()
    settings = {"hash": _hash(key.text), **_settings(options, found)}
    stored = StoredKey(name=options.name, id=key.id, settings=settings, created_at=int(time.time()))
    _check_settings(stored)
    if found.store is not None:
        store = KeyStore(found.store)
        store.create()
        try:
            store.add(stored)
        except KeyExists:
            raise Refused(f"there is a key named {options.name} in {found.store}; `relay keys rotate` gives it a new key") from None
        say(f"{options.name} is in {found.store}; {_SOON}. {_ONCE}")
    else:
        say(f"Add this under `keys:` of {found.file or 'the configuration'}, and have the relay read it again (SIGHUP):\n")
        say("\n".join(entry_lines(options.name, settings)))
        say(f"\n{_ONCE}")
    print(key.text)
    return OK


def _settings(options: argparse.Namespace, found: Outline) -> dict[str, object]:
    """Return the settings of a new key as the configuration would have them."""
    settings: dict[str, object] = {}
    if options.routes is not None:
        routes = [route.strip() for route in options.routes.split(",")]
        for route in routes:
            if found.routes and route not in found.routes:
                raise Refused(f'no route named "{shown(route)}" in {found.file}{did_you_mean(route, found.routes)}')
        settings["routes"] = routes
    limits = {name: value for name in LIMITS if (value := getattr(options, name)) is not None}
    if limits:
        settings["limits"] = limits
    if options.expires is not None:
        span = parse_span(options.expires)
        settings["expires"] = options.expires if span is None else moment(time.time() + span)
    return settings


def _check_settings(stored: StoredKey) -> None:
    try:
        settings = checked("", stored.name, stored.settings)
    except KeyStoreBroken as broken:
        raise Refused(str(broken).split(": ", 2)[2]) from None
    if settings.expires is not None and settings.expires < time.time() - 2:  # `0s` is meant as it is said
        raise Refused("--expires: is over already; expected a day to come, or a span such as 90d")


def _issue() -> IssuedKey:
    return make_key(secrets.token_bytes(ID_BYTES), secrets.token_bytes(SECRET_BYTES))


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


# Looking


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """One key as listed."""

    name: str
    id: str | None
    """None for keys of the configuration, which has hashes only."""
    state: str
    routes: list[str] | None
    """None for all."""
    limits: dict[str, str]
    expires: str | None
    previous_until: str | None
    """Until when the key before it is good."""
    place: str


def _all_keys(options: argparse.Namespace) -> tuple[Mapping[bytes, Key], str, str | None]:
    """Return all keys, the file that some are in, and the store that others are in."""
    if options.store is not None:
        return load_stored(options.store), "", options.store
    file: str | None = options.config or find_file()
    if file is None:
        raise Refused("there is no configuration file, and no --store")
    config = load(file, os.environ)
    return config.keys, file, config.key_store


def _list(options: argparse.Namespace) -> int:
    keys, file, store = _all_keys(options)
    ids = {each.name: each.id for each in read_store(store)} if store is not None else {}
    now = time.time()
    until = {key.name: key.expires_at for key in keys.values() if key.is_previous and _state(key, now) == "good"}
    current = sorted((key for key in keys.values() if not key.is_previous), key=lambda key: key.name)
    rows = [
        _listed(key, ids.get(key.name) if key.is_stored else None, until.get(key.name), store if key.is_stored else file) for key in current
    ]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(table(("name", "id", "state", "routes", "limits", "expires", "where"), [_cells(row) for row in rows]))
    return OK


def _listed(key: Key, key_id: str | None, previous_until: float | None, place: str | None) -> _Listed:
    return _Listed(
        name=key.name,
        id=key_id,
        state=_state(key, time.time()),
        routes=None if key.routes is None else sorted(key.routes),
        limits=limits_text(key.limits),
        expires=None if key.expires_at is None else moment(key.expires_at),
        previous_until=None if previous_until is None else moment(previous_until),
        place=place or "",
    )


def _cells(row: _Listed) -> tuple[str, ...]:
    before = "" if row.previous_until is None else f", the key before until {row.previous_until}"
    routes = "all" if row.routes is None else ",".join(row.routes)
    limits = ", ".join(f"{name} {value}" for name, value in row.limits.items())
    return row.name, row.id or "-", row.state + before, routes, limits or "-", row.expires or "-", row.place


def _state(key: Key, unix_time: float) -> str:
    if not key.is_enabled:
        return "disabled"
    return "expired" if key.expires_at is not None and key.expires_at <= unix_time else "good"


def _check(options: argparse.Namespace) -> int:
    text = sys.stdin.readline(_MAX_KEY).strip() if options.key == "-" else options.key
    if not text:
        raise Refused("there is no key to check: name it, or write it to standard input")
    form = form_of(text)
    if form is Form.MISTYPED:
        print("mistyped: its checksum does not fit what stands before it")
        return FAILED
    if options.store is None and options.config is None and find_file() is None:
        print("well formed; there is nothing to look it up in: no configuration, no --store" if form is Form.OURS else "not made by relay")
        return OK if form is Form.OURS else FAILED
    keys, _, _ = _all_keys(options)
    key = keys.get(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest())
    if key is None:
        print(f"unknown here; its id is {id_of(text)}" if form is Form.OURS else "unknown here, and not made by relay")
        return FAILED
    state = _state(key, time.time())
    before = ", rotated" if key.is_previous else ""
    until = "" if key.expires_at is None else f", {'until' if state == 'good' else 'since'} {moment(key.expires_at)}"
    print(f"{key.name}: {state}{before}{until if state != 'disabled' else ''}")
    return OK if state == "good" else FAILED


# Changing


def _stored(found: Outline, name: str) -> tuple[KeyStore, StoredKey]:
    """Return a key of the store, and the store. Raises Refused."""
    stored = {key.name: key for key in read_store(found.store)} if found.store is not None else {}
    if found.store is None or name not in stored:
        raise Refused(f'no key named "{shown(name)}"{did_you_mean(name, {*found.keys, *stored})}')
    return KeyStore(found.store), stored[name]


def _revoke(options: argparse.Namespace) -> int:
    found = _outline(options)
    entry = found.keys.get(options.name)
    if entry is not None:
        return _revoke_by_hand(options.name, entry, found.file)
    store, key = _stored(found, options.name)
    settings = {name: value for name, value in key.settings.items() if name != "previous"}
    store.replace(replace(key, settings={**settings, "enabled": "false"}))
    say(f"{key.name} is revoked in {found.store}; {_SOON}")
    return OK


def _revoke_by_hand(name: str, entry: Entry, file: str) -> int:
    what = "change this line in" if entry.is_switched else "add this line to"
    say(f"Nothing is changed yet. In {file}, line {entry.line}, {what} the entry of {name}, and have the relay read it again (SIGHUP):\n")
    print("    enabled: false")
    return FAILED


def _rotate(options: argparse.Namespace) -> int:
    grace = parse_span(options.grace)
    if grace is None or grace > MAX_GRACE:
        raise Refused("--grace: expected a span such as 24h, 7d or 0s, of at most a year")
    found = _outline(options)
    entry = found.keys.get(options.name)
    key = _issue()
    until = moment(time.time() + grace) if grace else None
    if entry is not None:
        _rotate_by_hand(options.name, entry, found.file, _renewed(_hash(key.text), entry.hash or _OLD_HASH, until))
    else:
        store, old = _stored(found, options.name)
        if old.settings.get("enabled") == "false":
            raise Refused(f"{old.name} is revoked; make a key of another name")
        kept = {name: value for name, value in old.settings.items() if name != "previous"}
        store.replace(replace(old, id=key.id, settings={**kept, **_renewed(_hash(key.text), old.settings["hash"], until)}))
        say(f"{old.name} has a new key in {found.store}; {_SOON}. The old one is good {'until ' + until if until else 'no longer'}.")
        if "previous" in old.settings:
            say("The one before the old one is no longer good.")
    say(_ONCE)
    print(key.text)
    return OK


def _renewed(new_hash: str, old_hash: object, until: str | None) -> dict[str, object]:
    return {"hash": new_hash} if until is None else {"hash": new_hash, "previous": {"hash": old_hash, "until": until}}


def _rotate_by_hand(name: str, entry: Entry, file: str, settings: Mapping[str, object]) -> None:
    stood = ("hash" if entry.hash is not None else "key", *(("previous",) if entry.has_previous else ()))
    say(f"Nothing is changed yet. In {file}, line {entry.line}, the entry of {name}: let these lines stand in place of")
    say(f"`{'` and `'.join(stood)}`, and have the relay read it again (SIGHUP):\n")
    say("\n".join(f"    {line}" for line in setting_lines(settings)))
    if entry.hash is None and "previous" in settings:
        say('\nThe hash of the old key:  printf %s "$OLD_KEY" | sha256sum')
    say("")
