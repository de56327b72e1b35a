"""Both ends of the socket pair."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from relay.workers.channel import MAX_WAITING, Channel
from relay.workers.messages import AskPage, Collect, Counted, Drain, Hurry, Message, Page


class End:
    """One end, and what it heard."""

    def __init__(self) -> None:
        self.told: list[Message] = []
        self.closed = asyncio.Event()
        self.delay = asyncio.Event()
        self.channel: Channel

    async def asked(self, message: Message) -> Message:
        if isinstance(message, Collect):
            await self.delay.wait()
            return Counted([b"x"])
        assert isinstance(message, AskPage)
        return Page(200, b"", message.path.encode())


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    sockets = socket.socketpair()
    both = End(), End()
    for end, sock in zip(both, sockets, strict=True):
        end.channel = await Channel.open(sock, told=end.told.append, asked=end.asked, closed=end.closed.set)
    yield both
    for end in both:
        end.channel.close()
        await end.closed.wait()


async def test_what_is_told_arrives_in_order(ends: tuple[End, End]) -> None:
    one, other = ends
    assert one.channel.tell(Drain())
    assert one.channel.tell(Hurry())
    await one.channel.ask(AskPage("/", ""), 5)
    assert other.told == [Drain(), Hurry()]


async def test_questions_overtake_each_other_and_get_their_own_answers(ends: tuple[End, End]) -> None:
    one, other = ends
    slow = asyncio.create_task(one.channel.ask(Collect(), 5))
    answers = await asyncio.gather(*(one.channel.ask(AskPage(f"/{number}", ""), 5) for number in range(20)))
    assert [answer.body for answer in answers if isinstance(answer, Page)] == [b"/%d" % number for number in range(20)]
    assert not slow.done()
    other.delay.set()
    assert await slow == Counted([b"x"])


async def test_question_without_an_answer_ends_at_its_time(ends: tuple[End, End]) -> None:
    with pytest.raises(TimeoutError):
        await ends[0].channel.ask(Collect(), 0.01)


async def test_questions_fail_when_the_peer_goes(ends: tuple[End, End]) -> None:
    one, other = ends
    asking = asyncio.create_task(one.channel.ask(Collect(), 5))
    await asyncio.sleep(0)
    other.channel.close()
    with pytest.raises(ConnectionError):
        await asking
    await one.closed.wait()
    assert not one.channel.tell(Drain())
    with pytest.raises(ConnectionError):
        await one.channel.ask(Collect(), 5)


async def test_nothing_is_kept_for_a_peer_that_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    end = End()
    channel = await Channel.open(ours, told=end.told.append, asked=end.asked, closed=end.closed.set)
    told = 0
    while channel.tell(Counted([bytes(2**20)])):
        told += 1
        assert told < 3 * MAX_WAITING / 2**20
    with pytest.raises(ConnectionError):
        await channel.ask(Collect(), 5)
    theirs.close()
    await end.closed.wait()


async def test_nonsense_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    end = End()
    await Channel.open(ours, told=end.told.append, asked=end.asked, closed=end.closed.set)
    theirs.send(b"\xff" * 100)
    await asyncio.wait_for(end.closed.wait(), 5)
    theirs.close()
