"""How to answer a client of the OpenAI API: which path means which operation, and what a path may hold.

Routing and forwarding use the same raw path. Percent-encoded bytes pass as they came, but nothing that an upstream
could read as another path: no encoded NUL, backslash or control, no segment that decodes to `.` or `..` (A42).
"""

import re
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

from relay.errors import ClientError
from relay.exchange import Operation

_PARSED: Final = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETIONS,
    "/v1/embeddings": Operation.EMBEDDINGS,
    "/v1/responses": Operation.RESPONSES,
    "/v1/moderations": Operation.MODERATIONS,
}
_ACCEPTED: Final = re.compile(r"[!$&'()*+,\-./0-9:;=@A-Z_a-z~%]+")
"""RFC 3986 `pchar` and the slash: no backslash, space, control or non-ASCII character."""
_ESCAPES: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BAD_BYTES: Final = re.compile(rb"[\x00-\x1f\x7f\\]")
_COLLECTIONS: Final = frozenset(
    {
        "assistants",
        "batches",
        "containers",
        "conversations",
        "evals",
        "files",
        "responses",
        "threads",
        "uploads",
        "vector_stores",
        "videos",
    }
)
"""First segments whose second segment is the id of an object that lives at one upstream."""
_ACTIONS: Final = frozenset({("responses", "compact"), ("responses", "input_tokens"), ("threads", "runs")})
"""Those whose second segment is no id."""


def operation_of(method: str, path: str) -> Operation:
    """Return what is asked for.

    Another spelling of a path whose body is read is no way around what is checked and counted there.
    """
    operation = _PARSED.get(path) or _PARSED.get("/" + "/".join(_segments(path)).lower())
    if operation is not None:
        # GET lists stored objects on these two; OPTIONS and HEAD are the upstream's business.
        return operation if method == "POST" else Operation.OTHER
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return Operation.MODELS if method in ("GET", "HEAD") else Operation.OTHER
    if path == "/v1/realtime" and method == "GET":
        return Operation.REALTIME
    return Operation.OTHER


def check_path(path: str) -> None:
    """Refuse paths that could be read in two ways. Raises ClientError: bad_path, not_found."""
    if path in _PARSED:
        return
    if not path.startswith("/v1/"):
        raise ClientError("not_found")
    if _ACCEPTED.fullmatch(path) is None or _ESCAPES.search(path) is not None:
        raise ClientError("bad_path")
    for segment in path.split("/")[1:]:
        decoded = segment.encode("ascii") if "%" not in segment else unquote_to_bytes(segment)
        # An encoded slash makes further segments for whoever decodes it; a `;` may begin path parameters.
        if _BAD_BYTES.search(decoded) or any(part.split(b";", 1)[0] in (b".", b"..") for part in decoded.split(b"/")):
            raise ClientError("bad_path")
    if "//" in path:
        raise ClientError("bad_path")


def object_id(path: str) -> str | None:
    """Return the id in `/v1/<collection>/<id>...`, or None when the path names no stored object.

    Read as an upstream may read it, escapes decoded and path parameters dropped: another spelling of an id is no way
    around its owner.
    """
    if path in _PARSED:
        return None
    parts = _segments(path)
    match [*(part.lower() for part in parts[1:3]), *parts[3:4]]:
        case ["chat", "completions", name] | ["fine_tuning", "jobs", name]:
            return name
        case [collection, action, *_] if collection in _COLLECTIONS and (collection, action) not in _ACTIONS:
            return parts[2]
        case _:
            return None


def makes_object(path: str) -> bool:
    """Tell whether a POST to `path` answers with the id of a new object that lives at one upstream."""
    match [part.lower() for part in _segments(path)]:
        case [_, collection]:
            return collection in _COLLECTIONS
        case [_, "fine_tuning", "jobs"]:
            return True
        case _:
            return False


def _segments(path: str) -> list[str]:
    """Return the segments that the laxest server sees: escapes decoded, path parameters and empty segments dropped."""
    names = (part.split(";", 1)[0] for part in unquote(path).split("/"))
    return [name for name in names if name]
