"""Requests that want more than they may (A25, A29-A33, A42-A45): other hosts, other people's keys, other paths, lines in the log."""

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, Refusal, post, request
from tests.fakes import scripts
from tests.fakes.client import Response
from tests.fakes.upstream import ScriptedUpstream

PREFIX = "/deep/prefix"
AMBIGUOUS = Refusal(status=400, code="ambiguous_credentials")
UNKNOWN_KEY = Refusal(status=401, code="invalid_api_key", outcome="unauthorized")
NO_KEY = Refusal(status=401, code="missing_key", outcome="unauthorized")
BAD_PATH = Refusal(status=400, code="bad_path")
GARBLED = Refusal(status=400, code="bad_request", outcome=None, closes=True)
ELSEWHERE = Refusal(status=404, code="not_found", outcome=None)
AUTH = (("Authorization", "Bearer sk-alice"),)


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> AsyncIterator[Bed]:
    """A relay without keys, its upstream behind a prefix."""
    upstreams = {"mine": {"base_url": f"{shared_upstream.origin}{PREFIX}", "api_key": "sk-upstream"}}
    upstreams["own"] = {"base_url": shared_upstream.url, "api_key": "passthrough"}
    upstreams["wide"] = {**upstreams["mine"], "forward_headers": ["x-team"]}  # type: ignore[dict-item]
    routes = {"own/*": "own/*", "wide/*": "wide/*", "*": "mine/*"}
    shared_upstream.answers(scripts.json_answer(ANSWER))
    bed = Bed(await shared_relay_with({"upstreams": upstreams, "routes": routes}), shared_upstream)
    yield bed
    await bed.relay.assert_identities()


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
    upstreams = {"mine": {"base_url": shared_upstream.url, "api_key": "sk-upstream"}}
    server = {"trusted_proxies": ["127.0.0.1"]}
    config = {"server": server, "upstreams": upstreams, "routes": {"*": "mine/*"}, "keys": keys}
    bed = Bed(await shared_relay_with(config), shared_upstream, headers=AUTH)
    yield bed
    await bed.relay.assert_identities()


# A25: nothing in a request names a host, a header or a variable.


async def test_a25_routing_fields_are_plain_data(bed: Bed) -> None:
    async with ScriptedUpstream() as evil:
        fields = ("api_base", "base_url", "api_key", "api_host", "user_config", "extra_headers", "custom_llm_provider", "target", "upstream")
        body = {"model": "m", **{name: evil.url for name in fields}}
        body["extra_headers"] = {"Authorization": "Bearer evil", "Host": "evil"}  # type: ignore[assignment]
        body["metadata"] = {"api_base": evil.url, "upstream": "${HOME}", "route": "own"}  # type: ignore[assignment]
        headers = [(f"X-{name.replace('_', '-')}", evil.url) for name in fields]
        headers += [("X-Portkey-Custom-Host", evil.url), ("X-Forwarded-Host", "evil"), ("X-Original-URL", "/evil"), ("X-Rewrite-URL", "/evil")]
        headers += [("X-Relay-Upstream", "own"), ("X-HTTP-Method-Override", "DELETE"), ("X-Target-URL", evil.url)]
        sent = json.dumps(body).encode()
        answer, got = await bed.forwarded(CHAT + f"?api_base={evil.url}&base_url={evil.url}", sent, headers)
        assert (answer.status, got.body, got.method) == (200, sent, b"POST")
        assert got.header("host") == f"127.0.0.1:{bed.upstream.port}".encode()
        assert got.all("authorization") == [b"Bearer sk-upstream"]
        assert not [name for name, _ in got.headers if name.lower().startswith((b"x-", b"api"))]
        assert evil.connection_count == 0


async def test_a25_variables_in_a_request_stay_text(bed: Bed) -> None:
    for model in ("${OPENAI_API_KEY}", "$HOME", "${file:/etc/passwd}", "{{secret}}", "%(key)s", "os.environ/OPENAI_API_KEY"):
        answer, got = await bed.forwarded(CHAT, {"model": model})
        assert (answer.status, got.model) == (200, model)


# A29: which headers pass.

