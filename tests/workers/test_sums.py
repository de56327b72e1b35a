"""One page out of what several workers counted."""

from relay.config.tree import Config, Route, Target, Timeouts, Upstream
from relay.telemetry import families as f
from relay.telemetry.registry import Registry
from relay.workers.sums import Sums
from tests.fakes.relay import ACCOUNTS

CONFIG = Config(upstreams={}, routes={})


def worker(count: int, in_flight: int, seconds: float = 1.0) -> list[bytes]:
    registry = Registry(f.all_families())
    registry.number(f.REQUESTS, "chat", "fast", "true", "200", "complete").inc(count)
    registry.number(f.IN_FLIGHT, "fast", "true").set(in_flight)
    registry.histogram(f.TIME_TO_FIRST_TOKEN, "fast", "mine").observe(seconds)
    return list(registry.dump())


def requests(registry: Registry) -> float:
    return sum(series.value for _, series in registry.numbers(f.REQUESTS))


def in_flight(registry: Registry) -> float:
    return sum(series.value for _, series in registry.numbers(f.IN_FLIGHT))


def test_living_workers_are_added_up() -> None:
    total = Sums(CONFIG, dict).total([worker(3, 2), worker(4, 1)], ready=2, starting=0)
    assert (requests(total), in_flight(total)) == (7, 3)
    assert total.histogram(f.TIME_TO_FIRST_TOKEN, "fast", "mine").sum == 2.0


def test_dead_worker_leaves_its_counts_and_not_its_gauges() -> None:
    sums = Sums(CONFIG, dict)
    sums.ended("killed", worker(3, 2))
    total = sums.total([worker(4, 1)], ready=1, starting=1)
    assert (requests(total), in_flight(total)) == (7, 1)
    assert total.number(f.WORKER_EXITS, "killed").value == 1
    assert (total.number(f.WORKERS, "ready").value, total.number(f.WORKERS, "starting").value) == (1, 1)


def test_page_does_not_count_anything_twice() -> None:
    sums = Sums(CONFIG, dict)
    sums.ended("exit", worker(1, 0))
    assert [requests(sums.total([worker(1, 0)], 1, 0)) for _ in range(3)] == [2, 2, 2]


def test_last_reload_is_the_supervisors_word() -> None:
    sums = Sums(CONFIG, dict)
    sums.loaded(is_good=True, unix_time=5.0)
    sums.loaded(is_good=False, unix_time=9.0)
    total = sums.total([], 0, 0)
    assert total.number(f.RELOAD_SUCCESSFUL).value == 0
    assert total.number(f.RELOAD_TIME).value == 5.0


MINE = Upstream(name="mine", base_url="http://mine/v1")
FAST = Config(
    upstreams={"mine": MINE}, routes={"fast": Route(name="fast", targets=(Target(upstream=MINE, model="m"),), timeouts=Timeouts())}
)


async def show(sums: Sums, *living: list[bytes]) -> dict[str, float]:
    """Return the counters of a page, added up by name."""
    _, _, page = await sums.render(sums.total(living, 1, 0), "")
    found: dict[str, float] = {}
    for line in page.decode().splitlines():
        if line.startswith("relay_"):
            series, _, number = line.rpartition(" ")
            name = series.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(number)
    return found


async def test_counts_of_a_removed_route_stay_until_a_page_has_shown_them_and_nothing_is_in_flight() -> None:
    sums = Sums(FAST, dict)
    sums.ended("killed", worker(3, 0))
    sums.know(CONFIG)
    assert not sums.may_forget
    assert (await show(sums, worker(4, 1)))["relay_requests_total"] == 7
    assert not sums.may_forget, "the living worker still serves that route"
    assert (await show(sums, worker(5, 0)))["relay_requests_total"] == 8
    assert sums.may_forget
    sums.forget([worker(0, 0)])
    page = await show(sums)
    assert "relay_requests_total" not in page
    assert page["relay_requests_forgotten_total"] == 3
    assert not sums.may_forget


async def test_requests_that_a_killed_worker_was_serving_are_lost_and_the_books_balance() -> None:
    registry = Registry(f.all_families())
    registry.number(f.STARTED).inc(10)
    registry.number(f.REQUESTS, "chat", "fast", "true", "200", "complete").inc(6)
    registry.number(f.MODEL_LISTS).inc(1)
    registry.number(f.IN_FLIGHT, "fast", "true").set(3)
    sums = Sums(FAST, dict)
    sums.ended("killed", registry.dump())
    page = await show(sums)
    assert page["relay_requests_lost_total"] == 3
    assert page["relay_requests_started_total"] == 10
    assert sum(page.get(name, 0) for name in ACCOUNTS) == 10


async def test_requests_that_began_and_ended_while_a_worker_told_are_in_the_books_too() -> None:
    registry = Registry(f.all_families())
    registry.number(f.STARTED).inc(5)
    registry.number(f.REQUESTS, "chat", "fast", "true", "200", "complete").inc(6)
    sums = Sums(FAST, dict)
    sums.ended("killed", registry.dump())
    page = await show(sums)
    assert (page["relay_requests_started_total"], page["relay_requests_lost_total"]) == (6, 0)


async def test_a_key_that_only_the_living_know_is_not_forgotten() -> None:
    registry = Registry(f.all_families())
    for key in ("made-later", "revoked"):
        registry.number(f.KEY_REQUESTS, key, "complete").inc()
    sums = Sums(FAST, dict)
    sums.ended("exit", registry.dump())
    sums.leaving()
    await show(sums)
    alive = Registry(f.all_families())
    alive.number(f.KEY_REQUESTS, "made-later", "complete").inc()
    sums.forget([list(alive.dump())])
    assert {labels[0] for labels, _ in sums.total([], 0, 0).numbers(f.KEY_REQUESTS)} == {"made-later"}
