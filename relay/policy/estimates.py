"""How many tokens a request will use, guessed without a tokenizer, and corrected by what upstreams report.

The guess is ASCII/4 + other characters: near for English and for Chinese, and cheap. What upstreams report of a model's prompts
moves that model's ratio. What nobody said (`max_tokens` left out) is taken from how long the answers of this route were.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from relay.config.tree import Price
from relay.exchange import ClientRequest, Exchange, Operation, Usage

IMAGE_TOKENS: Final = 1_000
"""For an embedded file in base64, whatever its size: a large image at the usual detail costs 765 to 1,445."""
_EMBEDDED: Final = b";base64,"
_ASCII: Final = bytes(range(0x80))
_NOT_LEADING: Final = bytes(range(0xC0))
"""Bytes that begin no character beyond ASCII: ASCII itself, and what continues a character."""
_ASCII_PER_TOKEN: Final = 4

WEIGHT: Final = 0.1
"""Of the newest report: a model's ratio follows within some twenty requests."""
LOWEST: Final = 0.5
HIGHEST: Final = 2.0
"""A ratio outside of these says more of odd requests than of the model."""
MAX_MODELS: Final = 1_024
"""Ratios kept: a wildcard route lets callers name any model."""

UNKNOWN_ANSWER: Final = 512
"""Tokens of an answer of which nothing is known: longer than most, shorter than a report."""
QUANTILE: Final = 0.9
_STEPS: Final = 4 * 32
"""Classes of answers' lengths, four to each doubling: up to 2 to the 32nd."""
_SHORTEST: Final = 8
"""Below this the classes are not told apart."""
_ENOUGH: Final = 10
_MEMORY: Final = 1_000
"""Answers after which all counts are halved, so that a route's habit of last month fades."""

_ANSWERING: Final = frozenset({Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES})


def prompt_tokens(raw: bytes) -> int:
    """Guess the tokens of a JSON request body in UTF-8, its own syntax included."""
    embedded = 0
    start = raw.find(_EMBEDDED)
    if start >= 0:
        raw, embedded = _without_embedded(raw, start)
    if raw.isascii():
        return embedded * IMAGE_TOKENS + -(-len(raw) // _ASCII_PER_TOKEN)
    others = len(raw.translate(None, _NOT_LEADING))
    ascii_bytes = len(raw) - len(raw.translate(None, _ASCII))
    return embedded * IMAGE_TOKENS + others + -(-ascii_bytes // _ASCII_PER_TOKEN)


def estimate_of(exchange: Exchange) -> int:
    """Return the tokens of an exchange's prompt, not corrected by reports; guessed once, when it is first asked for."""
    body = exchange.request.body
    if body is None:
        return 0
    if exchange.prompt_tokens is None:
        exchange.prompt_tokens = prompt_tokens(body.raw)
    return exchange.prompt_tokens


def _without_embedded(raw: bytes, start: int) -> tuple[bytes, int]:
    pieces = []
    count = end = 0
    while start >= 0:
        pieces.append(raw[end:start])
        count += 1
        end = raw.find(b'"', start)
        if end < 0:
            end = len(raw)
        start = raw.find(_EMBEDDED, end)
    pieces.append(raw[end:])
    return b"".join(pieces), count


class Ratios:
    """Reported to estimated prompt tokens, by upstream and model."""

    __slots__ = ("_ratios",)

    def __init__(self) -> None:
        self._ratios: OrderedDict[tuple[str, str], float] = OrderedDict()

    def correct(self, upstream: str, model: str, estimated: int) -> int:
        """Return the estimate as this model's reports would have it."""
        ratio = self._ratios.get((upstream, model))
        return estimated if ratio is None else math.ceil(estimated * ratio)

    def learn(self, upstream: str, model: str, *, estimated: int, reported: int) -> None:
        """Take note of what an upstream counted for a prompt that was estimated, uncorrected, at `estimated`."""
        if estimated <= 0 or reported <= 0:
            return
        name = (upstream, model)
        known = self._ratios.get(name, 1.0)
        self._ratios[name] = min(max(known + WEIGHT * (reported / estimated - known), LOWEST), HIGHEST)
        self._ratios.move_to_end(name)
        if len(self._ratios) > MAX_MODELS:
            self._ratios.popitem(last=False)


class Answers:
    """How long the answers of each route were: one count per class of lengths."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}

    def learn(self, route: str, tokens: int) -> None:
        """Take note of an answer that ended by itself."""
        counts = self._counts.get(route)
        if counts is None:
            counts = self._counts[route] = [0] * (_STEPS + 1)
        # The length of the number in bits, and the two after the first: four classes to a doubling.
        below = max(tokens - 1, 0)
        bits = below.bit_length()
        step = min(4 * bits + (below << 3 >> bits & 3), _STEPS - 1)
        counts[step] += 1
        counts[_STEPS] += 1
        if counts[_STEPS] >= _MEMORY:
            halved = [count // 2 for count in counts[:_STEPS]]
            self._counts[route] = [*halved, sum(halved)]

    def expect(self, route: str) -> int:
        """Return a length that nine of ten answers do not exceed."""
        counts = self._counts.get(route)
        if counts is None or counts[_STEPS] < _ENOUGH:
            return UNKNOWN_ANSWER
        left = QUANTILE * counts[_STEPS]
        for step in range(_STEPS):
            left -= counts[step]
            if left <= 0:
                return max(_SHORTEST, (5 + step % 4) << (step // 4) >> 3)
        return UNKNOWN_ANSWER


def said_answer(request: ClientRequest) -> int | None:
    """Return the tokens that an answer may have by the request's own word; 0 where answers have none, None when it does not say."""
    if request.operation not in _ANSWERING or request.body is None:
        return 0
    return request.body.answer_tokens


def price_of(prices: Mapping[str, Price], name: str) -> Price | None:
    """Return the price of upstream/model: its own, else that of the longest name with a `*` that fits."""
    found = prices.get(name)
    if found is None:
        wildcards = [each for each in prices if each.endswith("*") and name.startswith(each[:-1])]
        found = prices[max(wildcards, key=len)] if wildcards else None
    return found


def cost_of(price: Price | None, usage: Usage) -> int:
    """Return what `usage` costs in billionths of a US dollar."""
    if price is None:
        return 0
    cached = min(usage.cached, usage.input)
    # Dollars per million tokens are thousands of billionths per token.
    return math.ceil(1000 * ((usage.input - cached) * price.input + cached * price.cached + usage.output * price.output))