ALLOWED = {
    "Accept": "application/json",
    "Accept-Language": "de",
    "Anthropic-Beta": "b",
    "Anthropic-Version": "2023-06-01",
    "User-Agent": "OpenAI/Python",
    "OpenAI-Beta": "assistants=v2",
    "X-DashScope-SSE": "enable",
    "X-Stainless-Retry-Count": "1",
    "HTTP-Referer": "https://app.example.com",
    "X-Title": "App",
    "Idempotency-Key": "once",
    "X-Request-Id": "id-1",
    "X-Client-Request-Id": "id-2",
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "Tracestate": "a=b",
    "Range": "bytes=0-1",
    "If-None-Match": '"x"',
    "If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT",
}
FORBIDDEN = {
    "Authorization": "Bearer sk-caller",
    "Cookie": "session=caller",
    "OpenAI-Organization": "org-caller",
    "OpenAI-Project": "proj-caller",
    "X-Forwarded-For": "203.0.113.1",
    "X-Forwarded-Proto": "https",
    "X-Real-IP": "203.0.113.1",
    "Forwarded": "for=203.0.113.1",
    "Via": "1.1 proxy",
    "X-Goog-Api-Key": "caller",
    "Proxy-Authorization": "Basic caller",
    "Accept-Encoding": "gzip",
    "Origin": "https://app.example.com",
    "Referer": "https://app.example.com/secret",
    "DNT": "1",
    "X-Team": "caller",
    "X-Relay-Anything": "caller",
    "Max-Forwards": "3",
    "Content-Location": "/x",
    "Content-MD5": "x",
}


async def test_a29_headers_go_up_by_an_allow_list(bed: Bed) -> None:
    sent = [*ALLOWED.items(), *FORBIDDEN.items(), ("X-Title", "App again"), ("x-api-key", "sk-caller"), ("api-key", "sk-caller")]
    _, got = await bed.forwarded(CHAT, {"model": "m"}, sent)
    for name, value in ALLOWED.items():
        assert got.all(name)[0] == value.encode(), name
    assert got.all("x-title") == [b"App", b"App again"]
    names = {name.lower().decode() for name, _ in got.headers}
    assert names - {name.lower() for name in ALLOWED} == {"host", "accept-encoding", "authorization", "content-type", "content-length"}
    assert got.all("authorization") == [b"Bearer sk-upstream"]
    assert got.all("accept-encoding") == [b"identity"]
    assert b"caller" not in got.head


async def test_a29_forward_headers_of_one_upstream_widen_its_list_alone(bed: Bed) -> None:
    _, got = await bed.forwarded(CHAT, {"model": "wide/m"}, [("X-Team", "blue"), ("X-Other", "x"), ("Cookie", "a=b")])
    assert (got.all("x-team"), got.all("x-other"), got.all("cookie")) == ([b"blue"], [], [])


async def test_a29_passthrough_sends_the_callers_own_identity_to_that_upstream_alone(bed: Bed) -> None:
    identity = [("Authorization", "Bearer sk-caller"), ("OpenAI-Organization", "org-caller"), ("OpenAI-Project", "proj-caller")]
    _, got = await bed.forwarded(CHAT, {"model": "own/m"}, [*identity, ("Cookie", "a=b")])
    assert [(name, got.all(name)) for name, _ in identity] == [(name, [value.encode()]) for name, value in identity]
    assert got.all("cookie") == []
    _, got = await bed.forwarded(CHAT, {"model": "m"}, identity)
    assert [got.all(name) for name, _ in identity] == [[b"Bearer sk-upstream"], [], []]


async def test_a29_latin_1_in_a_header_passes_as_it_came(bed: Bed) -> None:
    _, got = await bed.forwarded(CHAT, {"model": "m"}, [("X-Title", "Großartig".encode("latin-1")), ("User-Agent", "ключ".encode())])
    assert (got.header("x-title"), got.header("user-agent")) == ("Großartig".encode("latin-1"), "ключ".encode())


async def test_a29_x_forwarded_for_is_believed_from_trusted_proxies_alone(bed: Bed, locked: Bed) -> None:
    forwarded = [("X-Forwarded-For", "198.51.100.7, 203.0.113.9")]
    answer = await bed.send(CHAT, {"model": "m"}, forwarded)
    assert (await bed.line(answer))["client_ip"] == "127.0.0.1"
    answer = await locked.send(CHAT, {"model": "m"}, [*forwarded, *AUTH])
    assert (await locked.line(answer))["client_ip"] == "203.0.113.9"


# A30 - A33: keys.

