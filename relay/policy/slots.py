"""How many calls an upstream takes at once, and who waits for a turn: first come, first served, in a queue of bounded length.

Rule: every claim holds a slot, or a place in the queue, or nothing any more; it is given back once, whatever it holds by then, and
giving back twice does nothing. While anybody waits no slot is free, so nobody overtakes the queue.

Where several processes call the same upstreams, a `Gate` counts the slots of all of them, and knows who waits longest anywhere: that one
is next. Each process keeps its own queue, and looks now and then whether a slot has become free elsewhere (`AllSlots.serve`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

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


class Gate(Protocol):
    """The slots of one upstream that other processes take as well. Instants are those of one clock for all of them."""

    def now(self) -> int:
        """Return the instant, in milliseconds."""

    def has_room(self, limit: int) -> bool:
        """Tell whether a slot seems to be free for somebody who comes now."""

    def take(self, limit: int, since: int, queue_wait: float) -> bool:
        """Take a slot for somebody who waits since that instant; False while there are `limit`, or somebody else has waited longer.

        Who has waited for more than `queue_wait` seconds is not waited for: its process does not go on.
        """

    def give(self) -> None:
        """Give a slot back."""

    def wait(self, since: int) -> None:
        """Tell the others since when somebody waits here; 0 for nobody."""


class Claim:
    """One call's right to a slot, had or awaited."""

    __slots__ = ("_slots", "holds", "is_shared", "on_slot", "since")

    def __init__(self, slots: "Slots", holds: Holds) -> None:
        self._slots = slots
        self.holds = holds
        self.is_shared = False
        """Whether the slot was taken through a gate, which has to be told when it comes back."""
        self.since = 0
        """Since when it waits, by the gate's clock."""
        self.on_slot: Callable[[], None] | None = None
        """Called when the place in the queue has become a slot."""

    def give(self) -> None:
        """Give back the slot, or the place in the queue."""
        holds, self.holds = self.holds, _NOTHING
        if holds is _SLOT:
            self._slots.took_back(self)
        elif holds is _PLACE:
            self._slots.left(self)


class Slots:
    """The slots of one upstream, and the queue for them."""

    __slots__ = ("_concurrency", "_gate", "_queue", "_queue_wait", "_since", "_waiting", "held")

    def __init__(self, limits: UpstreamLimits, gate: Gate | None = None) -> None:
        """Give out what `limits` allow, counted by `gate` where other processes take of the same."""
        self._waiting: dict[Claim, None] = {}
        """In the order of arrival."""
        self._gate = gate
        self._since = 0
        """What the gate knows of the one who waits longest here."""
        self.held = 0
        """Slots in use."""
        self._concurrency = limits.concurrency
        self._queue = limits.queue
        self._queue_wait = limits.queue_wait

    def share(self, gate: Gate) -> None:
        """Count by `gate` from now on; slots in use by then are not counted there."""
        self._gate = gate

    @property
    def waiting(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Tell whether no slot is free."""
        limit = self._concurrency
        if limit is None:
            return False
        return self.held >= limit if self._gate is None else bool(self._waiting) or not self._gate.has_room(limit)

    @property
    def is_crowded(self) -> bool:
        """Tell whether no place in the queue is free either."""
        return self.is_full and len(self._waiting) >= self._queue

    def claim(self) -> Claim | None:
        """Take a slot, else a place in the queue; None when there is neither."""
        if self._gate is not None and self._concurrency is not None:
            return self._claim_shared(self._gate)
        if self._concurrency is None or self.held < self._concurrency:
            self.held += 1
            return Claim(self, _SLOT)
        if self.is_crowded:
            return None
        claim = Claim(self, _PLACE)
        self._waiting[claim] = None
        return claim

    def _claim_shared(self, gate: Gate) -> Claim | None:
        claim = Claim(self, _SLOT)
        claim.since = gate.now()
        if not self._waiting and self._take(claim):
            self.held += 1
            return claim
        if len(self._waiting) >= self._queue:
            return None
        claim.holds = _PLACE
        self._waiting[claim] = None
        self._tell()
        return claim

    def _take(self, claim: Claim) -> bool:
        limit, gate = self._concurrency, self._gate
        if limit is None or gate is None:
            return limit is None or self.held < limit
        claim.is_shared = gate.take(limit, claim.since, self._queue_wait)
        return claim.is_shared

    def _tell(self) -> None:
        """Tell the gate who waits longest here, where that has changed."""
        since = next(iter(self._waiting)).since if self._waiting else 0
        if self._gate is not None and since != self._since:
            self._since = since
            self._gate.wait(since)

    def resize(self, limits: UpstreamLimits) -> None:
        """Take other limits. Slots in use and places in the queue are kept, also where there are too many of them now."""
        self._concurrency = limits.concurrency
        self._queue = limits.queue
        self._queue_wait = limits.queue_wait
        self.serve()

    def took_back(self, claim: Claim) -> None:
        """Take the slot of `claim` back: the one who has waited longest gets it."""
        self.held -= 1
        if claim.is_shared and self._gate is not None:
            self._gate.give()
        if self._waiting:
            self.serve()

    def left(self, claim: Claim) -> None:
        """Take a place in the queue back."""
        del self._waiting[claim]
        self._tell()

    def serve(self) -> None:
        """Give those who wait the slots that are free."""
        while self._waiting and self._take(claim := next(iter(self._waiting))):
            del self._waiting[claim]
            self.held += 1
            claim.holds = Holds.SLOT
            if claim.on_slot is not None:
                claim.on_slot()
        self._tell()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one upstream does at a moment."""

    upstream: str
    held: int
    waiting: int


class AllSlots:
    """The slots of every upstream by its name; names come from the configuration alone."""

    __slots__ = ("_gates", "_slots")

    def __init__(self) -> None:
        self._slots: dict[str, Slots] = {}
        self._gates: Callable[[str], Gate] | None = None

    def share(self, gates: Callable[[str], Gate]) -> None:
        """Share the slots with other processes, each upstream's by the gate that `gates` returns for its name. Called before any use."""
        self._gates = gates
        for name, slots in self._slots.items():
            slots.share(gates(name))

    @property
    def are_shared(self) -> bool:
        """Tell whether a slot may become free without anybody here having given it back."""
        return self._gates is not None

    def serve(self) -> None:
        """Give those who wait what has become free elsewhere."""
        for slots in self._slots.values():
            slots.serve()

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
            if slots is None:
                self._slots[name] = Slots(upstream.limits, None if self._gates is None else self._gates(name))
            else:
                slots.resize(upstream.limits)
        gone = [name for name, slots in self._slots.items() if name not in config.upstreams]
        for name in gone:
            slots = self._slots[name]
            slots.resize(UpstreamLimits())
            if not slots.held:
                del self._slots[name]

    def loads(self) -> Iterable[Load]:
        """Return what every upstream does now."""
        return [Load(upstream=name, held=slots.held, waiting=slots.waiting) for name, slots in self._slots.items()]
