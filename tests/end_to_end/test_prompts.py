"""`logging.prompts`: what is asked and answered stands in the log where somebody switched it on, and nowhere else."""

import json

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import CHAT
from tests.fakes import events
from tests.fakes.relay import RelayProcess, config_for
from tests.fakes.scripts import error_answer, in_turn, json_answer, sse
from tests.fakes.upstream import ScriptedUpstream

KEY = "sk-spoken0123456789abcdef"
ASKED = f"Why is the sky blue? My key is {KEY}\x1b[31m."
MOST = 16 * 1024


@pytest.fixture(scope="module")
async def relay(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream) -> RelayProcess:
    shared_upstream.route("stream", sse(events.chat_stream("Light", " scatters.")))
    shared_upstream.route("json", json_answer({"id": "x", "object": "chat.completion", "choices": [], "text": "Rayleigh"}))
    shared_upstream.route("mended", in_turn(error_answer(503), sse(events.chat_stream("Again."))))
    shared_upstream.route("long", sse(events.chat_stream("y" * (2 * MOST))))
    return await shared_relay_with(config_for(shared_upstream, logging={"prompts": True}, routes={"*": ["mine/*"]}))


async def line_of(relay: RelayProcess, model: str, text: str = ASKED, *, stream: bool = True) -> dict[str, object]:
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}
    answer = await relay.post(CHAT, body)
    assert answer.status == 200
    request_id = (answer.header("x-relay-request-id") or b"").decode()
    (line,) = await relay.wait_log("prompt", request_id=request_id)
    assert (line["prompt_bytes"], line["answer_bytes"]) == (len(json.dumps(body)), len(answer.body))
    return {**line, "sent": answer.body.decode()}


async def test_a_stream_is_logged_as_the_client_got_it(relay: RelayProcess) -> None:
    line = await line_of(relay, "stream")
    assert line["answer"] == line["sent"]
    assert "Why is the sky blue?" in str(line["prompt"])


async def test_keys_are_taken_out_and_control_characters_harmless(relay: RelayProcess) -> None:
    await line_of(relay, "json", stream=False)
    assert KEY not in relay.stderr()
    assert "\x1b" not in relay.stderr()
    assert "My key is sk-***" in relay.stderr()


async def test_of_several_attempts_the_answer_that_was_given_is_logged(relay: RelayProcess) -> None:
    line = await line_of(relay, "mended")
    assert "Again." in str(line["answer"]) and "scripted" not in str(line["answer"])


async def test_only_the_beginnings_are_kept(relay: RelayProcess) -> None:
    line = await line_of(relay, "long", "z" * (2 * MOST))
    assert len(str(line["prompt"])) == len(str(line["answer"])) == MOST


async def test_a_warning_at_the_start_says_so(relay: RelayProcess) -> None:
    (warning,) = [line["message"] for line in relay.logs("configuration") if "prompts and answers" in line["message"]]
    assert "logging.prompts" in warning


async def test_without_the_switch_no_word_is_logged(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.route("stream", sse(events.chat_stream("Light", " scatters.")))
    relay = await relay_with(config_for(upstream))
    await relay.post(CHAT, {"model": "stream", "stream": True, "messages": [{"role": "user", "content": "Why blue?"}]})
    await relay.settled()
    assert relay.logs("prompt") == []
    assert "Why blue?" not in relay.stderr() and "scatters" not in relay.stderr()
