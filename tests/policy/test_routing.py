"""From a name to a target: exact names, then the longest wildcard, then nothing."""

import pytest

from relay.config.tree import Config, Key, Route, Target, Timeouts, Upstream, UpstreamLimits
from relay.errors import ClientError
from relay.policy.routing import RoutePlan, Router, may_use
from relay.policy.slots import AllSlots

MINE = Upstream(name="mine", base_url="http://127.0.0.1:1/v1")
OPENAI = Upstream(name="openai", base_url="https://api.openai.com/v1")


def router(default: str | None = None, **routes: tuple[Upstream, str | None]) -> Router:
    return router_of(routes, default)


def router_of(routes: dict[str, tuple[Upstream, str | None]], default: str | None = None) -> Router:
    return Router(
        {name: Route(name=name, targets=(Target(upstream=up, model=model),), timeouts=Timeouts()) for name, (up, model) in routes.items()},
        default,
    )


ROUTES: dict[str, tuple[Upstream, str | None]] = {
    "fast": (MINE, "some-model"),
    "openai/fast": (MINE, "exact"),
    "openai/*": (OPENAI, "*"),
    "openai/gpt-*": (OPENAI, "gpt-*"),
    "renamed/*": (MINE, "vendor/x-*"),
    "fixed-*": (MINE, "one"),
    "*": (MINE, "*"),
}


def resolved(plan: RoutePlan) -> tuple[str, str, str | None, bool]:
    choice = plan.next()
    assert choice is not None
    return plan.route.name, choice.target.upstream.name, choice.model, choice.is_mapped


@pytest.mark.parametrize(
    ("name", "route", "upstream", "model", "is_mapped"),
    [
        ("fast", "fast", "mine", "some-model", True),
        ("openai/fast", "openai/fast", "mine", "exact", True),
        ("openai/o3", "openai/*", "openai", "o3", False),
        ("openai/a/b:c", "openai/*", "openai", "a/b:c", False),
        ("openai/gpt-5", "openai/gpt-*", "openai", "gpt-5", False),
        ("openai/gpt-", "openai/*", "openai", "gpt-", False),
        ("openai/", "*", "mine", "openai/", False),
        ("renamed/y", "renamed/*", "mine", "vendor/x-y", False),
        ("fixed-anything", "fixed-*", "mine", "one", True),
        ("FAST", "*", "mine", "FAST", False),
        ("fas", "*", "mine", "fas", False),
        ("", "*", "mine", "", False),
        ("*", "*", "mine", "*", False),
        ("openai/*", "openai/*", "openai", "*", False),
    ],
)
def test_a_name_finds_its_route_and_its_name_there(name: str, route: str, upstream: str, model: str, is_mapped: bool) -> None:
    assert resolved(router_of(ROUTES).plan(name, None)) == (route, upstream, model, is_mapped)


def test_a_name_without_a_route_is_told_so() -> None:
    with pytest.raises(ClientError) as caught:
        router(fast=(MINE, "m")).plan("slow", None)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_request_without_a_model_goes_to_the_star_route_and_stays_without_one() -> None:
    assert resolved(router_of(ROUTES).plan(None, None)) == ("*", "mine", None, False)
    assert resolved(router_of({"*": (MINE, "vendor/*")}).plan(None, None)) == ("*", "mine", None, False)


def test_a_request_without_a_model_gets_the_fixed_one_of_the_star_route() -> None:
    assert resolved(router_of({"*": (MINE, "one")}).plan(None, None)) == ("*", "mine", "one", True)


def test_a_request_without_a_model_and_without_a_star_route_is_told_so() -> None:
    with pytest.raises(ClientError) as caught:
        router(fast=(MINE, "m")).plan(None, None)
    assert caught.value.code == "no_default_route"


def test_the_default_model_answers_for_none() -> None:
    assert resolved(router(default="fast", fast=(MINE, "m")).plan(None, None)) == ("fast", "mine", "m", True)
    assert resolved(router_of(ROUTES, "openai/o3").plan(None, None)) == ("openai/*", "openai", "o3", False)


