"""How to speak to an OpenAI-compatible upstream: where its paths are, whose credential goes along, what is rewritten.

OpenAI-compatible servers (DashScope, DeepSeek, Ollama's /v1, vLLM, ...) are configuration of this one provider.
The request target is built from the configured prefix and the client's own bytes; nothing else of the request can
choose a host (A25, A42, A43).
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from relay.config.tree import Upstream
from relay.exchange import ClientRequest, Operation, UpstreamRequest, header
from relay.wire.edits import Bound, edited
from relay.wire.headers import headers_up, identity_up
from relay.wire.tracing import trace_lines

API_PREFIX = "/v1"
_BOUNDS: Final[Mapping[Operation, tuple[str, ...]]] = {
    Operation.CHAT: ("max_completion_tokens", "max_tokens"),
    Operation.COMPLETIONS: ("max_tokens",),
    Operation.RESPONSES: ("max_output_tokens",),
}
"""What a request says the most tokens of its answer by; the first is what is added to one that says nothing."""
_NEWEST_NAMES: Final = frozenset({"openai", "azure"})
"""Whose reasoning models refuse `max_tokens`; most others know nothing else."""


class OpenAIProvider:
    """Encodes requests for one upstream."""

    __slots__ = ("_bounds", "_fixed", "_prefix", "upstream")

    def __init__(self, upstream: Upstream) -> None:
        parts = urlsplit(upstream.base_url)
        self.upstream = upstream
        self._prefix = parts.path.rstrip("/")
        self._bounds = _BOUNDS if upstream.vendor in _NEWEST_NAMES else {**_BOUNDS, Operation.CHAT: _BOUNDS[Operation.CHAT][::-1]}
        self._fixed = b"Host: %b\r\nAccept-Encoding: identity" % parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii")

    def encode(
        self,
        request: ClientRequest,
        model: str | None,
        credential: bytes | None,
        *,
        upload_length: int | None,
        is_upload: bool,
        span: str | None = None,
        asks_usage: bool = False,
        answer_bound: int | None = None,
    ) -> UpstreamRequest:
        """Encode `request` for this upstream, with `model` in place of the client's name when it differs.

        `credential` is the upstream's key, None for none. An upload's body is not at hand: `upload_length` is its
        length, None when only its end will tell. `span` is this call's place in the request's trace.
        `asks_usage` has a stream tell its usage where the client did not ask and the upstream can;
        `answer_bound` is the most tokens that an answer may have.
        """
        body = request.opaque_body or b""
        if request.body is not None:
            asks_usage = asks_usage and not self.upstream.no_stream_options
            bound = None if answer_bound is None else Bound(answer_bound, self._bounds.get(request.operation, ()))
            body = edited(request.body, model=model, asks_usage=asks_usage, bound=bound)
        lines = [self._fixed, *headers_up(request.headers, self.upstream.forward_headers)]
        if self.upstream.is_passthrough:
            lines += identity_up(request.headers)
        elif credential is not None:
            lines.append(b"Authorization: Bearer " + credential)
        if request.trace is not None and span is not None:
            lines += trace_lines(request.trace, span)
        if request.operation is Operation.REALTIME:
            lines += _upgrade(request)
        lines += self._framing(request, body, upload_length, is_upload=is_upload)
        path = self._prefix + request.path[len(API_PREFIX) :]
        target = path if request.query is None else f"{path}?{request.query}"
        head = b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (request.method.encode("ascii"), target.encode("latin-1"), b"\r\n".join(lines))
        return UpstreamRequest(
            upstream=self.upstream,
            method=request.method,
            head=head,
            body=body,
            span=span,
            is_upload=is_upload,
        )

    @staticmethod
    def _framing(request: ClientRequest, body: bytes, upload_length: int | None, *, is_upload: bool) -> list[bytes]:
        if request.body is not None:
            lines = [b"Content-Length: %d" % len(body)]
            if header(request.headers, b"content-type") is None:
                lines.append(b"Content-Type: application/json")
            return lines
        if request.opaque_body is not None:
            return [b"Content-Length: %d" % len(body), *_encoding(request)]
        if not is_upload:
            # RFC 9110 8.6: a method that usually carries a body says so when it carries none.
            return [b"Content-Length: 0"] if request.method in ("POST", "PUT", "PATCH") else []
        return [b"Transfer-Encoding: chunked" if upload_length is None else b"Content-Length: %d" % upload_length, *_encoding(request)]


def _encoding(request: ClientRequest) -> list[bytes]:
    encoding = header(request.headers, b"content-encoding")
    return [] if encoding is None else [b"Content-Encoding: " + encoding]


def _upgrade(request: ClientRequest) -> list[bytes]:
    """Return the lines that ask an upstream for a WebSocket, less a browser's key among the subprotocols."""
    lines = [b"Connection: Upgrade", b"Upgrade: websocket"]
    for name, value in request.headers:
        match name.lower():
            case b"sec-websocket-protocol":
                kept = [part for part in value.split(b",") if not part.strip().startswith(b"openai-insecure-api-key")]
                if kept:
                    lines.append(name + b": " + b",".join(kept))
            case lower if lower.startswith(b"sec-websocket-"):
                lines.append(name + b": " + value)
    return lines
