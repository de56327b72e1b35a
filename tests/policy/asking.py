"""Client requests as policies see them."""

from relay.config.tree import Key
from relay.exchange import ClientRequest, Headers, JsonBody, Operation


def body(raw: bytes = b"{}", *, store: bool = False, background: bool = False, stream: bool = False) -> JsonBody:
    return JsonBody(
        raw=raw,
        model="m",
        model_span=None,
        insert_at=1,
        is_empty=False,
        stream=stream,
        include_usage=False,
        store=store,
        background=background,
        previous_response_id=None,
    )


def ask(
    *,
    method: str = "POST",
    operation: Operation = Operation.CHAT,
    headers: Headers = (),
    json: JsonBody | None = None,
    opaque: bytes | None = None,
    received_at: float = 1000.0,
    key: Key | None = None,
) -> ClientRequest:
    return ClientRequest(
        id="r",
        method=method,
        path="/v1/chat/completions",
        query=None,
        headers=headers,
        operation=operation,
        received_at=received_at,
        client_ip="127.0.0.1",
        body=json,
        is_stream=json is not None and json.stream,
        opaque_body=opaque,
        key=key,
    )
