"""The table of the demo upstream's paths, and how one request becomes one reply."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from relay.demo.answers import answer_embeddings, answer_moderations, error_reply, json_reply, model_card
from relay.demo.chat import answer_chat, answer_completions
from relay.demo.responses import answer_responses
from relay.demo.words import MODELS, Reply, Wishes, last_prompt, read_wishes

_Endpoint = Callable[[Mapping[str, Any], Wishes, int, str], Reply]
_ENDPOINTS: Final[Mapping[str, _Endpoint]] = {
    "/v1/chat/completions": answer_chat,
    "/v1/completions": answer_completions,
    "/v1/responses": answer_responses,
    "/v1/embeddings": answer_embeddings,
    "/v1/moderations": answer_moderations,
}


def reply(method: str, path: str, body: bytes, *, now: int, id: str) -> Reply:
    """Answer one request. `path` is without the query, `now` Unix seconds, `id` a fresh identifier; never raises on any input."""
    if method == "GET" and path == "/v1/models":
        return json_reply({"object": "list", "data": [model_card(name, now) for name in MODELS]})
    if method == "GET" and path.startswith("/v1/models/"):
        name = path.removeprefix("/v1/models/")
        return json_reply(model_card(name, now)) if name in MODELS else error_reply(404, "model_not_found")
    endpoint = _ENDPOINTS.get(path)
    if endpoint is None:
        return error_reply(404, "unknown_url")
    if method != "POST":
        return error_reply(405, "method_not_allowed")
    try:
        return _generate(endpoint, msgspec.json.decode(body), now, id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # the last: nested deeper than the walk over the text goes
        return error_reply(400, "invalid_json")


def _generate(endpoint: _Endpoint, request: object, now: int, id: str) -> Reply:
    if not isinstance(request, dict):
        return error_reply(400, "invalid_body")
    wishes = read_wishes(last_prompt(request))
    if wishes.fail is not None:
        return error_reply(wishes.fail, "demo_failure")
    return endpoint(request, wishes, now, id)
