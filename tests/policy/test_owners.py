"""Ids and their owners: the first one stays, the oldest id goes."""

from relay.policy.owners import Owner, Owners


def test_an_id_belongs_to_who_made_it() -> None:
    owners = Owners()
    owners.made("resp_1", Owner(upstream="mine", route="fast", key="alice"))
    owner = owners.find("resp_1")
    assert owner is not None
    assert (owner.upstream, owner.route, owner.key) == ("mine", "fast", "alice")
    assert owners.find("resp_2") is None


def test_nobody_takes_an_id_over() -> None:
    owners = Owners()
    owners.made("resp_1", Owner(upstream="mine", route="fast", key="alice"))
    owners.made("resp_1", Owner(upstream="other", route="slow", key=None))
    owner = owners.find("resp_1")
    assert owner is not None and (owner.upstream, owner.key) == ("mine", "alice")


def test_without_keys_an_id_belongs_to_everyone() -> None:
    owners = Owners()
    owners.made("resp_1", Owner(upstream="mine", route="*", key=None))
    owner = owners.find("resp_1")
    assert owner is not None and owner.key is None


def test_the_oldest_ids_are_forgotten_first() -> None:
    owners = Owners(capacity=3)
    for number in range(10):
        owners.made(str(number), Owner(upstream="mine", route="*", key=None))
    assert [number for number in range(10) if owners.find(str(number)) is not None] == [7, 8, 9]
