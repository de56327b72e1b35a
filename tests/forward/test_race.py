"""Two attempts side by side, over stand-ins: who wins, who is given up, and that nothing is left of the loser."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from relay.config.tree import Target, Upstream
from relay.errors import Break as Broken
from relay.errors import ErrorEvent, RelayError, StreamBroken
from relay.exchange import Attempt, ClientRequest, Exchange, Operation
from relay.forward.race import Entrant, Race
from relay.policy.course import Step
from relay.policy.routing import Choice


class FakeRun:
    """An attempt that answers, fails or breaks when told to."""

    def __init__(self, exchange: Exchange, name: str) -> None:
        target = Target(upstream=Upstream(name=name, base_url="http://x"), model="m")
        self.attempt = Attempt(target=target, started_at=0.0)
        self.done: asyncio.Future[RelayError | None] = asyncio.get_running_loop().create_future()
        self.claim: Callable[[FakeRun], None] | None = None
        self.is_open = False
        self.is_beaten = False
        self.began = self.was_cancelled = False
        exchange.attempts.append(self.attempt)

    async def go(self) -> RelayError | None:
        self.began = True
        try:
            return await self.done
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise

    def beat(self) -> None:
        self.is_beaten = True
        self.done.set_result(None)

    def answer(self) -> None:
        if self.done.done():
            return
        assert self.claim is not None
        self.claim(self)
        self.is_open = True

    def end(self, error: RelayError | None = None) -> None:
        self.done.set_result(error)


class FakeTrial:
    """Counts how often it was handed back."""

    def __init__(self) -> None:
        self.closes = 0

    def close(self) -> None:
        self.closes += 1


class Bed:
    """An exchange with two attempts that may race."""

    def __init__(self) -> None:
        request = ClientRequest(
            id="1", method="POST", path="/", query=None, headers=(), operation=Operation.CHAT, received_at=0.0, client_ip=""
        )
        self.exchange = Exchange(request=request)
        self.first, self.trial = FakeRun(self.exchange, "a"), FakeTrial()
        self.second: FakeRun | None = None
        self.second_trial = FakeTrial()
        self.backup_began = asyncio.Event()
        self.is_final = False
        self.race = Race(self.exchange, lambda: self.is_final)

    def entrant(self, run: FakeRun, trial: FakeTrial) -> Entrant:
        choice = Choice(target=run.attempt.target, model="m", is_mapped=True)
        go: Callable[[], Coroutine[Any, Any, RelayError | None]] = run.go
        return Entrant(run, Step(choice=choice, trial=trial), go)  # type: ignore[arg-type]

    def back_up(self) -> Entrant | None:
        self.second = FakeRun(self.exchange, "b")
        self.backup_began.set()
        return self.entrant(self.second, self.second_trial)

    def start(self, delay: float = 0.001, back_up: Callable[[], Entrant | None] | None = None) -> asyncio.Task[Entrant]:
        first = self.entrant(self.first, self.trial)
        return asyncio.create_task(self.race.run(first, delay, back_up or self.back_up))

    async def both(self) -> tuple[asyncio.Task[Entrant], FakeRun]:
        task = self.start()
        await self.backup_began.wait()
        await asyncio.sleep(0)
        assert self.second is not None
        return task, self.second


async def test_an_answer_in_time_has_no_backup() -> None:
    bed = Bed()
    task = bed.start(delay=60.0)
    await asyncio.sleep(0)
    bed.first.answer()
    bed.first.end()
    assert (await task).run is bed.first  # type: ignore[comparison-overlap]
    assert (bed.race.has_backup, bed.second, bed.trial.closes) == (False, None, 0)


async def test_the_winner_gives_the_other_up_within_the_same_call_and_stands_last() -> None:
    bed = Bed()
    task, second = await bed.both()
    bed.first.answer()
    assert second.is_beaten and not bed.first.is_beaten
    assert bed.exchange.attempts[-1] is bed.first.attempt
    bed.first.end()
    assert (await task).run is bed.first  # type: ignore[comparison-overlap]
    assert second.was_cancelled and second.attempt.hedge_won is False
    assert (bed.trial.closes, bed.second_trial.closes) == (1, 1)


async def test_a_backup_that_wins_is_counted_as_such() -> None:
    bed = Bed()
    task, second = await bed.both()
    second.answer()
    bed.first.answer()
    assert bed.first.is_beaten and not bed.first.is_open
    second.end()
    assert (await task).run is second  # type: ignore[comparison-overlap]
    assert second.attempt.hedge_won is True and bed.first.attempt.hedge_won is None


async def test_a_backup_that_is_given_up_before_it_began_hands_its_permit_back() -> None:
    bed = Bed()

    def back_up() -> Entrant | None:
        asyncio.get_running_loop().call_soon(bed.first.answer)
        return bed.back_up()

    task = bed.start(back_up=back_up)
    await bed.backup_began.wait()
    while not bed.first.is_open:
        await asyncio.sleep(0)
    bed.first.end()
    await task
    assert bed.second_trial.closes == 1


async def test_when_both_have_failed_the_last_one_says_why() -> None:
    bed = Bed()
    task, second = await bed.both()
    bed.first.end(StreamBroken(Broken.RESET, anything=False))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second.end(StreamBroken(Broken.TRUNCATED, anything=True))
    entrant = await task
    assert entrant.run is second and isinstance(entrant.error, StreamBroken)  # type: ignore[comparison-overlap]


async def test_a_failure_that_is_the_answer_ends_the_other_attempt() -> None:
    bed = Bed()
    task, second = await bed.both()
    bed.is_final = True
    error = ErrorEvent(400, kind="invalid_request_error", code=None)
    second.end(error)
    assert (await task).error is error
    assert bed.first.is_beaten and bed.first.was_cancelled
    assert bed.exchange.attempts[-1] is second.attempt and second.attempt.hedge_won is False
    assert (bed.trial.closes, bed.second_trial.closes) == (1, 1)


async def test_an_answer_that_has_begun_is_not_ended_by_a_failure_just_before_it() -> None:
    bed = Bed()
    task, second = await bed.both()
    bed.is_final = True
    second.end(ErrorEvent(400, kind="invalid_request_error", code=None))
    bed.first.answer()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not bed.first.is_beaten
    bed.first.end()
    assert (await task).run is bed.first  # type: ignore[comparison-overlap]


async def test_a_client_that_leaves_ends_both() -> None:
    bed = Bed()
    task, second = await bed.both()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bed.first.was_cancelled and second.was_cancelled
    assert (bed.trial.closes, bed.second_trial.closes) == (1, 1)


async def test_a_bug_in_one_is_raised_as_it_is_and_ends_the_other() -> None:
    bed = Bed()
    task, second = await bed.both()
    second.done.set_exception(KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        await task
    assert bed.first.was_cancelled


async def test_where_no_backup_is_to_be_had_the_first_goes_on_alone() -> None:
    bed = Bed()
    asked = asyncio.Event()

    def none() -> None:
        asked.set()

    task = bed.start(back_up=none)
    await asked.wait()
    bed.first.answer()
    bed.first.end()
    assert (await task).run is bed.first  # type: ignore[comparison-overlap]
    assert not bed.race.has_backup
