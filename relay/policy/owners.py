"""Which upstream made an object that has an id (a response, a file, a batch), and for whom.

Such an object lives at one account of one upstream: requests for it are pinned there and never fall back. Another
key's id is as unknown as one that never was. The map is bounded; the oldest ids are forgotten first.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

CAPACITY: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Where an object lives and whose it is."""

    upstream: str
    route: str
    key: str | None


class Owners:
    """A bounded map from ids to their owners."""

    __slots__ = ("_capacity", "_owners")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._owners: OrderedDict[str, Owner] = OrderedDict()

    def made(self, object_id: str, owner: Owner) -> None:
        """Remember who made `object_id`. The first owner stays: no one can take an id over."""
        if object_id in self._owners:
            return
        self._owners[object_id] = owner
        if len(self._owners) > self._capacity:
            self._owners.popitem(last=False)

    def find(self, object_id: str) -> Owner | None:
        """Return the owner of `object_id`, or None when it is not known."""
        return self._owners.get(object_id)
