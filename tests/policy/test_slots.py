from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.config.tree import Config, Route, Target, Upstream, UpstreamLimits
from relay.policy.accounts import ACCOUNT_CELLS, Account
from relay.policy.slots import AllSlots, Claim, Holds, Slots
from relay.stores.gates import SharedGate
from relay.stores.table import Busy


def slots_of(concurrency: int | None, queue: int = 10) -> Slots:
    return Slots(UpstreamLimits(concurrency=concurrency, queue=queue))


def claimed(slots: Slots) -> Claim:
    claim = slots.claim()
    assert claim is not None
    return claim


def test_a_slot_that_comes_back_goes_to_the_one_who_has_waited_longest() -> None:
    slots = slots_of(1)
    first, *waiting = [claimed(slots) for _ in range(4)]
    served: list[int] = []
    for number, claim in enumerate(waiting):
        claim.on_slot = lambda number=number: served.append(number)  # type: ignore[misc]
    for claim in (first, *waiting):
        assert claim.holds is Holds.SLOT
        claim.give()
    assert served == [0, 1, 2]
    assert (slots.held, slots.waiting) == (0, 0)


def test_a_full_queue_takes_nobody() -> None:
    slots = slots_of(1, queue=2)
    claims = [claimed(slots) for _ in range(3)]
    assert slots.is_crowded
    assert slots.claim() is None
    claims[2].give()
    assert not slots.is_crowded
    assert claimed(slots).holds is Holds.PLACE


def test_without_a_queue_the_next_is_refused_at_once() -> None:
    slots = slots_of(1, queue=0)
    held = claimed(slots)
    assert slots.claim() is None
    held.give()
    assert claimed(slots).holds is Holds.SLOT


def test_one_who_leaves_the_queue_gives_its_place_up_at_once_and_gets_no_slot() -> None:
    slots = slots_of(1)
    held, leaving, staying = claimed(slots), claimed(slots), claimed(slots)
    leaving.on_slot = lambda: pytest.fail("served after it had left")
    leaving.give()
    assert slots.waiting == 1
    held.give()
    assert (leaving.holds, staying.holds) == (Holds.NOTHING, Holds.SLOT)


def test_giving_back_twice_frees_one_slot() -> None:
    slots = slots_of(2)
    first, second = claimed(slots), claimed(slots)
    first.give()
    first.give()
    assert slots.held == 1
    assert claimed(slots).holds is Holds.SLOT
    assert claimed(slots).holds is Holds.PLACE
    second.give()


def test_without_a_limit_every_claim_is_a_slot_and_is_counted() -> None:
    slots = slots_of(None)
    assert [claimed(slots).holds for _ in range(1000)] == [Holds.SLOT] * 1000
    assert (slots.held, slots.is_full) == (1000, False)


def test_a_higher_limit_serves_those_who_wait_and_a_lower_one_takes_nothing_away() -> None:
    slots = slots_of(1)
    claims = [claimed(slots) for _ in range(4)]
    slots.resize(UpstreamLimits(concurrency=3, queue=0))
    assert [claim.holds for claim in claims] == [Holds.SLOT] * 3 + [Holds.PLACE]
    slots.resize(UpstreamLimits(concurrency=1, queue=0))
    for claim in claims[:2]:
        claim.give()
        assert claims[3].holds is Holds.PLACE
    claims[2].give()
    assert claims[3].holds is Holds.SLOT


class Trace(RuleBasedStateMachine):
    """Any order of claims, returns and reloads against the plainest model: a set of holders and a list of those who wait."""

    def __init__(self) -> None:
        super().__init__()
        self.limit, self.queue = 2, 3
        self.slots = slots_of(self.limit, self.queue)
        self.holding: list[Claim] = []
        self.waiting: list[Claim] = []
        self.over: list[Claim] = []

    def serve(self) -> None:
        while self.waiting and len(self.holding) < self.limit:
            self.holding.append(self.waiting.pop(0))

    @rule()
    def claim(self) -> None:
        claim = self.slots.claim()
        if len(self.holding) < self.limit:
            assert claim is not None
            self.holding.append(claim)
        elif len(self.waiting) < self.queue:
            assert claim is not None
            self.waiting.append(claim)
        else:
            assert claim is None

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        claim = self.holding.pop(data.draw(st.integers(0, len(self.holding) - 1)))
        claim.give()
        self.over.append(claim)
        self.serve()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        claim = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        claim.give()
        self.over.append(claim)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def give_again(self, data: Any) -> None:
        data.draw(st.sampled_from(self.over)).give()

    @rule(limit=st.integers(1, 5), queue=st.integers(0, 4))
    def reload(self, limit: int, queue: int) -> None:
        self.limit, self.queue = limit, queue
        self.slots.resize(UpstreamLimits(concurrency=limit, queue=queue))
        self.serve()

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert (self.slots.held, self.slots.waiting) == (len(self.holding), len(self.waiting))
        assert {claim.holds for claim in self.holding} <= {Holds.SLOT}
        assert {claim.holds for claim in self.waiting} <= {Holds.PLACE}
        assert {claim.holds for claim in self.over} <= {Holds.NOTHING}
        assert not self.waiting or self.slots.is_full


