"""What goes onto an upstream's connection, byte for byte."""

import pytest

from relay.config.tree import Secret, Upstream
from relay.exchange import ClientRequest, Headers, Operation, UpstreamRequest
from relay.providers.openai import OpenAIProvider
from relay.wire.body import parse_body

RAW = b'{ "messages":[], "model" : "fast" ,\n"x":1.50}'


def provider(base_url: str = "http://127.0.0.1:9000/v1", **settings: object) -> OpenAIProvider:
    return OpenAIProvider(Upstream(name="mine", base_url=base_url, **settings))  # type: ignore[arg-type]


def request(
    method: str = "POST",
    path: str = "/v1/chat/completions",
    *,
    query: str | None = None,
    headers: Headers = (),
    raw: bytes | None = None,
    opaque: bytes | None = None,
    operation: Operation = Operation.OTHER,
) -> ClientRequest:
    return ClientRequest(
        id="1",
        method=method,
        path=path,
        query=query,
        headers=headers,
        operation=operation,
        received_at=0.0,
        client_ip="",
        body=None if raw is None else parse_body(raw),
        opaque_body=opaque,
    )


def encode(
    request: ClientRequest,
    model: str | None = None,
    credential: bytes | None = b"sk-up",
    *,
    on: OpenAIProvider | None = None,
    upload_length: int | None = None,
    is_upload: bool = False,
) -> UpstreamRequest:
    made = (on or provider()).encode(request, model, credential, upload_length=upload_length, is_upload=is_upload)
    assert made.head.endswith(b"\r\n\r\n")
    assert made.head.count(b"\r\n\r\n") == 1
    return made


def lines(made: UpstreamRequest) -> list[bytes]:
    return made.head[:-4].split(b"\r\n")


def names(made: UpstreamRequest) -> list[bytes]:
    return [line.partition(b":")[0].lower() for line in lines(made)[1:]]


def test_a_whole_request_on_the_wire() -> None:
    headers = (
        (b"Host", b"relay"),
        (b"Content-Type", b"application/json"),
        (b"Authorization", b"Bearer sk-client"),
        (b"X-Title", b"caf\xe9"),
    )
    made = encode(request(headers=headers, raw=RAW), "fast")
    assert lines(made) == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: 127.0.0.1:9000",
        b"Accept-Encoding: identity",
        b"Content-Type: application/json",
        b"X-Title: caf\xe9",
        b"Authorization: Bearer sk-up",
        b"Content-Length: %d" % len(RAW),
    ]
    assert made.body == RAW
    assert not made.is_upload


def test_the_smallest_request_is_no_more_than_a_head() -> None:
    made = encode(request("GET", "/v1/models"), credential=None)
    assert made.head == b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nAccept-Encoding: identity\r\n\r\n"
    assert made.body == b""


@pytest.mark.parametrize("model", [None, "fast"])
def test_the_body_is_the_clients_own_when_the_model_is_the_same(model: str | None) -> None:
    made = encode(request(raw=RAW), model)
    assert made.body is not None and made.body == RAW


def test_only_the_model_is_replaced_when_it_differs() -> None:
    made = encode(request(raw=RAW), 'some "model"')
    assert made.body == RAW.replace(b'"fast"', b'"some \\"model\\""')
    assert b"Content-Length: %d" % len(made.body) in lines(made)


def test_a_body_without_a_model_gets_the_mapped_one() -> None:
    assert encode(request(raw=b'{"input":"x"}'), "m").body == b'{"model":"m","input":"x"}'


@pytest.mark.parametrize(
    ("base_url", "path", "target", "host"),
    [
        ("https://api.openai.com/v1", "/v1/files", b"/v1/files", b"api.openai.com"),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai",
            "/v1/files",
            b"/v1beta/openai/files",
            b"generativelanguage.googleapis.com",
        ),
        ("http://127.0.0.1:11434/v1/", "/v1/a%2Fb%20", b"/v1/a%2Fb%20", b"127.0.0.1:11434"),
        ("http://[::1]:8000", "/v1/files", b"/files", b"[::1]:8000"),
        ("https://exämple.com/v1", "/v1/x", b"/v1/x", b"xn--exmple-cua.com"),
    ],
)
def test_the_target_is_the_configured_prefix_and_the_clients_path(base_url: str, path: str, target: bytes, host: bytes) -> None:
    """A43."""
    made = encode(request("GET", path), on=provider(base_url))
    assert lines(made)[0] == b"GET " + target + b" HTTP/1.1"
    assert lines(made)[1] == b"Host: " + host


@pytest.mark.parametrize("query", ["", "a=1&a=2&b=%2F%20+&c", "x=http://evil/&y=%0d%0a"])
def test_the_query_is_passed_on_untouched(query: str) -> None:
    made = encode(request("GET", "/v1/files", query=query))
    assert lines(made)[0] == b"GET /v1/files?" + query.encode() + b" HTTP/1.1"


