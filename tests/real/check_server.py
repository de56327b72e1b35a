"""Checks the relay in front of a real model server: whole answers, streams, byte equality, and an abort that reaches the server.

Run as `python tests/real/check_server.py URL` with the server's base URL (its /v1 included) and the project's environment;
see tests/real/README.md. Prints one line per check and fails at the first that does not hold.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import openai

from tests.fakes.relay import RelayProcess

MESSAGES: Any = [{"role": "user", "content": "Say something."}]


async def check(url: str) -> None:
    """Run every check against the server at `url`."""
    config = {"upstreams": {"real": {"base_url": url, "api_key": "unused"}}, "routes": {"*": "real/*"}}
    relay = RelayProcess(config, Path(tempfile.mkdtemp()))
    await relay.start()
    try:
        client = openai.AsyncOpenAI(base_url=relay.url, api_key="unused", max_retries=0)
        model = (await client.models.list()).data[0].id
        print("models:", model)
        whole = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, seed=3)
        assert whole.usage is not None
        print("whole answer:", whole.choices[0].finish_reason, whole.usage.completion_tokens, "tokens")
        events = [event async for event in await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, stream=True)]
        print("stream:", len(events), "events,", events[-1].choices[0].finish_reason)
        await _abort(client, model)
        await _same_text(url, relay.url, model)
        await client.close()
        await relay.settled()
        outcomes = [line["outcome"] for line in relay.logs("request")]
        assert outcomes.count("client_gone") == 1 and set(outcomes) == {"complete", "client_gone"}, outcomes
        print("outcomes:", ", ".join(outcomes))
    finally:
        await relay.stop()


async def _abort(client: openai.AsyncOpenAI, model: str) -> None:
    """Leave a long stream; a server that serves one request at a time is free again at once."""
    async with await client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=220, stream=True, logit_bias={"2": -100}
    ) as stream:
        async for _ in stream:
            break
    begun = time.monotonic()
    await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=1)
    print(f"abort: the next answer took {time.monotonic() - begun:.3f} s")


async def _same_text(direct: str, relayed: str, model: str) -> None:
    """Compare a seeded stream through the relay with one from the server itself, but for ids and times."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 30, "stream": True, "seed": 5, "temperature": 0}
    texts = []
    async with aiohttp.ClientSession() as session:
        for base in (direct, relayed):
            async with session.post(base + "/chat/completions", json=body) as answer:
                text = await answer.read()
                texts.append(b"".join(part.split(b'"choices"', 1)[-1] for part in text.split(b"\n\n")))
    assert texts[0] == texts[1]
    print("bytes: equal to the server's own,", len(texts[0]), "of them compared")


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1]))