Trace.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTrace = Trace.TestCase


def config_of(**limits: UpstreamLimits) -> Config:
    upstreams = {name: Upstream(name=name, base_url="http://x", limits=each) for name, each in limits.items()}
    routes = {
        name: Route(name=name, targets=(Target(upstream=upstream, model=None),), timeouts=upstream.timeouts)
        for name, upstream in upstreams.items()
    }
    return Config(upstreams=upstreams, routes=routes)


def test_a_reload_keeps_what_is_in_use_and_forgets_an_upstream_that_is_gone() -> None:
    every = AllSlots()
    every.know(config_of(a=UpstreamLimits(concurrency=1), b=UpstreamLimits(concurrency=1)))
    held, waiting = claimed(every.of("a")), claimed(every.of("a"))
    every.know(config_of(b=UpstreamLimits(concurrency=1)))
    # Its exchanges go on: nobody is left in a queue that nobody serves.
    assert waiting.holds is Holds.SLOT
    assert {load.upstream: load.held for load in every.loads()} == {"a": 2, "b": 0}
    held.give()
    waiting.give()
    every.know(config_of(b=UpstreamLimits(concurrency=1)))
    assert [load.upstream for load in every.loads()] == ["b"]


class Common:
    """An account that several processes see, and their clock."""

    def __init__(self, limit: int, processes: int, *, queue_wait: float = 5.0) -> None:
        cells = memoryview(bytearray(8 * ACCOUNT_CELLS)).cast("q")
        self.milliseconds = 1_000
        self.is_stopped = False
        """Whether a process that was stopped has the lock."""
        self.late: list[Callable[[], None]] = []
        self.accounts = [Account(cells, number) for number in range(processes)]
        limits = UpstreamLimits(concurrency=limit, queue=100, queue_wait=queue_wait)
        self.slots = [Slots(limits, self.gate(account)) for account in self.accounts]

    def gate(self, account: Account) -> SharedGate:
        return SharedGate(
            lambda: account,
            find=lambda: account,
            enter=self.enter,
            enter_whole=self.enter,
            leave=nothing,
            later=self.late.append,
            now=lambda: self.milliseconds,
            apart=lambda: len(self.accounts),
        )

    def enter(self) -> None:
        if self.is_stopped:
            raise Busy
        late, self.late[:] = self.late.copy(), []
        for change in late:
            change()

    def claim(self, process: int) -> Claim:
        self.milliseconds += 1
        return claimed(self.slots[process])

    def look(self) -> None:
        for slots in self.slots:
            slots.serve()


def nothing() -> None:
    """Take no lock: there is one process."""


def test_one_of_several_processes_may_have_all_slots_and_all_of_them_no_more() -> None:
    common = Common(3, 2)
    busy = [common.claim(0) for _ in range(3)]
    assert [claim.holds for claim in busy] == [Holds.SLOT] * 3
    other = common.claim(1)
    assert (other.holds, common.slots[1].is_full) == (Holds.PLACE, True)
    busy[0].give()
    assert other.holds is Holds.PLACE
    common.look()
    assert other.holds is Holds.SLOT


def test_who_waits_longest_is_next_in_whichever_process() -> None:
    common = Common(1, 3)
    held = common.claim(0)
    waiting = [common.claim(process) for process in (2, 0, 1, 0, 2)]
    served: list[int] = []
    for number, claim in enumerate(waiting):
        claim.on_slot = lambda number=number: served.append(number)  # type: ignore[misc]
    for number in range(len(waiting)):
        held.give()
        common.look()
        assert served == list(range(number + 1))
        held = waiting[number]
    newcomer = common.claim(1)
    assert newcomer.holds is Holds.PLACE
    held.give()
    common.look()
    assert newcomer.holds is Holds.SLOT


