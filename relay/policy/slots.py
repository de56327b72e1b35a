"""How many calls an upstream takes at once, and who waits for a turn: first come, first served, in a queue of bounded length.

Rule: every claim holds a slot, or a place in the queue, or nothing any more; it is given back once, whatever it holds by then, and
giving back twice does nothing. While anybody waits no slot is free, so nobody overtakes the queue.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from relay.config.tree import Config, UpstreamLimits


class Holds(Enum):
    """What a claim holds."""

    SLOT = "slot"
    PLACE = "place"
    NOTHING = "nothing"


_SLOT: Final = Holds.SLOT
_PLACE: Final = Holds.PLACE
_NOTHING: Final = Holds.NOTHING
"""Members of an enumeration take their time to look up, and every attempt comes by here."""


class Claim:
    """One call's right to a slot, had or awaited."""

    __slots__ = ("_slots", "holds", "on_slot")

    def __init__(self, slots: "Slots", holds: Holds) -> None:
        self._slots = slots
        self.holds = holds
        self.on_slot: Callable[[], None] | None = None
        """Called when the place in the queue has become a slot."""

    def give(self) -> None:
        """Give back the slot, or the place in the queue."""
        holds, self.holds = self.holds, _NOTHING
        if holds is _SLOT:
            self._slots.took_back()
        elif holds is _PLACE:
            self._slots.left(self)


class Slots:
    """The slots of one upstream, and the queue for them."""

    __slots__ = ("_concurrency", "_queue", "_waiting", "held")

    def __init__(self, limits: UpstreamLimits) -> None:
        self._waiting: dict[Claim, None] = {}
        """In the order of arrival."""
        self.held = 0
        """Slots in use."""
        self._concurrency = limits.concurrency
        self._queue = limits.queue

    @property
    def waiting(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Tell whether no slot is free."""
        return self._concurrency is not None and self.held >= self._concurrency

    @property
    def is_crowded(self) -> bool:
        """Tell whether no place in the queue is free either."""
        return self.is_full and len(self._waiting) >= self._queue

    def claim(self) -> Claim | None:
        """Take a slot, else a place in the queue; None when there is neither."""
        if self._concurrency is None or self.held < self._concurrency:
            self.held += 1
            return Claim(self, _SLOT)
        if self.is_crowded:
            return None
        claim = Claim(self, _PLACE)
        self._waiting[claim] = None
        return claim

    def resize(self, limits: UpstreamLimits) -> None:
        """Take other limits. Slots in use and places in the queue are kept, also where there are too many of them now."""
        self._concurrency = limits.concurrency
        self._queue = limits.queue
        self._serve()

    def took_back(self) -> None:
        """Take a slot back: the one who has waited longest gets it."""
        self.held -= 1
        if self._waiting:
            self._serve()

    def left(self, claim: Claim) -> None:
        """Take a place in the queue back."""
        del self._waiting[claim]

    def _serve(self) -> None:
        while self._waiting and not self.is_full:
            claim = next(iter(self._waiting))
            del self._waiting[claim]
            self.held += 1
            claim.holds = Holds.SLOT
            if claim.on_slot is not None:
                claim.on_slot()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one upstream does at a moment."""

    upstream: str
    held: int
    waiting: int


class AllSlots:
    """The slots of every upstream by its name; names come from the configuration alone."""

    __slots__ = ("_index", "_slots", "_total")

    def __init__(self, *, index: int = 0, total: int = 1) -> None:
        """Hold the part of process `index` where `total` of them share an upstream's calls."""
        self._slots: dict[str, Slots] = {}
        self._index = index
        self._total = total

    def of(self, upstream: str) -> Slots:
        """Return the slots of `upstream`; without a bound for one that the configuration no longer names."""
        found = self._slots.get(upstream)
        if found is None:
            found = self._slots[upstream] = Slots(UpstreamLimits())
        return found

    def know(self, config: Config) -> None:
        """Take the limits of a new configuration; forget upstreams that it does not name once nobody uses them."""
        for name, upstream in config.upstreams.items():
            slots = self._slots.get(name)
            limits = part_of(upstream.limits, self._index, self._total)
            if slots is None:
                self._slots[name] = Slots(limits)
            else:
                slots.resize(limits)
        gone = [name for name, slots in self._slots.items() if name not in config.upstreams]
        for name in gone:
            slots = self._slots[name]
            slots.resize(UpstreamLimits())
            if not slots.held:
                del self._slots[name]

    def loads(self) -> Iterable[Load]:
        """Return what every upstream does now."""
        return [Load(upstream=name, held=slots.held, waiting=slots.waiting) for name, slots in self._slots.items()]


def part_of(limits: UpstreamLimits, index: int, total: int) -> UpstreamLimits:
    """Return what process `index` of `total` may have of `limits`: parts that add up to the whole, but at least one call each.

    One process cannot lend another its slots: a bound that nobody exceeds is worth more than one that is always used up.
    """
    if limits.concurrency is None or total == 1:
        return limits
    whole, rest = divmod(limits.concurrency, total)
    return replace(limits, concurrency=max(1, whole + (index < rest)))
