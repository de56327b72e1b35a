"""A small load with some of everything that goes well and wrong, for a board that is to show something.

    python -m grafana.load --relay http://127.0.0.1:8080 --key sk-demo-alice --key sk-demo-alice --key sk-demo-bob

It expects the routes of config/demo.yaml, and runs the upstream with faults that is one of its targets. Only the standard library.
"""

import argparse
import http.client
import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from grafana.flaky import FlakyUpstream

TIMEOUT_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.4
"""Mean pause of a worker between two requests."""
CHAT: Final = "/v1/chat/completions"
SMALL_BUFFER: Final = 8192
PROMPTS: Final = ("Why is the sky blue?", "Tell me a story about a lighthouse.", "Summarize the plot of a play nobody has seen.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Something a client does: `weight` is how often, beside the others."""

    weight: float
    do: Callable[["Worker"], None]


class Worker:
    """One client that does one thing after another."""

    def __init__(self, relay: str, key: str, chance: random.Random) -> None:
        parts = urlsplit(relay)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._key = key
        self.chance = chance

    def run(self, deeds: Sequence["Deed"], is_over: Callable[[], bool], pause: float) -> None:
        """Do each deed once, then as often as its weight says, until it is over; what goes wrong is what is wanted."""
        for deed in itertools.chain(deeds, iter(lambda: self.chance.choices(deeds, [deed.weight for deed in deeds])[0], None)):
            if is_over():
                return
            try:
                deed.do(self)
            except (OSError, http.client.HTTPException):
                pass  # the relay says more about it than we could
            time.sleep(self.chance.expovariate(1 / pause))

    def ask(self, model: str, prompt: str, *, stream: bool = True, key: str | None = None, **more: object) -> None:
        """Ask for a completion and read it to its end."""
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}], **more}
        if stream:
            body["stream_options"] = {"include_usage": True}
        self.post(CHAT, json.dumps(body), key=key)

    def post(self, path: str, body: str, *, key: str | None = None) -> None:
        """Send a body and read the answer to its end."""
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("POST", path, body, self._headers(key))
            connection.getresponse().read()
        finally:
            connection.close()

    def leave(self, model: str, prompt: str, *, after: float, buffer: int | None = None) -> None:
        """Ask for a stream and close after `after` seconds, without having read a byte of it."""
        body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": prompt}]})
        lines = [f"POST {CHAT} HTTP/1.1", "Host: relay", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self._headers(None).items()]
        with socket.socket() as sock:
            if buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            sock.settimeout(TIMEOUT_SECONDS)
            sock.connect(self._address)
            sock.sendall("\r\n".join([*lines, "", body]).encode())
            time.sleep(after)

    def _headers(self, key: str | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key or self._key}", "Content-Type": "application/json"}

    @property
    def prompt(self) -> str:
        """Something harmless to ask."""
        return self.chance.choice(PROMPTS)


QUEUE: Final = Deed(weight=8, do=lambda worker: worker.ask("narrow", worker.prompt, max_tokens=8))
"""What all workers begin with at once, so that they meet in a queue."""
DEEDS: Final[Sequence[Deed]] = (
    QUEUE,
    Deed(weight=15, do=lambda worker: worker.ask("chat", worker.prompt)),
    Deed(weight=30, do=lambda worker: worker.ask("fast", worker.prompt)),
    Deed(weight=6, do=lambda worker: worker.ask("reasoner", worker.prompt, max_tokens=40)),
    Deed(weight=6, do=lambda worker: worker.ask("hedged", worker.prompt, max_tokens=40)),
    Deed(weight=6, do=lambda worker: worker.ask("fast", worker.prompt, stream=False, max_tokens=40)),
    Deed(weight=5, do=lambda worker: worker.post("/v1/embeddings", json.dumps({"model": "fast", "input": worker.prompt}))),
    Deed(weight=15, do=lambda worker: worker.ask("chat", worker.prompt)),
    Deed(weight=2, do=lambda worker: worker.ask("fast", "slow 1500ms", max_tokens=20)),
    Deed(weight=1, do=lambda worker: worker.ask("fast", "cut after 9")),
    Deed(weight=1, do=lambda worker: worker.ask("fast", "error after 7")),
    Deed(weight=0.5, do=lambda worker: worker.ask("fast", "stall after 5")),
    Deed(weight=0.5, do=lambda worker: worker.ask("fast", "fail: 500")),
    Deed(weight=15, do=lambda worker: worker.ask("chat", worker.prompt)),
    Deed(weight=2, do=lambda worker: worker.ask("fast", "fail: 400")),
    Deed(weight=1, do=lambda worker: worker.post(CHAT, "{")),
    Deed(weight=1, do=lambda worker: worker.ask("nothing-of-that-name", worker.prompt)),
    Deed(weight=1, do=lambda worker: worker.ask("fast", worker.prompt, key="sk-of-nobody")),
    Deed(weight=2, do=lambda worker: worker.leave("reasoner", worker.prompt, after=0.6)),
    Deed(weight=0.5, do=lambda worker: worker.ask("long", worker.prompt)),
    Deed(weight=0.5, do=lambda worker: worker.leave("long", worker.prompt, after=4.0, buffer=SMALL_BUFFER)),
)
"""Every worker does each once, beginning at another one, then as the weights say."""


def run_load(relay: str, keys: Sequence[str], *, workers: int, is_over: Callable[[], bool], pause: float = PAUSE_SECONDS) -> None:
    """Run `workers` clients until it is over; the same ones do the same things every time."""
    threads = []
    for number in range(workers):
        worker = Worker(relay, keys[number % len(keys)], random.Random(number))  # noqa: S311  # the same ones every time
        first = number * 2 % len(DEEDS)
        deeds = (QUEUE, *DEEDS[first:], *DEEDS[:first])
        threads.append(threading.Thread(target=worker.run, args=(deeds, is_over, pause), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the upstream with faults, and the load until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m grafana.load", description="Give a relay something to show.")
    parser.add_argument("--relay", default="http://127.0.0.1:8080", metavar="URL")
    parser.add_argument("--key", action="append", metavar="KEY", help="virtual key; the workers take those given in turn")
    parser.add_argument("--workers", type=int, default=6, metavar="N")
    parser.add_argument("--flaky", default="127.0.0.1:9001", metavar="HOST:PORT", help="where the upstream with faults listens")
    options: Any = parser.parse_args(arguments)
    host, _, port = options.flaky.rpartition(":")
    upstream = FlakyUpstream(host, int(port))
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    run_load(options.relay, options.key or ["unused"], workers=options.workers, is_over=lambda: False)


if __name__ == "__main__":
    main()