def test_a_newcomer_overtakes_nobody_who_waits_in_another_process() -> None:
    common = Common(1, 2)
    held, waiting = common.claim(0), common.claim(1)
    held.give()
    newcomer = common.claim(0)
    assert (waiting.holds, newcomer.holds) == (Holds.PLACE, Holds.PLACE)
    common.look()
    assert (waiting.holds, newcomer.holds) == (Holds.SLOT, Holds.PLACE)


def test_a_process_that_does_not_go_on_is_waited_for_no_longer_than_its_own_would_have_waited() -> None:
    common = Common(1, 2, queue_wait=5.0)
    held = common.claim(0)
    common.claim(1)
    mine = common.claim(0)
    held.give()
    assert mine.holds is Holds.PLACE
    common.milliseconds += 5_100
    common.slots[0].serve()
    assert mine.holds is Holds.SLOT


def test_what_a_process_that_died_held_and_waited_for_is_free_again() -> None:
    common = Common(1, 2)
    common.claim(1)
    common.claim(1)
    mine = common.claim(0)
    common.accounts[0].reclaim(1)
    common.slots[0].serve()
    assert mine.holds is Holds.SLOT
    assert common.accounts[0].slots == 1 and not common.accounts[0].is_awaited


def test_a_bound_that_comes_and_goes_with_reloads_counts_only_what_was_taken_under_it() -> None:
    common = Common(1, 2)
    slots = common.slots[0]
    under = common.claim(0)
    slots.resize(UpstreamLimits())
    free = common.claim(0)
    slots.resize(UpstreamLimits(concurrency=1, queue=100))
    free.give()
    assert common.accounts[0].slots == 1
    under.give()
    assert (common.accounts[0].slots, slots.held) == (0, 0)


def test_while_nobody_can_count_together_each_process_takes_its_part_of_what_was_left() -> None:
    common = Common(9, 2)
    before = [common.claim(0) for _ in range(2)]
    common.is_stopped = True
    claims = [[common.claim(process) for _ in range(5)] for process in range(2)]
    assert [sum(claim.holds is Holds.SLOT for claim in each) for each in claims] == [3, 3]
    before[0].give()
    assert [sum(claim.holds is Holds.SLOT for claim in each) for each in claims] == [4, 3], "a slot that it had is its to give again"
    assert len(common.late) == 2, "one change for each process, whatever has happened"
    common.is_stopped = False
    common.look()
    held = sum(claim.holds is Holds.SLOT for each in claims for claim in each) + 1
    assert held == common.accounts[0].slots == 9


@given(
    limit=st.integers(1, 4),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 20)), max_size=80),
)
@settings(max_examples=150, deadline=None)
def test_whatever_processes_do_the_bound_holds_for_all_of_them_and_nobody_is_forgotten(
    limit: int, steps: list[tuple[int, int, int]]
) -> None:
    common = Common(limit, 3)
    claims: list[Claim] = []
    for process, kind, which in steps:
        if kind <= 1 or not claims:
            claims.append(common.claim(process))
        elif kind == 2:
            claims.pop(which % len(claims)).give()
        elif kind == 3:
            common.slots[process].serve()
        else:
            common.is_stopped = kind == 4
        held = sum(claim.holds is Holds.SLOT for claim in claims)
        assert held == sum(slots.held for slots in common.slots) <= limit
        if not common.is_stopped:
            common.enter()
            assert held == common.accounts[0].slots
    common.is_stopped = False
    for _ in range(len(claims) + 1):
        common.look()
    assert sum(claim.holds is Holds.SLOT for claim in claims) == min(limit, len(claims))
    for claim in claims:
        claim.give()
    common.look()
    common.enter()  # as a sweep does: what was given back while nobody could count is entered by whoever counts next
    assert common.accounts[0].slots == 0 and not common.accounts[0].is_awaited


def test_the_slots_of_every_upstream_are_shared_those_of_a_reload_too() -> None:
    every, account = AllSlots(), Common(1, 1).accounts[0]
    every.know(config_of(a=UpstreamLimits(concurrency=1)))
    asked: list[str] = []

    def gate(name: str) -> SharedGate:
        asked.append(name)
        return Common(1, 1).gate(account)

    every.share(gate)
    every.know(config_of(a=UpstreamLimits(concurrency=1), b=UpstreamLimits(concurrency=1)))
    assert asked == ["a", "b"] and every.are_shared
    claimed(every.of("a"))
    waiting = claimed(every.of("b"))
    assert waiting.holds is Holds.PLACE
    account.hold(0, 0, -1)
    every.serve()
    assert waiting.holds is Holds.SLOT
