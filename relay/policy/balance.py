"""In which order the targets of a route are tried: four strategies, each a whole order, so that a fallback follows the same rule.

All take what is usable now and return positions in it. Ordered is the configured order itself.
"""

from collections.abc import Sequence
from typing import Final

EXPLORE: Final = 0.05
"""Share of requests that try another target first than the fastest known, so that one that became fast is found."""


class Turns:
    """Weighted round robin, smooth: with weights 3 and 1 the turns are a a b a, never a a a b.

    The algorithm of nginx: everyone gains its weight, the richest goes first and pays what all gained.
    """

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        self._credit: dict[str, int] = {}

    def order(self, names: Sequence[str], weights: Sequence[int]) -> list[int]:
        """Return positions in turn, the one whose turn it is first, the others by when theirs would come."""
        credit = self._credit
        for name, weight in zip(names, weights, strict=True):
            credit[name] = credit.get(name, 0) + weight
        order = sorted(range(len(names)), key=lambda i: (-credit[names[i]], i))
        if order:
            credit[names[order[0]]] -= sum(weights)
        return order

    def keep(self, names: Sequence[str]) -> None:
        """Forget all but `names`: a new configuration came."""
        self._credit = {name: self._credit[name] for name in names if name in self._credit}


def least_busy(in_flight: Sequence[int], weights: Sequence[int], chance: float) -> list[int]:
    """Return positions by requests in flight per weight, this request included; `chance` in [0, 1) rotates those that are level."""
    start = _position(chance, len(in_flight))
    count = len(in_flight)
    return sorted(range(count), key=lambda i: ((in_flight[i] + 1) / weights[i], (i - start) % count))


def fastest(seconds: Sequence[float | None], chance: float) -> list[int]:
    """Return positions by mean time to first token, `None` for not known yet, which come last.

    With `chance` below `EXPLORE` another goes first: one that is not known yet, else any. So a new target is tried by a few
    requests, not by all that come until its first answer.
    """
    order = sorted(range(len(seconds)), key=lambda i: (seconds[i] is None, seconds[i] or 0.0, i))
    known = [i for i in order if seconds[i] is not None]
    unknown = order[len(known) :]
    if not known:
        start = _position(chance, len(order))
        return order[start:] + order[:start]
    if chance < EXPLORE:
        candidates = unknown or order
        explored = candidates[_position(chance / EXPLORE, len(candidates))]
        return [explored, *(i for i in order if i != explored)]
    return order


def _position(chance: float, count: int) -> int:
    return min(int(chance * count), count - 1) if count else 0
