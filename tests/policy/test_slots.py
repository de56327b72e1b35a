from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.config.tree import Config, Route, Target, Upstream, UpstreamLimits
from relay.policy.slots import AllSlots, Claim, Holds, Slots, part_of


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


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("concurrency", [7, 64, 100])
def test_the_parts_of_several_processes_add_up_to_the_whole(concurrency: int, total: int) -> None:
    parts = [part_of(UpstreamLimits(concurrency=concurrency), index, total).concurrency for index in range(total)]
    assert sum(part or 0 for part in parts) == concurrency
    assert max(part or 0 for part in parts) - min(part or 0 for part in parts) <= 1


def test_every_process_has_at_least_one_slot_and_no_bound_has_no_parts() -> None:
    assert [part_of(UpstreamLimits(concurrency=2), index, 4).concurrency for index in range(4)] == [1, 1, 1, 1]
    assert part_of(UpstreamLimits(), 0, 4).concurrency is None


def test_a_process_of_several_takes_its_part() -> None:
    every = AllSlots(index=1, total=2)
    every.know(config_of(a=UpstreamLimits(concurrency=3)))
    claimed(every.of("a"))
    assert every.of("a").is_full
