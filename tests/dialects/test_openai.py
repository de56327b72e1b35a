"""Paths: what they mean, what they may hold, whose object they name."""

import string
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.dialects.openai import check_path, makes_object, object_id, operation_of
from relay.errors import ClientError
from relay.exchange import Operation

REFUSED = [
    "/v1/../admin",
    "/v1/./models",
    "/v1/files/..",
    "/v1/files/.",
    "/v1/%2e%2e/admin",
    "/v1/%2E./admin",
    "/v1/.%2e/admin",
    "/v1/%2e/admin",
    "/v1/..%2fadmin",
    "/v1/a%2F..%2Fadmin",
    "/v1/a%2f%2e%2e",
    "/v1/..;/admin",
    "/v1/;/..",
    "/v1/..;x=1/admin",
    "/v1/%2e%2e;a",
    "/v1/..%3B/admin",
    "/v1/..\\admin",
    "/v1/..%5cadmin",
    "/v1/%5C",
    "/v1/a%5cb",
    "/v1//admin",
    "/v1/a//b",
    "/v1/%00",
    "/v1/a%00b",
    "/v1/%0d%0aX: 1",
    "/v1/%0D%0A",
    "/v1/%1f",
    "/v1/%7f",
    "/v1/a b",
    "/v1/a\tb",
    "/v1/a\r\nb",
    "/v1/a\x00b",
    "/v1/a\x7fb",
    "/v1/é",
    "/v1/%",
    "/v1/%4",
    "/v1/%zz",
    "/v1/%u0041",
    "/v1/a#b",
    "/v1/a<b>",
    '/v1/a"b',
    "/v1/[x]",
    "/v1/{x}",
    "/v1/a|b",
    "/v1/a^b",
    "/v1/a`b",
    "/v1/files/\ud800",
]
ACCEPTED = [
    "/v1/chat/completions",
    "/v1/",
    "/v1/files/file-abc/content",
    "/v1/models/openai%2Fgpt-4o",
    "/v1/files/a%2Fb",
    "/v1/files/%252e%252e",
    "/v1/files/%25",
    "/v1/files/...",
    "/v1/files/..a",
    "/v1/files/a..b",
    "/v1/files/.hidden",
    "/v1/files/%2ehidden",
    "/v1/files/a;b=c",
    "/v1/files/%E4%B8%AD",
    "/v1/files/%ff",
    "/v1/files/a%20b",
    "/v1/models/ft:gpt-4o:org::id",
    "/v1/a@b:c!$&'()*+,;=-._~",
]


@pytest.mark.parametrize("path", REFUSED, ids=repr)
def test_a_path_that_could_be_read_in_two_ways_is_refused(path: str) -> None:
    """A42."""
    with pytest.raises(ClientError) as caught:
        check_path(path)
    assert caught.value.code == "bad_path"


@pytest.mark.parametrize("path", ACCEPTED)
def test_any_other_path_passes(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "path", ["", "/", "/v1", "/v2/files", "/V1/files", "/v1beta/models", "//v1/files", "/../v1/files", "http://evil/v1/x", "*"]
)
def test_a_path_elsewhere_is_not_found(path: str) -> None:
    with pytest.raises(ClientError) as caught:
        check_path(path)
    assert caught.value.code == "not_found"


_PIECES = st.sampled_from(
    [
        "a",
        "v1",
        "..",
        ".",
        "/",
        "//",
        "\\",
        ";",
        "%2e",
        "%2E",
        "%2f",
        "%2F",
        "%5c",
        "%5C",
        "%00",
        "%0a",
        "%25",
        "%252e",
        "%3b",
        "%",
        "é",
        "\x00",
        "#",
    ]
)
_PATHS = st.one_of(st.lists(_PIECES, max_size=12).map("".join), st.text(string.printable, max_size=30), st.text(max_size=30))


@given(_PATHS)
@example("%2e%2e%2f")
@example(".%2e")
def test_what_passes_never_decodes_to_a_way_up(tail: str) -> None:
    path = f"/v1/{tail}"
    try:
        check_path(path)
    except ClientError as error:
        assert error.code == "bad_path"
        return
    decoded = unquote_to_bytes(path)
    assert path.isascii()
    assert decoded.startswith(b"/v1/")
    assert not any(byte < 0x20 or byte in b"\x7f\\" for byte in decoded)
    segments = decoded.split(b"/")
    assert not {b".", b".."} & set(segments)
    assert not {b".", b".."} & {segment.split(b";", 1)[0] for segment in segments}
    assert "//" not in path


