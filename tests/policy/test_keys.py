"""Who calls: one credential in any of its places, and one answer for all that is not a key."""

import hashlib
from itertools import permutations

import pytest

from relay.config.tree import Key
from relay.errors import ClientError, error_answer
from relay.exchange import Headers
from relay.policy.keys import GUESS_SECONDS, GUESSES, MAX_ADDRESSES, Guesses, credential, find_key

ALICE = b"sk-alice"
KEYS = {
    hashlib.sha256(ALICE).digest(): Key(name="alice"),
    hashlib.sha256(b"sk-off").digest(): Key(name="off", is_enabled=False),
    hashlib.sha256(b"sk-old").digest(): Key(name="old", expires_at=1000.0),
    hashlib.sha256(b"k\xff\xfe").digest(): Key(name="odd"),
}


def bearer(secret: bytes) -> Headers:
    return ((b"Authorization", b"Bearer " + secret),)


@pytest.mark.parametrize(
    "headers",
    [
        ((b"Authorization", b"Bearer sk-alice"),),
        ((b"AUTHORIZATION", b"bearer sk-alice"),),
        ((b"authorization", b"BEARER   sk-alice  "),),
        ((b"api-key", b"sk-alice"),),
        ((b"X-API-Key", b" sk-alice "),),
        ((b"X-API-Key", b"sk-alice"), (b"Authorization", b"Bearer sk-alice"), (b"api-key", b"sk-alice")),
        ((b"Authorization", b"Bearer "), (b"api-key", b"sk-alice")),
        ((b"api-key", b""), (b"Authorization", b"Bearer sk-alice")),
        ((b"x-apikey", b"other"), (b"authorizatio", b"other"), (b"api-key", b"sk-alice")),
    ],
)
def test_a_credential_is_found_wherever_it_stands(headers: Headers) -> None:
    assert credential(headers) == ALICE
    key = find_key(KEYS, headers, 0.0)
    assert key is not None and key.name == "alice"


@pytest.mark.parametrize("headers", [(), ((b"Authorization", b"Bearer"),), ((b"Authorization", b""),), ((b"api-key", b"  "),)])
def test_no_credential_is_a_missing_key(headers: Headers) -> None:
    assert credential(headers) is None
    with pytest.raises(ClientError) as caught:
        find_key(KEYS, headers, 0.0)
    assert caught.value.code == "missing_key"
    assert caught.value.headers["www-authenticate"] == "Bearer"


def test_two_different_credentials_are_ambiguous_in_any_order() -> None:
    """A30."""
    lines = [(b"Authorization", b"Bearer sk-alice"), (b"api-key", b"sk-other"), (b"X-Api-Key", b"sk-alice")]
    for order in permutations(lines):
        with pytest.raises(ClientError) as caught:
            credential(tuple(order))
        assert caught.value.code == "ambiguous_credentials"


@pytest.mark.parametrize("second", [b"Bearer sk-alice", b"Bearer sk-other", b""])
def test_two_authorization_lines_are_ambiguous(second: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        credential((*bearer(ALICE), (b"authorization", second)))
    assert caught.value.code == "ambiguous_credentials"


def test_another_scheme_is_a_credential_of_its_own() -> None:
    assert credential(((b"Authorization", b"Basic c2stYWxpY2U="),)) == b"Basic c2stYWxpY2U="
    with pytest.raises(ClientError):
        find_key(KEYS, ((b"Authorization", b"Basic sk-alice"),), 0.0)


def test_unknown_disabled_and_expired_keys_get_the_same_answer() -> None:
    """A32."""
    answers = []
    for secret in (b"sk-nobody", b"sk-off", b"sk-old", b"\xff\x00\xfe", b"sk-alice ".upper()):
        with pytest.raises(ClientError) as caught:
            find_key(KEYS, bearer(secret), 1000.0)
        assert str(caught.value) == "invalid_api_key"
        answers.append(error_answer(caught.value))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].status == 401


def test_a_key_works_until_the_instant_it_expires() -> None:
    key = find_key(KEYS, bearer(b"sk-old"), 999.9)
    assert key is not None and key.name == "old"


def test_bytes_outside_ascii_are_compared_as_bytes() -> None:
    """A31."""
    key = find_key(KEYS, bearer(b"k\xff\xfe"), 0.0)
    assert key is not None and key.name == "odd"
    with pytest.raises(ClientError):
        find_key(KEYS, bearer("kÿþ".encode()), 0.0)


def test_without_keys_anyone_may_call_but_not_ambiguously() -> None:
    assert find_key({}, (), 0.0) is None
    assert find_key({}, bearer(b"anything"), 0.0) is None
    with pytest.raises(ClientError):
        find_key({}, (*bearer(b"a"), (b"api-key", b"b")), 0.0)


def test_failures_are_refused_past_the_bound_until_the_oldest_is_a_minute_old() -> None:
    guesses = Guesses()
    for number in range(GUESSES):
        assert guesses.failed("10.0.0.1", float(number)) == 0.0
    assert guesses.failed("10.0.0.1", float(GUESSES)) == pytest.approx(GUESS_SECONDS - GUESSES)
    assert guesses.failed("10.0.0.2", float(GUESSES)) == 0.0
    for number in range(GUESSES - 1):
        assert guesses.failed("10.0.0.1", 500.0 + number) == 0.0


def test_who_keeps_guessing_stays_refused() -> None:
    guesses = Guesses()
    waits = [guesses.failed("10.0.0.1", number * 0.1) for number in range(3000)]
    assert all(wait == 0.0 for wait in waits[:GUESSES])
    assert all(0.0 < wait <= GUESS_SECONDS for wait in waits[GUESSES:])


def test_addresses_are_bounded_and_the_quietest_is_forgotten_first() -> None:
    guesses = Guesses()
    for _ in range(GUESSES):
        guesses.failed("noisy", 0.0)
    for number in range(MAX_ADDRESSES + 10):
        guesses.failed(str(number), 1.0)
        if number % 1000 == 0:
            assert guesses.failed("noisy", 1.0) > 0.0
    assert len(guesses._failures) == MAX_ADDRESSES
    assert "noisy" in guesses._failures
    assert "1" not in guesses._failures
    assert max(len(failures) for failures in guesses._failures.values()) <= GUESSES + 1