TWO_KEYS: dict[str, list[tuple[str, str]]] = {
    "two Authorization lines": [("Authorization", "Bearer sk-alice"), ("Authorization", "Bearer sk-bob")],
    "two equal Authorization lines": [("Authorization", "Bearer sk-alice"), ("Authorization", "Bearer sk-alice")],
    "x-api-key that differs": [("Authorization", "Bearer sk-alice"), ("x-api-key", "sk-bob")],
    "api-key that differs": [("Authorization", "Bearer sk-alice"), ("api-key", "sk-bob")],
    "two x-api-key lines": [("x-api-key", "sk-alice"), ("x-api-key", "sk-bob")],
    "Basic beside x-api-key": [("Authorization", "Basic sk-alice"), ("x-api-key", "sk-alice")],
}


@pytest.mark.parametrize("name", TWO_KEYS)
async def test_a30_two_credentials_are_refused(locked: Bed, bed: Bed, name: str) -> None:
    lines = [f"{key}: {value}".encode() for key, value in TWO_KEYS[name]]
    await locked.refuse(post(*lines, b"Content-Length: 2"), AMBIGUOUS)
    await bed.refuse(post(*lines, b"Content-Length: 2"), AMBIGUOUS)


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
    statuses = [
        (await locked.send(CHAT, {}, [guesser, ("Authorization", f"Bearer sk-guess-{number}")])).status for number in range(22)
    ]
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


# A42, A43: paths.

BAD_PATHS: dict[str, Refusal] = {
    "/v1/../admin": BAD_PATH,
    "/v1/..": BAD_PATH,
    "/v1/.": BAD_PATH,
    "/v1/./files": BAD_PATH,
    "/v1/files/../../admin": BAD_PATH,
    "/v1/%2e%2e/admin": BAD_PATH,
    "/v1/%2E%2E/admin": BAD_PATH,
    "/v1/.%2e/admin": BAD_PATH,
    "/v1/%2e/files": BAD_PATH,
    "/v1/..%2fadmin": BAD_PATH,
    "/v1/%2e%2e%2fadmin": BAD_PATH,
    "/v1/files%2f..%2f..%2fadmin": BAD_PATH,
    "/v1/..\\admin": BAD_PATH,
    "/v1/..%5cadmin": BAD_PATH,
    "/v1/files%5C..%5Cadmin": BAD_PATH,
    "/v1/files\\x": BAD_PATH,
    "/v1/;/../admin": BAD_PATH,
    "/v1/..;/admin": BAD_PATH,
    "/v1/..;a=b/admin": BAD_PATH,
    "/v1/%2e%2e;/admin": BAD_PATH,
    "/v1//files": BAD_PATH,
    "/v1///evil/files": BAD_PATH,
    "/v1/files//x": BAD_PATH,
    "/v1/http://evil/x": BAD_PATH,
    "/v1/%00": BAD_PATH,
    "/v1/files%00.json": BAD_PATH,
    "/v1/files%0d%0aX-Evil:%20x": BAD_PATH,
    "/v1/files%0a": BAD_PATH,
    "/v1/files%7f": BAD_PATH,
    "/v1/files%1b": BAD_PATH,
    "/v1/files%": BAD_PATH,
    "/v1/files%2": BAD_PATH,
    "/v1/files%zz": BAD_PATH,
    "/v1/files%u002e": BAD_PATH,
    "/v1/files|x": BAD_PATH,
    "/v1/files<script>": BAD_PATH,
    '/v1/files"x"': BAD_PATH,
    "/v1/{files}": BAD_PATH,
    "/v1": Refusal(status=404, code="not_found"),
    "//v1/files": ELSEWHERE,
    "//evil/x": ELSEWHERE,
    "/V1/files": ELSEWHERE,
    "/v1files": ELSEWHERE,
    "/v2/files": ELSEWHERE,
    "/%76%31/files": ELSEWHERE,
    "/admin": ELSEWHERE,
    "/debug/pprof": ELSEWHERE,
    "/metrics/../v1/files": ELSEWHERE,
    "/metrics/": ELSEWHERE,
    "/.env": ELSEWHERE,
}


@pytest.mark.parametrize("path", BAD_PATHS)
async def test_a42_path_that_could_be_read_in_two_ways_is_refused(bed: Bed, path: str) -> None:
    answer = await bed.refuse(request(b"GET %b HTTP/1.1" % path.encode(), b"Host: relay"), BAD_PATHS[path])
    assert b"evil" not in answer.raw
    assert b"script" not in answer.raw


