"""The official `openai` SDK, sync and async behind one face, so that every claim is made of both.

Retries are off: a retry would hide what the relay said. The sync client runs in a thread, since the scripted upstream lives on the
test's own loop.
"""

import asyncio
import operator
from typing import Any, Literal, Self

import openai

Flavour = Literal["sync", "async"]
TIMEOUT = 15.0


class Sdk:
    """One client of one flavour; calls are named as an application would write them, `chat.completions.create`."""

    def __init__(self, flavour: Flavour, base_url: str, api_key: str = "sk-alice") -> None:
        self.flavour = flavour
        settings: dict[str, Any] = {"base_url": base_url, "api_key": api_key, "max_retries": 0, "timeout": TIMEOUT}
        # trust_env=False: no proxy of the environment may come between.
        self._client: Any
        if flavour == "sync":
            self._client = openai.OpenAI(**settings, http_client=openai.DefaultHttpxClient(trust_env=False, timeout=TIMEOUT))
        else:
            self._client = openai.AsyncOpenAI(**settings, http_client=openai.DefaultAsyncHttpxClient(trust_env=False, timeout=TIMEOUT))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.flavour == "sync":
            self._client.close()
        else:
            await self._client.close()

    async def call(self, name: str, *values: object, **parameters: Any) -> Any:
        """Call a method by its dotted name and return what it returns."""
        method = operator.attrgetter(name)(self._client)
        if self.flavour == "sync":
            return await asyncio.to_thread(lambda: method(*values, **parameters))
        return await method(*values, **parameters)

    async def items(self, name: str, **parameters: Any) -> list[Any]:
        """Call a streaming method and return every chunk; what the SDK raises comes through, with the chunks before it in `.chunks`."""
        chunks: list[Any] = []
        try:
            if self.flavour == "sync":
                await asyncio.to_thread(self._fill, chunks, name, parameters)
            else:
                async with await self.call(name, **parameters, stream=True) as stream:
                    async for chunk in stream:
                        chunks.append(chunk)
        except Exception as error:
            error.chunks = chunks  # type: ignore[attr-defined]
            raise
        return chunks

    def _fill(self, chunks: list[Any], name: str, parameters: dict[str, Any]) -> None:
        with operator.attrgetter(name)(self._client)(**parameters, stream=True) as stream:
            for chunk in stream:
                chunks.append(chunk)  # one by one: what came before an exception is kept

    async def first_then_close(self, name: str, count: int, **parameters: Any) -> list[Any]:
        """Take `count` chunks of a stream and close it, as an application does that has seen enough."""
        chunks: list[Any] = []
        if self.flavour == "async":
            stream = await self.call(name, **parameters, stream=True)
            async for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == count:
                    break
            await stream.close()
            return chunks

        def take() -> None:
            stream = operator.attrgetter(name)(self._client)(**parameters, stream=True)
            for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == count:
                    break
            stream.close()

        await asyncio.to_thread(take)
        return chunks

    async def final(self, name: str, getter: str, **parameters: Any) -> Any:
        """Run a streaming helper to its end and return what its getter gives."""
        opened = operator.attrgetter(name)(self._client)(**parameters)
        if self.flavour == "async":
            async with opened as stream:
                return await getattr(stream, getter)()

        def run() -> Any:
            with opened as stream:
                return getattr(stream, getter)()

        return await asyncio.to_thread(run)

    def with_retries(self, count: int) -> "Sdk":
        """Return the same client with retries on."""
        other = object.__new__(Sdk)
        other.flavour = self.flavour
        other._client = self._client.with_options(max_retries=count)
        return other

    async def raw_bytes(self, name: str, **parameters: Any) -> tuple[Any, bytes]:
        """Call by `with_streaming_response`; return the headers and every byte of the body."""
        resource, _, method = name.rpartition(".")
        opened = operator.attrgetter(f"{resource}.with_streaming_response.{method}")(self._client)
        if self.flavour == "async":
            async with opened(**parameters) as response:
                return response.headers, b"".join([part async for part in response.iter_bytes()])

        def read() -> tuple[Any, bytes]:
            with opened(**parameters) as response:
                return response.headers, b"".join(response.iter_bytes())

        return await asyncio.to_thread(read)


async def outcome_of(items: Any) -> tuple[list[Any], str | None]:
    """Await chunks; return them as plain data, and the class name of what was raised."""
    try:
        return [chunk.model_dump(warnings=False) for chunk in await items], None
    except openai.APIError as error:
        return [chunk.model_dump(warnings=False) for chunk in getattr(error, "chunks", [])], type(error).__name__
    except (ValueError, AttributeError) as error:  # the SDK's own trouble with odd events is part of the comparison
        return [chunk.model_dump(warnings=False) for chunk in getattr(error, "chunks", [])], type(error).__name__
