"""What is known of targets, and the orders that follow from it."""

import pytest

from relay.config.tree import Affinity, AffinityKind, Config, Route, Strategy, Target, Timeouts, Upstream
from relay.exchange import ClientRequest, Operation
from relay.policy.breaker import Cause, Health
from relay.policy.targets import Targets

A, B, C = (Target(upstream=Upstream(name=name, base_url=f"http://{name}"), model="m") for name in "abc")
REQUEST = ClientRequest(
    id="1",
    method="POST",
    path="/v1/chat/completions",
    query=None,
    headers=((b"X-Session", b"s1"),),
    operation=Operation.CHAT,
    received_at=0.0,
    client_ip="",
)


def route(*targets: Target, **more: object) -> Route:
    return Route(name="fast", targets=targets, timeouts=Timeouts(), **more)  # type: ignore[arg-type]


def knowing(*targets: Target) -> Targets:
    known = Targets()
    known.know(Config(upstreams={target.upstream.name: target.upstream for target in targets}, routes={"fast": route(*targets)}))
    return known


def names(targets: list[Target]) -> list[str]:
    return [target.upstream.name for target in targets]


def fail(known: Targets, target: Target, times: int = 5) -> None:
    for _ in range(times):
        permit = known.breaker(target).begin(0.0, is_forced=True)
        assert permit is not None
        known.breaker(target).failed(permit, 0.0, 0.5)


def test_targets_come_as_written_and_fallbacks_after_them() -> None:
    assert names(Targets().order(route(B, A, fallbacks=(C,)), REQUEST, 0.0, 0.5)) == ["b", "a", "c"]


def test_a_target_at_rest_is_left_out_but_never_the_last() -> None:
    known = knowing(A, B)
    fail(known, A)
    assert names(known.order(route(A, B), REQUEST, 1.0, 0.5)) == ["b"]
    fail(known, B)
    assert len(known.order(route(A, B), REQUEST, 1.0, 0.5)) == 1
    assert names(known.order(route(A), REQUEST, 1.0, 0.5)) == ["a"]


def test_the_fastest_goes_first_once_it_is_known() -> None:
    known = knowing(A, B, C)
    for target, seconds in ((A, 2.0), (B, 0.5), (C, 1.0)):
        known.answered(target, seconds)
    assert names(known.order(route(A, B, C, strategy=Strategy.FASTEST), REQUEST, 0.0, 0.5)) == ["b", "c", "a"]


def test_the_pace_follows_what_comes() -> None:
    known = knowing(A, B)
    known.answered(A, 0.1)
    known.answered(B, 1.0)
    for _ in range(50):
        known.answered(A, 5.0)
    assert names(known.order(route(A, B, strategy=Strategy.FASTEST), REQUEST, 0.0, 0.5)) == ["b", "a"]


def test_the_least_busy_goes_first() -> None:
    known = Targets()
    known.began(A)
    assert names(known.order(route(A, B, strategy=Strategy.LEAST_BUSY), REQUEST, 0.0, 0.0)) == ["b", "a"]
    known.ended(A)
    assert names(known.order(route(A, B, strategy=Strategy.LEAST_BUSY), REQUEST, 0.0, 0.0)) == ["a", "b"]


def test_a_header_keeps_a_conversation_on_its_target() -> None:
    known = Targets()
    bound = route(A, B, C, affinity=Affinity(kind=AffinityKind.HEADER, header=b"x-session"))
    assert len({tuple(names(known.order(bound, REQUEST, 0.0, chance / 10))) for chance in range(10)}) == 1


def test_targets_are_named_by_upstream_and_model() -> None:
    assert A.name == "a/m"


def test_an_operators_rest_takes_a_target_out_until_it_is_over_or_brought_back() -> None:
    known = knowing(A, B)
    known.rest(A.name, 0.0, 100.0)
    assert names(known.order(route(A, B), REQUEST, 99.0, 0.5)) == ["b"]
    assert known.cause(A.name, 99.0) is Cause.OPERATOR
    assert names(known.order(route(A, B), REQUEST, 101.0, 0.5)) == ["a", "b"]
    known.rest(A.name, 200.0, 100.0)
    known.bring_back(A.name, 201.0)
    assert names(known.order(route(A, B), REQUEST, 201.0, 0.5)) == ["a", "b"]
    assert known.cause(A.name, 201.0) is None


def test_the_last_target_is_kept_against_an_operator_too() -> None:
    known = knowing(A, B)
    for target in (A, B):
        known.rest(target.name, 0.0, 100.0 if target is A else 50.0)
    assert names(known.order(route(A, B), REQUEST, 1.0, 0.5)) == ["b"]


def test_what_no_route_leads_to_cannot_be_rested() -> None:
    known = knowing(A)
    for act in (lambda: known.rest("c/m", 0.0, 1.0), lambda: known.bring_back("c/m", 0.0)):
        with pytest.raises(KeyError):
            act()
    assert [standing.name for standing in known.standings(0.0)] == [A.name]


def test_the_breakers_of_an_upstream_are_those_of_all_its_targets() -> None:
    a, other = A.upstream, Target(upstream=A.upstream, model="org/x")
    known = knowing(A, other, B)
    for breaker in known.breakers_of(a.name):
        breaker.seems_ill(0.0, 10.0)
    assert {standing.name: standing.health for standing in known.standings(1.0)} == {
        "a/m": Health.COOLING,
        "a/org/x": Health.COOLING,
        "b/m": Health.HEALTHY,
    }