@pytest.mark.parametrize("path", [b"/v1/files\xff", "/v1/é".encode(), b"/v1/files#fragment", b"/v1/a b", b"/v1/files\x0b"])
async def test_a42_path_of_odd_bytes_is_refused(bed: Bed, path: bytes) -> None:
    seen = bed.seen
    async with await bed.relay.connect() as client:
        await client.send(request(b"GET %b HTTP/1.1" % path, b"Host: relay"))
        answer = await client.read_response(method="GET")
    assert (answer.status, answer.error_code in ("bad_path", "bad_request")) == (400, True)
    assert bed.seen == seen
    await bed.still_serves()


PASSED_PATHS = [
    "/v1/images/a%2Fb",
    "/v1/images/a%2fb",
    "/v1/images/a%20b",
    "/v1/%252e%252e/x",
    "/v1/%252e%252e%252fx",
    "/v1/%2F%2Fevil/x",
    "/v1/images/%C3%A9",
    "/v1/images/%ff",
    "/v1/images/...",
    "/v1/images/a..b",
    "/v1/images/a;v=1",
    "/v1/@evil.example/x",
    "/v1/evil.example:80/x",
    "/v1/models/org%2Fname:free/x?y=%2F",
    "/v1/images/",
    "/v1/images?",
    "/v1/images?a=1&a=2&a=&b&=c",
    "/v1/images?q=..%2F..%2Fadmin&x=%00&y=%0d%0a",
    "/v1/images?url=http://evil/x?y=z",
    "/v1/images?q=a+b%2Bc",
    "/v1/images?q='\"<>[]{}|\\^`",
]


@pytest.mark.parametrize("target", PASSED_PATHS)
async def test_a42_a43_other_targets_reach_the_configured_prefix_verbatim(bed: Bed, target: str) -> None:
    answer, got = await bed.forwarded(target, None, method="OPTIONS")
    assert answer.status == 200
    assert got.target == (PREFIX + target[len("/v1") :]).encode()
    assert got.all("host") == [f"127.0.0.1:{bed.upstream.port}".encode()]


# A44, A45: what is written with a request's words.


@pytest.mark.parametrize("value", ["plain-id_1", "a b;c", "<script>", "x" * 2000, "ключ", '"quoted"'])
async def test_a44_request_id_of_the_relay_is_its_own_whatever_the_client_says(bed: Bed, value: str) -> None:
    answer, got = await bed.forwarded(CHAT, {"model": "m"}, [("X-Request-Id", value.encode()), ("X-Relay-Request-Id", "mine")])
    ours = answer.header("x-relay-request-id") or b""
    assert len(ours) == 32
    assert set(ours) <= set(b"0123456789abcdef")
    assert answer.header("x-request-id") == ours
    assert got.all("x-relay-request-id") == []
    assert len(await bed.relay.wait_log(request_id=ours.decode())) == 1


HOSTILE_TEXTS = [
    'a\n{"event":"request","outcome":"complete","forged":true}',
    'a\r\n{"event":"forged"}\r\n',
    'a","forged":"true',
    "\x1b[2J\x1b[31mforged",
    "\u2028\u2029\x85forged",
    "\u202eforged",
    "\\u000aforged",
    "x" * 7000,
    "%s%n%(forged)s{forged}",
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
async def test_a45_hostile_text_makes_one_line_of_the_log_and_no_more(bed: Bed, text: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in text.encode()) if len(text) < 1000 else text
    agent = text.encode("ascii", "ignore").translate(None, bytes(range(32)))[:1000]
    answer, got = await bed.forwarded(f"/v1/images?model={quoted}", None, [("User-Agent", agent)], method="GET")
    assert (answer.status, got.target) == (200, f"{PREFIX}/images?model={quoted}".encode())
    line = await bed.line(answer)
    assert len(line["model"]) <= 6 * 512
    assert "forged" not in line
    raw = [entry for entry in bed.relay.stderr().split("\n") if (answer.header("x-relay-request-id") or b"").decode() in entry]
    assert len(raw) == 1
    assert raw[0].isprintable()
    assert not bed.relay.logs("forged")
    for other in bed.relay.stderr().split("\n"):
        if other.startswith("{"):
            json.loads(other)


async def test_a45_hostile_names_reach_neither_labels_nor_lines_of_the_metrics(bed: Bed) -> None:
    for text in ("a%0a%23%20HELP%20forged", "%22%7D%201%0aforged%201"):
        await bed.send(f"/v1/images?model={text}", None, method="GET")
    await bed.send("/v1/forged-path", None, method="GET")
    await bed.send("/v1/files", None, method="PROPFIND")
    page = (await bed.relay.get("/metrics")).body
    assert b"forged" not in page
    assert b"PROPFIND" not in page
