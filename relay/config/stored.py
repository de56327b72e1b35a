"""The keys of a store in the tree, beside those of the file: what a running relay does with them, without what reads them."""

from collections.abc import Mapping
from dataclasses import replace

from relay.config.tree import Config, Key

Made = dict[tuple[str, str], tuple[tuple[bytes, Key], ...]]
"""What a name and its stored settings became: the key under each of its digests."""


def with_stored(config: Config, stored: Mapping[bytes, Key]) -> Config:
    """Return `config` with the store's part of its keys replaced."""
    return replace(config, keys=joined({digest: key for digest, key in config.keys.items() if not key.is_stored}, stored))


def joined(own: Mapping[bytes, Key], stored: Mapping[bytes, Key]) -> dict[bytes, Key]:
    """Join both; a name or digest that the file has is the file's."""
    names = {key.name for key in own.values()}
    return {**{digest: key for digest, key in stored.items() if key.name not in names}, **own}
