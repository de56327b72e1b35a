"""Keys of the file, and of the store that it may name, to one table by digest."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from pydantic import ValidationError

from relay.config import models
from relay.config.allowance import check_per_route, limits_of, route_limits_of
from relay.config.keystore import KeyStoreBroken, parse_settings, read_settings, store_flaw
from relay.config.problems import Path, did_you_mean, shown
from relay.config.report import Report
from relay.config.sections import Draft, complaint
from relay.config.stored import Made, joined
from relay.config.tree import Key

_WEAK: Final = 16
"""Fewer characters than this can be guessed."""


def build_keys(draft: Draft, report: Report, store: str | None) -> dict[bytes, Key]:
    """Return the keys of the file and, where `store` names one, of the store; mistakes go into `report`."""
    keys: dict[bytes, Key] = {}
    for name, settings in draft.keys.items():
        _check_routes(name, draft, report)
        if settings is None:
            continue
        _check_key(("keys", name), settings, report)
        check_per_route(name, settings.limits, draft, report)
        for digest, key in _digests(name, settings, _digest(name, settings, report)):
            if digest in keys:
                report.add(("keys", name), f'is the same key as "{shown(keys[digest].name)}"')
            keys[digest] = key
    return keys if store is None else _with_stored(keys, store, draft, report)


def load_stored(path: str, known: Made | None = None) -> dict[bytes, Key]:
    """Return the keys in the store at `path`. Raises KeyStoreBroken, whatever is in it.

    What `known` holds of an earlier reading is not made again (one key takes some 30 us), and it then holds what this one found.
    """
    made: Made = {}
    keys: dict[bytes, Key] = {}
    for row in read_settings(path):
        made[row] = (known or {}).get(row) or _stored(path, *row)
        for digest, key in made[row]:
            if digest in keys:
                raise KeyStoreBroken(f'{path}: key "{shown(key.name)}" is the same key as "{shown(keys[digest].name)}"')
            keys[digest] = key
    if known is not None:
        known.clear()
        known.update(made)
    return keys


def _stored(path: str, name: str, text: str) -> tuple[tuple[bytes, Key], ...]:
    settings = checked(path, name, parse_settings(path, text))
    if settings.hash is None:
        raise KeyStoreBroken(f'{path}: key "{shown(name)}" has no hash')
    return tuple((digest, replace(key, is_stored=True)) for digest, key in _digests(name, settings, settings.hash))


def checked(path: str, name: str, settings: Mapping[str, object]) -> models.Key:
    """Return the settings of a stored key. Raises KeyStoreBroken."""
    try:
        return models.Key.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KeyStoreBroken(f'{path}: key "{shown(name)}": {where}: {complaint(first)}') from None


def _with_stored(own: dict[bytes, Key], store: str, draft: Draft, report: Report) -> dict[bytes, Key]:
    path: Path = ("keys", "store")
    try:
        stored = load_stored(store)
    except KeyStoreBroken as broken:
        report.add(path, str(broken))
        return own
    flaw = store_flaw(store)
    if flaw is not None:
        report.warn(path, flaw)
    for name in sorted({key.name for key in own.values()} & {key.name for key in stored.values()}):
        report.warn(path, f'the key "{shown(name)}" is also in {draft.key_store}; the one here counts')
    for key in stored.values():
        for route in sorted((key.routes or frozenset()) - draft.routes.keys()):
            report.warn(path, f'the key "{shown(key.name)}" names the route "{shown(route)}", which is not there')
    return joined(own, stored)


def _digests(name: str, settings: models.Key, digest: bytes | None) -> Iterator[tuple[bytes, Key]]:
    """Yield the key under its digest and, while it is being rotated, under the one before with its own expiry."""
    key = Key(
        name=name,
        routes=frozenset(settings.routes) if "routes" in settings.model_fields_set else None,
        is_enabled=settings.enabled,
        expires_at=settings.expires,
        limits=limits_of(settings.limits),
        route_limits=route_limits_of(settings.limits),
    )
    if digest is not None:
        yield digest, key
    if settings.previous is not None:
        until = settings.previous.until
        until = until if key.expires_at is None else min(until, key.expires_at)
        yield settings.previous.hash, replace(key, expires_at=until, is_previous=True)


def _check_key(path: Path, settings: models.Key, report: Report) -> None:
    if "routes" in settings.model_fields_set and not settings.routes:
        report.add((*path, "routes"), "is empty, so the key is good for nothing; leave it out for all routes")
    now = time.time()
    if settings.expires is not None and settings.expires <= now:
        report.warn((*path, "expires"), "has passed: the key is refused")
    if settings.previous is not None and settings.previous.until <= now:
        report.warn((*path, "previous"), "has passed: leave it out")


def _digest(name: str, settings: models.Key, report: Report) -> bytes | None:
    if settings.hash is not None and settings.key is not None:
        report.add(("keys", name, "key"), "stands beside hash; keep one of the two, best the hash")
    if settings.hash is not None:
        return settings.hash
    if settings.key is None:
        report.add(("keys", name), "has neither hash nor key: add `hash: sha256:...`", at_name=True)
        return None
    key = settings.key.reveal().encode()
    weak = f" and has fewer than {_WEAK} characters" if len(key) < _WEAK else ""
    report.warn(("keys", name, "key"), f"stands in plain text{weak}; keep a long random key's hash instead (`hash: sha256:...`)")
    return hashlib.sha256(key).digest()


def _check_routes(name: str, draft: Draft, report: Report) -> None:
    for index, route in enumerate(draft.key_routes[name]):
        if isinstance(route, str) and route and route not in draft.routes and draft.routes and not report.is_full:
            report.add(("keys", name, "routes", index), f'no route named "{shown(route)}"{did_you_mean(route, draft.routes)}')