def test_our_credential_takes_the_place_of_the_callers() -> None:
    """A29."""
    headers = (
        (b"Authorization", b"Bearer sk-client"),
        (b"api-key", b"sk-client"),
        (b"X-API-Key", b"sk-client"),
        (b"Cookie", b"sk-client"),
        (b"OpenAI-Organization", b"sk-client"),
        (b"OpenAI-Project", b"sk-client"),
    )
    made = encode(request(headers=headers, raw=RAW))
    assert b"sk-client" not in made.head
    assert made.head.count(b"sk-up") == 1
    assert b"authorization" not in names(encode(request(headers=headers, raw=RAW), credential=None))


def test_passthrough_sends_the_callers_credential_and_organization_and_never_ours() -> None:
    headers = ((b"Authorization", b"Bearer sk-client"), (b"OpenAI-Organization", b"org"), (b"Cookie", b"c"))
    made = encode(request(headers=headers, raw=RAW), on=provider(is_passthrough=True, api_key=Secret("sk-never")))
    assert {b"Authorization: Bearer sk-client", b"OpenAI-Organization: org"} <= set(lines(made))
    assert b"cookie" not in names(made)
    assert b"sk-up" not in made.head


def test_configured_headers_pass() -> None:
    made = encode(request("GET", headers=((b"X-Team", b"red"),)), on=provider(forward_headers=frozenset({b"x-team"})))
    assert b"X-Team: red" in lines(made)


@pytest.mark.parametrize("name", [b"Content-Length", b"Transfer-Encoding", b"Host", b"Connection", b"Expect", b"TE", b"Accept-Encoding"])
def test_the_clients_framing_never_passes(name: bytes) -> None:
    """A12."""
    made = encode(request(headers=((name, b"smuggled"),), raw=RAW))
    assert b"smuggled" not in made.head


def test_a_json_body_without_a_type_is_labelled() -> None:
    assert b"Content-Type: application/json" in lines(encode(request(raw=RAW)))
    labelled = encode(request(headers=((b"content-type", b"text/plain"),), raw=RAW))
    assert names(labelled).count(b"content-type") == 1


def test_a_body_that_is_not_ours_to_read_goes_on_with_its_encoding() -> None:
    headers = ((b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip"))
    made = encode(request(path="/v1/images/generations", headers=headers, opaque=b"\x1f\x8b..."), "ignored")
    assert made.body == b"\x1f\x8b..."
    assert {b"Content-Length: 5", b"Content-Encoding: gzip"} <= set(lines(made))


def test_an_empty_body_that_was_read_keeps_its_length() -> None:
    assert b"Content-Length: 0" in lines(encode(request(path="/v1/files", opaque=b"")))


@pytest.mark.parametrize(
    ("method", "has_length"),
    [("POST", True), ("PUT", True), ("PATCH", True), ("GET", False), ("DELETE", False), ("HEAD", False), ("OPTIONS", False)],
)
def test_a_request_without_a_body_says_so_where_one_is_usual(method: str, has_length: bool) -> None:
    made = encode(request(method, "/v1/responses/resp_1/cancel"))
    assert (b"Content-Length: 0" in lines(made)) == has_length
    assert b"transfer-encoding" not in names(made)
    assert made.method == method


@pytest.mark.parametrize(
    ("length", "line"), [(10, b"Content-Length: 10"), (0, b"Content-Length: 0"), (None, b"Transfer-Encoding: chunked")]
)
def test_an_upload_announces_its_length_or_comes_in_chunks(length: int | None, line: bytes) -> None:
    headers = ((b"Content-Type", b"multipart/form-data; boundary=x"), (b"Content-Encoding", b"br"), (b"Content-Length", b"99"))
    made = encode(request(path="/v1/files", headers=headers), upload_length=length, is_upload=True)
    assert {line, b"Content-Encoding: br", b"Content-Type: multipart/form-data; boundary=x"} <= set(lines(made))
    assert len({b"content-length", b"transfer-encoding"} & set(names(made))) == 1
    assert (made.body, made.is_upload) == (b"", True)


def test_a_websocket_is_asked_for_without_a_browsers_key() -> None:
    headers = (
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Key", b"abc=="),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key.sk-client, openai-beta.realtime-v1"),
        (b"OpenAI-Beta", b"realtime=v1"),
    )
    made = encode(request("GET", "/v1/realtime", query="model=m", headers=headers, operation=Operation.REALTIME))
    assert {b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: abc==", b"OpenAI-Beta: realtime=v1"} <= set(lines(made))
    assert b"Sec-WebSocket-Protocol: realtime, openai-beta.realtime-v1" in lines(made)
    assert b"sk-client" not in made.head
    assert names(made).count(b"connection") == 1


def test_no_other_request_asks_for_an_upgrade() -> None:
    headers = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Sec-WebSocket-Key", b"abc=="))
    made = encode(request("GET", "/v1/realtime", headers=headers))
    assert not {b"connection", b"upgrade", b"sec-websocket-key"} & set(names(made))