def test_a_path_that_is_not_about_a_model_does_not_take_the_default() -> None:
    assert resolved(router_of(ROUTES, "fast").plan(None, None, takes_default=False)) == ("*", "mine", None, False)
    with pytest.raises(ClientError) as caught:
        router(default="fast", fast=(MINE, "m")).plan(None, Key(name="k", routes=frozenset({"fast"})), takes_default=False)
    assert caught.value.code == "no_default_route"


def test_a_key_reaches_the_routes_it_lists_and_no_others() -> None:
    key = Key(name="alice", routes=frozenset({"fast", "openai/*"}))
    plans = router_of(ROUTES)
    assert resolved(plans.plan("fast", key))[0] == "fast"
    assert resolved(plans.plan("openai/o3", key))[0] == "openai/*"
    for name in ("openai/gpt-5", "openai/fast", "anything", None):
        with pytest.raises(ClientError) as caught:
            plans.plan(name, key)
        assert caught.value.code == "route_not_allowed"


def test_a_key_without_a_list_and_no_key_at_all_reach_everything() -> None:
    route = Route(name="x", targets=(), timeouts=Timeouts())
    assert may_use(None, route)
    assert may_use(Key(name="k"), route)
    assert not may_use(Key(name="k", routes=frozenset()), route)


def test_a_pinned_request_goes_to_its_upstream_or_nowhere() -> None:
    route = Route(name="both", targets=(Target(upstream=MINE, model="a"), Target(upstream=OPENAI, model="b")), timeouts=Timeouts())
    both = Router({"both": route}, None)
    plan = both.plan("both", None, pinned="openai")
    assert not (plan.next() is None or plan.has_more)
    assert resolved(both.plan("both", None, pinned="openai")) == ("both", "openai", "b", True)
    with pytest.raises(ClientError) as caught:
        both.plan("both", None, pinned="elsewhere")
    assert caught.value.code == "unknown_id"


def test_an_object_is_asked_for_on_the_route_that_made_it_without_a_model() -> None:
    plans = router_of(ROUTES)
    assert resolved(plans.pinned("openai/*", "openai", None)) == ("openai/*", "openai", None, False)
    for route, upstream in (("gone", "openai"), ("openai/*", "mine")):
        with pytest.raises(ClientError) as caught:
            plans.pinned(route, upstream, None)
        assert caught.value.code == "unknown_id"


def test_a_plan_offers_each_target_once_in_order() -> None:
    targets = tuple(Target(upstream=up, model="m") for up in (MINE, OPENAI))
    plan = Router({"r": Route(name="r", targets=targets, timeouts=Timeouts())}, None).plan("r", None)
    offered = []
    while plan.has_more:
        choice = plan.next()
        assert choice is not None
        offered.append(choice.target.upstream.name)
    assert offered == ["mine", "openai"]
    assert plan.next() is None


def test_a_target_without_a_free_slot_is_offered_after_those_that_have_one() -> None:
    limits = UpstreamLimits(concurrency=1, queue=1)
    upstreams = {name: Upstream(name=name, base_url="http://x", limits=limits) for name in "abcd"}
    route = Route(name="fast", targets=tuple(Target(upstream=each, model="m") for each in upstreams.values()), timeouts=Timeouts())
    slots = AllSlots()
    slots.know(Config(upstreams=upstreams, routes={"fast": route}))
    claims = {name: slots.of(name).claim() for name in "ac"}
    plan = Router({"fast": route}, None).plan("fast", None)
    plan.slots = slots
    offered = []
    while (choice := plan.next()) is not None:
        offered.append(choice.target.upstream.name)
        first = claims.pop("a", None)
        if first is not None:
            first.give()
    assert offered == ["b", "a", "d", "c"]


def test_there_is_no_room_where_the_queue_is_full_too() -> None:
    plan = Router({"fast": Route(name="fast", targets=(Target(upstream=MINE, model="m"),), timeouts=Timeouts())}, None).plan("fast", None)
    choice = plan.next()
    assert choice is not None and plan.has_room(choice)
    plan.slots = AllSlots()
    plan.slots.of("mine").resize(UpstreamLimits(concurrency=1, queue=1))
    for has_room in (True, True, False):
        assert plan.has_room(choice) is has_room
        plan.slots.of("mine").claim()
