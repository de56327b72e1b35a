"""What everybody has used of the limits, as far as this relay has heard: by the answers to its own admissions, and every second of others'.

It is what a relay that is cut off has to go by. One that is alone with its Redis hears all of it from its own admissions.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha1
from typing import Final

from relay.policy.accounts import kind_of
from relay.policy.limits import Scope
from relay.policy.shares import KNOWN_MS, NOTHING, Use, share
from relay.stores import scripts
from relay.stores.entries import key_of
from relay.stores.ledger import Ledger, monotonic_ms
from relay.stores.line import ANY_SIZE, Line, Script

PAGE: Final = 200
"""Scopes in one answer: a millisecond or two of the server's time."""
_DIGITS: Final = 12
"""Of a scope's digest: a number of 48 bits is exact in Lua, and of a million scopes hardly two share one."""
_RECENT: Final = Script(scripts.RECENT)
_RECENT_KEY: Final = b"{relay}:recent"
_EACH: Final = 6


class Totals:
    """By scope, when and what was used by everybody, and what of it was used here."""

    __slots__ = ("_by_number", "_known", "_ledger", "_parts", "_replicas", "_since")

    def __init__(self, replicas: int, ledger: Ledger) -> None:
        """Be one of `replicas`, of which this one counts in `ledger`."""
        self._replicas = replicas
        self._ledger = ledger
        self._known: dict[str, tuple[int, Use, Use | None]] = {}
        self._parts: dict[str, tuple[Scope, Scope, int]] = {}
        self._by_number: dict[int, Scope] = {}
        self._since = 0
        """By the server's clock."""

    def note(self, scope: Scope, total: Use) -> None:
        """Take note of what everybody has used by now."""
        own = self._ledger.use(scope) if self._replicas > 1 else None
        self._known[scope.name] = (monotonic_ms(), total, own)

    def of(self, scope: Scope) -> Use | None:
        """Return what everybody had used, unless that is too long ago to say anything of a minute."""
        known = self._known.get(scope.name)
        return known[1] if known is not None and monotonic_ms() - known[0] < KNOWN_MS else None

    def part(self, scope: Scope) -> Scope:
        """Return `scope` with this relay's part of its limits, which stays as it is while others' use cannot be heard."""
        now = monotonic_ms()
        made = self._parts.get(scope.name)
        if made is not None and made[0] is scope and now < made[2]:
            return made[1]
        at, total, own = self._known.get(scope.name, (-KNOWN_MS, None, None))
        is_fresh = now - at < KNOWN_MS
        limits = share(scope.limits, self._replicas, own or self._ledger.use(scope), total, is_fresh=is_fresh)
        part = Scope(limits=limits, key=scope.key, route=scope.route)
        self._parts[scope.name] = (scope, part, at + KNOWN_MS if is_fresh else now + KNOWN_MS)
        return part

    def begin_alone(self) -> None:
        """Make new parts from here on, of what is known now."""
        self._parts.clear()

    def know(self, scopes: Iterable[Scope]) -> None:
        """Forget all other scopes."""
        wanted = list(scopes)
        names = {scope.name for scope in wanted}
        self._known = {name: known for name, known in self._known.items() if name in names}
        self._parts.clear()
        self._by_number = {_number_of(scope): scope for scope in wanted} if self._replicas > 1 else {}
        self._since = 0

    async def refresh(self, line: Line) -> None:
        """Hear what was used since the last time, by whomever. Raises LineBroken."""
        while self._replicas > 1:
            answer = await line.ask(_RECENT, [_RECENT_KEY], [b"%d %d" % (self._since, PAGE)], ANY_SIZE)
            self._since, is_more = answer[:2]
            for at in range(2, len(answer), _EACH):
                self._hear(answer[at : at + _EACH])
            if not is_more:
                return

    def _hear(self, told: Sequence[int]) -> None:
        number, kind, *used = told
        scope = self._by_number.get(number)
        if scope is not None and kind_of(scope.limits.budget) == kind:
            own = self._ledger.use(scope) if self._ledger.has(scope) else NOTHING
            self._known[scope.name] = (monotonic_ms(), Use(*used), own)


def _number_of(scope: Scope) -> int:
    return int(sha1(key_of(scope.name), usedforsecurity=False).hexdigest()[:_DIGITS], 16)
