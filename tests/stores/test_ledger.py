"""The ledger's own books: every way to lose a grant, or to give one back twice, shows."""

import pytest

from relay.config.tree import Limits
from relay.policy.limits import Demand, Grant, Refusal, Scope
from relay.stores.ledger import SLOTS_IDENTITY, TOKENS_IDENTITY, Ledger
from relay.stores.memory import MAX_UNUSED, MemoryTable

SCOPES = (Scope(limits=Limits(rpm=100, tpm=1000, concurrency=10), key="alice"), Scope(limits=Limits(rpm=50), route="fast"))
ASKED = Demand(scopes=SCOPES, tokens=100)


def ledger() -> Ledger:
    return Ledger(MemoryTable(), now=lambda: 5_000, unix_time=lambda: 1e9)


async def grant(books: Ledger) -> Grant:
    answer = await books.admit(ASKED)
    assert isinstance(answer, Grant)
    return answer


async def test_books_balance_while_grants_are_out_and_when_all_are_over() -> None:
    books = ledger()
    grants = [await grant(books) for _ in range(5)]
    assert books.sweep() == []
    books.settle(grants[0], 30, 0)
    books.settle(grants[1], 130, 0)
    books.release(grants[2])
    assert books.sweep() == []
    for each in grants[3:]:
        books.settle(each, 0, 0)
    assert books.sweep() == []
    assert (books.granted, books.held, books.settled, books.refunded) == (0, 0, 130, 370)


async def test_a_refusal_leaves_the_books_alone() -> None:
    books = ledger()
    for _ in range(10):
        await grant(books)
    assert isinstance(await books.admit(ASKED), Refusal)
    assert books.granted == 10
    assert books.sweep() == []


async def test_a_grant_given_back_twice_is_a_violation_and_frees_nothing() -> None:
    books = ledger()
    first, second = await grant(books), await grant(books)
    books.settle(first, 10, 0)
    books.settle(first, 10, 0)
    assert books.violations() == [SLOTS_IDENTITY, TOKENS_IDENTITY]
    assert next(books.standings())[2] == 100, "the second still holds its own"
    books.settle(second, 10, 0)


async def test_a_lost_grant_is_a_violation() -> None:
    books = ledger()
    books._live.discard(await grant(books))
    assert SLOTS_IDENTITY in books.violations()
    assert books.sweep() == [SLOTS_IDENTITY, TOKENS_IDENTITY]


@pytest.mark.parametrize(("slots", "tokens", "broken"), [(1, 0, SLOTS_IDENTITY), (0, 7, TOKENS_IDENTITY)])
async def test_an_account_that_disagrees_with_the_grants_is_a_violation(slots: int, tokens: int, broken: str) -> None:
    books = ledger()
    await grant(books)
    next(iter(books._accounts.values()))[1].hold(tokens, 0, slots)
    assert books.violations() == []
    assert books.sweep() == [broken]


async def test_accounts_of_scopes_that_are_gone_are_forgotten_once_nothing_is_held() -> None:
    books = ledger()
    out = await grant(books)
    books.know([])
    books.settle(out, 10, 0)
    assert books.sweep() == []
    books.know([])
    assert list(books.standings()) == []


async def test_accounts_of_keys_that_come_and_go_are_bounded_and_one_that_comes_back_has_used_what_it_had() -> None:
    table = MemoryTable()
    books = Ledger(table, now=lambda: 5_000, unix_time=lambda: 1e9)
    stays = Scope(limits=Limits(rpm=1), key="stays")
    for number in range(MAX_UNUSED + 50):
        scope = stays if number == 0 else Scope(limits=Limits(rpm=1), key=f"key-{number}")
        answer = await books.admit(Demand(scopes=(scope,), tokens=0))
        assert isinstance(answer, Grant)
        books.settle(answer, 0, 0)
        books.know([stays])
    assert len(table._accounts) == MAX_UNUSED + 1
    for known in (stays, scope):
        assert isinstance(await books.admit(Demand(scopes=(known,), tokens=0)), Refusal)
