"""Requests that want more than they may (A25, A29, A42-A45): other hosts, other identities, other paths, lines in the log."""

import json
from collections.abc import AsyncIterator

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, Refusal, post, request
from tests.fakes import scripts
from tests.fakes.upstream import ScriptedUpstream

PREFIX = "/deep/prefix"
BAD_PATH = Refusal(status=400, code="bad_path")
GARBLED = Refusal(status=400, code="bad_request", outcome=None, closes=True)
ELSEWHERE = Refusal(status=404, code="not_found", outcome=None)


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
    await bed.settle_accounts()


# A25: nothing in a request names a host, a header or a variable.


async def test_a25_routing_fields_are_plain_data(bed: Bed) -> None:
    async with ScriptedUpstream() as evil:
        fields = (
            "api_base",
            "base_url",
            "api_key",
            "api_host",
            "user_config",
            "extra_headers",
            "custom_llm_provider",
            "target",
            "upstream",
        )
        body = {"model": "m", **dict.fromkeys(fields, evil.url)}
        body["extra_headers"] = {"Authorization": "Bearer evil", "Host": "evil"}  # type: ignore[assignment]
        body["metadata"] = {"api_base": evil.url, "upstream": "${HOME}", "route": "own"}  # type: ignore[assignment]
        headers = [(f"X-{name.replace('_', '-')}", evil.url) for name in fields]
        headers += [
            ("X-Portkey-Custom-Host", evil.url),
            ("X-Forwarded-Host", "evil"),
            ("X-Original-URL", "/evil"),
            ("X-Rewrite-URL", "/evil"),
        ]
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
        if name == "Traceparent":
            # The caller's trace goes on, with the attempt as its parent.
            assert got.all(name)[0].split(b"-")[:2] == value.encode().split(b"-")[:2]
        else:
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


async def test_a29_x_forwarded_for_is_believed_from_nobody_by_default(bed: Bed) -> None:
    answer = await bed.send(CHAT, {"model": "m"}, [("X-Forwarded-For", "198.51.100.7")])
    assert (await bed.line(answer))["client_ip"] == "127.0.0.1"


@pytest.mark.parametrize("other", [("Authorization", "Bearer sk-bob"), ("x-api-key", "sk-bob"), ("api-key", "sk-bob")])
async def test_a30_two_credentials_are_refused_also_where_none_is_asked_for(bed: Bed, other: tuple[str, str]) -> None:
    lines = (b"Authorization: Bearer sk-alice", f"{other[0]}: {other[1]}".encode(), b"Content-Length: 2")
    await bed.refuse(post(*lines), Refusal(status=400, code="ambiguous_credentials"))


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
    raw = [entry for entry in bed.whole_lines if (answer.header("x-relay-request-id") or b"").decode() in entry]
    assert len(raw) == 1
    assert raw[0].isprintable()
    assert not bed.relay.logs("forged")
    for other in bed.whole_lines:
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