@given(st.text(string.ascii_letters + string.digits + "-._~", min_size=1).filter(lambda text: text not in (".", "..")))
def test_an_ordinary_name_passes_plain_and_escaped(name: str) -> None:
    check_path(f"/v1/files/{name}")
    check_path("/v1/files/" + "".join(f"%{ord(character):02x}" for character in name))


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("POST", "/v1/chat/completions", Operation.CHAT),
        ("POST", "/v1/completions", Operation.COMPLETIONS),
        ("POST", "/v1/embeddings", Operation.EMBEDDINGS),
        ("POST", "/v1/responses", Operation.RESPONSES),
        ("POST", "/v1/moderations", Operation.MODERATIONS),
        ("GET", "/v1/chat/completions", Operation.OTHER),
        ("OPTIONS", "/v1/responses", Operation.OTHER),
        ("POST", "/v1/chat/completions/", Operation.CHAT),
        ("POST", "/v1/Chat/Completions", Operation.CHAT),
        ("POST", "/v1/chat/%63ompletions", Operation.CHAT),
        ("POST", "/v1/chat%2Fcompletions", Operation.CHAT),
        ("POST", "/v1/chat/completions;a=b", Operation.CHAT),
        ("POST", "/v1/%2Fembeddings", Operation.EMBEDDINGS),
        ("POST", "/v1/chat/completions/x", Operation.OTHER),
        ("GET", "/v1/chat/%63ompletions", Operation.OTHER),
        ("GET", "/v1/models", Operation.MODELS),
        ("GET", "/v1/models/a/b", Operation.MODELS),
        ("GET", "/v1/modelsx", Operation.OTHER),
        ("DELETE", "/v1/models/ft:x", Operation.OTHER),
        ("GET", "/v1/realtime", Operation.REALTIME),
        ("POST", "/v1/realtime", Operation.OTHER),
        ("POST", "/v1/realtime/sessions", Operation.OTHER),
        ("POST", "/v1/images/generations", Operation.OTHER),
        ("GET", "/", Operation.OTHER),
    ],
)
def test_method_and_path_say_what_is_asked_for(method: str, path: str, operation: Operation) -> None:
    assert operation_of(method, path) is operation


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/responses/resp_1", "resp_1"),
        ("/v1/responses/resp_1/cancel", "resp_1"),
        ("/v1/responses/resp_1/input_items", "resp_1"),
        ("/v1/files/file-1/content", "file-1"),
        ("/v1/batches/batch_1", "batch_1"),
        ("/v1/threads/thread_1/runs/run_1", "thread_1"),
        ("/v1/chat/completions/chatcmpl-1", "chatcmpl-1"),
        ("/v1/chat/completions/chatcmpl-1/messages", "chatcmpl-1"),
        ("/v1/fine_tuning/jobs/ftjob-1/events", "ftjob-1"),
        ("/v1/vector_stores/vs_1/files/file-1", "vs_1"),
        ("/v1/chat/completions", None),
        ("/v1/responses", None),
        ("/v1/responses/", None),
        ("/v1/responses/input_tokens", None),
        ("/v1/responses/compact", None),
        ("/v1/threads/runs", None),
        ("/v1/fine_tuning/jobs", None),
        ("/v1/images/generations", None),
        ("/v1/audio/speech", None),
        ("/v1/", None),
    ],
)
def test_a_stored_object_is_known_by_its_path(path: str, name: str | None) -> None:
    assert object_id(path) == name


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/resp%5F1",
        "/v1/responses/%72esp_1",
        "/v1/%72esponses/resp_1",
        "/v1/Responses/resp_1",
        "/v1/responses%2Fresp_1",
        "/v1/responses;a=b/resp_1",
        "/v1/responses/resp_1;a=b",
        "/v1/responses/resp_1/",
        "/v1/responses/%2Fresp_1",
        "/v1/%2fresponses/resp_1",
        "/v1/;a/responses/resp_1",
    ],
)
def test_another_spelling_of_an_id_is_the_same_id(path: str) -> None:
    check_path(path)
    assert object_id(path) == "resp_1"


@given(st.text(string.ascii_letters + string.digits + "_-", min_size=1), st.randoms())
def test_no_escaping_of_a_path_hides_its_id(name: str, random: object) -> None:
    path = f"/v1/files/x{name}"
    escaped = (
        "/v1/"
        + "".join(
            f"%{ord(character):02X}" if random.random() < 0.5 and character != "/" else character  # type: ignore[attr-defined]
            for character in path[4:]
        )
    )
    assert object_id(escaped) == object_id(path) == f"x{name}"


@pytest.mark.parametrize(
    ("path", "makes"),
    [
        ("/v1/files", True),
        ("/v1/responses", True),
        ("/v1/batches", True),
        ("/v1/fine_tuning/jobs", True),
        ("/v1/%66iles", True),
        ("/v1/Files/", True),
        ("/v1/fine_tuning%2Fjobs", True),
        ("/v1/files/file-1", False),
        ("/v1/images/generations", False),
        ("/v1/chat/completions", False),
    ],
)
def test_a_post_to_a_collection_makes_an_object(path: str, makes: bool) -> None:
    assert makes_object(path) is makes


def test_a_quoted_name_survives_the_way_of_the_sdks() -> None:
    check_path("/v1/models/" + quote("vendor/model:1 x", safe=""))
