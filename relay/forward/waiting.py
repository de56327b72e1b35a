"""Two waits beside that for an answer: until an upload is sent, and until it is known what an answer without a reader used."""

import asyncio
from time import monotonic
from typing import Any, Final

from relay.config.tree import OnDisconnect
from relay.errors import RelayError
from relay.exchange import StreamMeter
from relay.forward.ports import Call, Upload

LOOK_SECONDS: Final = 0.1
"""How often the tokens of an answer without a reader are looked at: a bound is overrun by a few of them."""

Done = asyncio.Future[RelayError | None]


async def send(upload: Upload, call: Call, done: Done) -> None:
    """Send the body until it is all there or the answer is over, whichever is first. Raises what the upload raises."""
    task = asyncio.get_running_loop().create_task(upload.run(call))
    waits: set[asyncio.Future[Any]] = {task, done}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not done.done():
            task.result()
    finally:
        if task.cancel():
            # Whoever reads the rest of the body must not find another reader at it.
            await asyncio.wait({task})
        if not task.cancelled():
            # The answer, or the client's leaving, came first: what became of the upload does not matter any more.
            task.exception()


async def drain(done: Done, meter: StreamMeter, bounds: OnDisconnect) -> None:
    """Wait until the answer is over, or has come to one of the bounds."""
    until = monotonic() + bounds.drain
    while not done.done():
        left = until - monotonic()
        flowed = max(meter.content_events, meter.flowed_tokens)
        if left <= 0 or (bounds.max_tokens is not None and flowed >= bounds.max_tokens):
            return
        await asyncio.wait({done}, timeout=min(left, LOOK_SECONDS))
