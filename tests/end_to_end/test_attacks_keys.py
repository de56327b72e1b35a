"""Keys that are wrong, odd, doubled or guessed (A29-A33): one answer for all of them, and no trace of what was tried."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, Refusal, post, request
from tests.fakes import scripts
from tests.fakes.client import Response
from tests.fakes.upstream import ScriptedUpstream

AMBIGUOUS = Refusal(status=400, code="ambiguous_credentials")
UNKNOWN_KEY = Refusal(status=401, code="invalid_api_key", outcome="unauthorized")
NO_KEY = Refusal(status=401, code="missing_key", outcome="unauthorized")
AUTH = (("Authorization", "Bearer sk-alice"),)


@pytest.fixture(scope="module")
async def locked(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    """A relay with keys, which believes the X-Forwarded-For of loopback."""
    keys: dict[str, Any] = {
        "alice": {"key": "sk-alice"},
        "bob": {"hash": f"sha256:{hashlib.sha256(b'sk-bob').hexdigest()}"},
        "off": {"key": "sk-off", "enabled": "false"},
        "past": {"key": "sk-past", "expires": "2020-01-01"},
        "future": {"key": "sk-future", "expires": "2099-12-31"},
    }
    shared_upstream.answers(scripts.json_answer(ANSWER))
    upstreams = {"mine": {"base_url": shared_upstream.url, "api_key": "sk-upstream"}}
    server = {"trusted_proxies": ["127.0.0.1"]}
    config = {"server": server, "upstreams": upstreams, "routes": {"*": "mine/*"}, "keys": keys}
    bed = Bed(await shared_relay_with(config), shared_upstream, headers=AUTH)
    yield bed
    await bed.settle_accounts()


async def test_a29_x_forwarded_for_is_believed_from_trusted_proxies_alone(locked: Bed) -> None:
    """Read from the right: the first address that is no trusted proxy's. Others are believed nothing (the other module's log says so)."""
    answer = await locked.send(CHAT, {"model": "m"}, [("X-Forwarded-For", "198.51.100.7, 203.0.113.9"), *AUTH])
    assert (await locked.line(answer))["client_ip"] == "203.0.113.9"
    answer = await locked.send(CHAT, {"model": "m"}, [("X-Forwarded-For", "203.0.113.9, 127.0.0.1"), *AUTH])
    assert (await locked.line(answer))["client_ip"] == "203.0.113.9"


TWO_KEYS: dict[str, list[tuple[str, str]]] = {
    "two Authorization lines": [("Authorization", "Bearer sk-alice"), ("Authorization", "Bearer sk-bob")],
    "two equal Authorization lines": [("Authorization", "Bearer sk-alice"), ("Authorization", "Bearer sk-alice")],
    "x-api-key that differs": [("Authorization", "Bearer sk-alice"), ("x-api-key", "sk-bob")],
    "api-key that differs": [("Authorization", "Bearer sk-alice"), ("api-key", "sk-bob")],
    "two x-api-key lines": [("x-api-key", "sk-alice"), ("x-api-key", "sk-bob")],
    "Basic beside x-api-key": [("Authorization", "Basic sk-alice"), ("x-api-key", "sk-alice")],
}


@pytest.mark.parametrize("name", TWO_KEYS)
async def test_a30_two_credentials_are_refused(locked: Bed, name: str) -> None:
    lines = [f"{key}: {value}".encode() for key, value in TWO_KEYS[name]]
    await locked.refuse(post(*lines, b"Content-Length: 2"), AMBIGUOUS)


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer sk-alice")],
        [("authorization", "bearer sk-alice")],
        [("AUTHORIZATION", "BEARER   sk-alice  ")],
        [("Authorization", "sk-alice")],
        [("x-api-key", "sk-alice")],
        [("api-key", "sk-bob")],
        [("Authorization", "Bearer sk-alice"), ("x-api-key", "sk-alice")],
        [("Authorization", "Bearer sk-future")],
    ],
)
async def test_key_is_accepted_wherever_sdks_put_it(locked: Bed, headers: list[tuple[str, str]]) -> None:
    answer, got = await locked.forwarded(CHAT, {"model": "m"}, headers)
    assert answer.status == 200
    assert got.all("authorization") == [b"Bearer sk-upstream"]
    assert got.all("x-api-key") + got.all("api-key") == []


ODD_KEYS: dict[str, bytes] = {
    "unknown": b"Authorization: Bearer sk-nobody",
    "prefix of a key": b"Authorization: Bearer sk-alic",
    "longer than a key": b"Authorization: Bearer sk-alice2",
    "other case": b"Authorization: Bearer SK-ALICE",
    "hash of a key": b"Authorization: Bearer " + hashlib.sha256(b"sk-bob").hexdigest().encode(),
    "hash as configured": b"Authorization: Bearer sha256:" + hashlib.sha256(b"sk-bob").hexdigest().encode(),
    "other scheme": b"Authorization: Basic sk-alice",
    "disabled": b"Authorization: Bearer sk-off",
    "expired": b"Authorization: Bearer sk-past",
    "A31 Latin-1": b"Authorization: Bearer sk-alic\xe9",
    "A31 UTF-8": "Authorization: Bearer ключ".encode(),
    "A31 broken UTF-8": b"Authorization: Bearer \xff\xfe\x80",
    "A31 surrogate": b"Authorization: Bearer \xed\xa0\x80",
    "A31 in x-api-key": b"x-api-key: \xff",
    "upstream's own": b"Authorization: Bearer sk-upstream",
    "8,000 bytes": b"Authorization: Bearer " + b"k" * 8000,
}


@pytest.mark.parametrize("name", ODD_KEYS)
@pytest.mark.parametrize("path", [CHAT, "/v1/files", "/v1/models"])
async def test_a31_a32_every_wrong_key_gets_the_same_answer(locked: Bed, name: str, path: str) -> None:
    seen = locked.seen
    method = b"GET" if path == "/v1/models" else b"POST"
    async with await locked.relay.connect() as client:
        lines = (b"%b %b HTTP/1.1" % (method, path.encode()), b"Host: relay", ODD_KEYS[name], b"Content-Length: 2")
        await client.send(request(*lines, body=b"{}"))
        answer = await client.read_response()
    locked.check(answer, UNKNOWN_KEY)
    assert shape(answer) == shape(await locked.send(CHAT, {}, [("Authorization", "Bearer sk-certainly-unknown")]))
    assert locked.seen == seen
    if path != "/v1/models":  # lists are not logged
        await locked.check_log(answer, UNKNOWN_KEY)


def shape(answer: Response) -> tuple[Any, ...]:
    """All of an answer but its id."""
    return answer.status, answer.body, [(name, value) for name, value in answer.headers if not name.lower().endswith(b"request-id")]


@pytest.mark.parametrize("line", [b"X-Nothing: x", b"Authorization: ", b"Authorization: Bearer", b"x-api-key: ", b"Cookie: key=sk-alice"])
async def test_missing_key_is_told(locked: Bed, line: bytes) -> None:
    answer = await locked.refuse(post(line, b"Content-Length: 2"), NO_KEY)
    assert answer.header("www-authenticate") == b"Bearer"


async def test_a32_guessing_is_slowed_down_for_its_address_and_for_nobody_with_a_key(locked: Bed) -> None:
    guesser = ("X-Forwarded-For", "203.0.113.77")
    statuses = [(await locked.send(CHAT, {}, [guesser, ("Authorization", f"Bearer sk-guess-{number}")])).status for number in range(22)]
    assert statuses == [401] * 20 + [429] * 2
    refused = await locked.send(CHAT, {}, [guesser, ("Authorization", "Bearer sk-guess")])
    locked.check(refused, Refusal(status=429, code="too_many_failures", outcome="unauthorized"))
    assert 1 <= int(refused.header("retry-after") or b"") <= 61
    assert (await locked.line(refused))["outcome"] == "unauthorized"
    assert (await locked.send(CHAT, {"model": "m"}, [guesser, *AUTH])).status == 200
    other = ("X-Forwarded-For", "203.0.113.78")
    assert (await locked.send(CHAT, {}, [other, ("Authorization", "Bearer sk-guess")])).status == 401


@pytest.mark.parametrize(
    "data",
    [
        post(b"Authorization: Bearer sk-CANARY-secret\0", b"Content-Length: 2"),
        post(b"Authorization: Bearer sk-CANARY-secret\x01\x1b[31m", b"Content-Length: 2"),
        post(b"Authorization Bearer sk-CANARY-secret", b"Content-Length: 2"),
        post(b"sk-CANARY-secret\xff: x", b"Content-Length: 2"),
        post(b"X-Key: " + b"sk-CANARY-secret" * 1000, b"Content-Length: 2"),
        request(b"GET /v1/files?key=sk-CANARY-secret\x7f\0 HTTP/1.1", b"Host: a"),
        request(b"sk-CANARY-secret"),
        request(b"GET /v1/files HTTP/sk-CANARY-secret", b"Host: a"),
        post(b"Transfer-Encoding: chunked", body=b"sk-CANARY-secret\r\n"),
        post(b"Transfer-Encoding: sk-CANARY-secret", body=b""),
        post(b"Content-Length: sk-CANARY-secret", body=b""),
        post(b"Host: sk-CANARY-secret", body=b""),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03sk-CANARY-secret\r\n\r\n",
    ],
)
async def test_a33_broken_header_with_a_secret_is_repeated_nowhere(locked: Bed, data: bytes) -> None:
    async with await locked.relay.connect() as client:
        await client.send(data)
        got, _ = await client.read_until_close(within=5)
    assert got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert b"CANARY" not in got
    await locked.still_serves()
    assert "CANARY" not in locked.relay.stderr() + locked.relay.stdout()
