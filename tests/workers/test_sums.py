"""One page out of what several workers counted."""

from relay.config.tree import Config
from relay.telemetry import families as f
from relay.telemetry.registry import Registry
from relay.workers.sums import Sums

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
