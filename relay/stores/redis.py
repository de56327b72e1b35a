"""Limits that hold for many machines: Redis (or Valkey) admits, in one script per request; what it says is also counted here.

While Redis is away, the counts here go on by themselves, with this relay's part of each limit (`policy.shares`): a late answer costs the
requests that wait for it one timeout, those after it nothing. When it is back, it is told first what was admitted meanwhile and what still
runs; with several relays the part holds for another second, in which the others tell theirs. Requests are known by ids, so that what was
sent in vain, or twice, counts once.

A request in flight is a lease, renewed every few seconds. When a relay is killed, its slots come back with their leases and what
it had reserved of a budget counts as spent.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from relay.policy.limits import Demand, Grant, Limit, Refusal, Scope, Standing
from relay.policy.shares import Use
from relay.policy.sliding import WINDOW_MS
from relay.stores import scripts
from relay.stores.entries import LIMITS, Change, Entry, fits, held_of, is_beyond, shares_of, tighter
from relay.stores.ledger import Ledger, monotonic_ms
from relay.stores.line import Line, LineBroken, Script
from relay.stores.news import CHANGE, LEASE_MS, SUMS, News
from relay.stores.totals import Totals

TICK_SECONDS: Final = 1.0
"""How old what is known of others' use may be when Redis goes away."""
RENEW_TICKS: Final = 3
"""Two renewals may fail before a lease ends."""
RETRY_SECONDS: Final = 1.0
"""Between two attempts to reach Redis."""
FLUSH_SECONDS: Final = 1.0
"""What a stop gives the last settlements."""
AWAY_WAIT_MS: Final = 1_000
"""What is told to a request that only the whole limit has room for: until the next attempt to reach Redis."""

_ADMIT: Final = Script(scripts.ADMIT)
_PROBE: Final = Script(scripts.PROBE)
_PROBE_KEY: Final = b"{relay}:probe"
_HEAD: Final = 7
_EACH: Final = 6


class RedisLimiter:
    """A `ports.Limiter` over Redis and a ledger of this machine's own."""

    def __init__(self, url: str, replicas: int, timeout: float, ledger: Ledger, changed: Callable[[str | None], None]) -> None:
        """Be one of `replicas`; `changed` is told why Redis is away, None when it is back. Raises RedisUnusable."""
        self._line = Line(url, timeout, self._broke)
        self._news = News(self._line, is_shared=replicas > 1)
        self._replicas = replicas
        self._ledger = ledger
        self._totals = Totals(replicas, ledger)
        self._changed = changed
        self._prefix = b"q" + secrets.token_hex(6).encode() + b"-"
        self._number = 0
        self._entries: dict[Grant, Entry] = {}
        self._recent: deque[Entry] = deque()
        self._is_up = False
        self._is_told_away = False
        self._is_first = True
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_degraded(self) -> bool:
        """Tell whether limits are counted here alone."""
        return not self._is_up

    async def start(self) -> None:
        """Connect, and stay connected until closed; returns when it is known whether Redis is there."""
        known = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep(known))
        await known.wait()

    # ports.Limiter

    async def admit(self, demand: Demand) -> Grant | Refusal:
        """Take what `demand` asks for, or refuse and take nothing."""
        self._number += 1
        ident = self._prefix + b"%x" % self._number
        if not self._is_up:
            return self._admit_here(demand, ident, may_be_known=False)
        keys, words = self._news.written(demand.scopes)
        head = b"%b %d %d %d %d %d" % (ident, demand.tokens, demand.cost, LEASE_MS, demand.least, demand.answer_cost)
        answer: asyncio.Future[Sequence[int] | None] = asyncio.get_running_loop().create_future()
        self._line.call(
            _ADMIT,
            keys,
            (head, *words),
            _HEAD + _EACH * len(keys),
            lambda numbers: None if answer.done() else answer.set_result(numbers),
        )
        try:
            numbers = await answer
        except asyncio.CancelledError:
            # The caller left, and the script may run all the same.
            self._undo(Entry(ident, demand, monotonic_ms(), is_known=True))
            raise
        if numbers is None:
            return self._admit_here(demand, ident, may_be_known=True)
        return self._admitted(demand, ident, numbers)

    def debit(self, grant: Grant, tokens: int) -> bool:
        """Count that `tokens` have flowed in all; what others have used meanwhile is known a moment later."""
        holds = self._ledger.debit(grant, tokens)
        entry = self._entries.get(grant)
        if entry is None or grant.extra <= entry.sent:
            return holds
        if not entry.is_asking:
            self._count_extra(entry, grant.extra)
        return holds and not entry.is_over

    def settle(self, grant: Grant, tokens: int, cost: int) -> None:
        """Replace what was reserved by what was used, and give the slots back."""
        entry = self._entries.pop(grant, None)
        counted = grant.demand.tokens + grant.extra
        self._ledger.settle(grant, tokens, cost)
        if entry is not None:
            entry.tokens = grant.demand.tokens - min(max(0, counted - tokens), grant.demand.tokens)
            beyond = max(tokens - grant.demand.tokens, grant.extra) - entry.sent
            self._end(entry, beyond, tokens, cost)

    def release(self, grant: Grant) -> None:
        """Give everything back: nothing was sent anywhere."""
        entry = self._entries.pop(grant, None)
        self._ledger.release(grant)
        if entry is not None:
            self._undo(entry)

    def violations(self) -> list[str]:
        """Return the identities that do not hold."""
        return self._ledger.violations()

    # Books

    @property
    def granted(self) -> int:
        """Return how many grants are out."""
        return self._ledger.granted

    def sweep(self) -> list[str]:
        """Hold the books against the accounts here; return the identities that do not hold."""
        self._forget_old()
        return self._ledger.sweep()

    def know(self, scopes: Iterable[Scope]) -> None:
        """Forget all other scopes, as far as nothing of theirs is held here."""
        wanted = list(scopes)
        self._ledger.know(wanted)
        self._totals.know(wanted)
        self._news.forget()

    def standings(self) -> Iterator[tuple[Scope, dict[Limit, float], int]]:
        """Yield each scope that was used here with the used shares of its limits, as far as they are known, and its reserved tokens."""
        for scope, shares, reserved in self._ledger.standings():
            total = self._totals.of(scope) if self._is_up else None
            if total is not None:
                for limit, part in shares_of(scope.limits, total).items():
                    shares[limit] = max(shares.get(limit, 0.0), part)
            yield scope, shares, reserved

    async def aclose(self) -> None:
        """Have the last settlements confirmed, then let go of Redis."""
        if self._task is not None:
            self._task.cancel()
        with contextlib.suppress(TimeoutError, LineBroken):
            async with asyncio.timeout(FLUSH_SECONDS):
                if self._is_up:
                    await self._line.flushed()
                if self._news.is_owed:
                    self._line.close()
                    self._is_first = True  # nothing is admitted any more, so nobody has to be waited for
                    await self._connect()
        self._line.close()

    def close(self) -> None:
        """Let go of the counts here."""
        self._ledger.close()

    # Admission

    def _admitted(self, demand: Demand, ident: bytes, numbers: Sequence[int]) -> Grant | Refusal:
        is_in, index, limit, wait, now, demanded, cost = numbers[:_HEAD]
        if demand.least:  # it may have been lowered
            demand = demand._replace(tokens=demanded, cost=cost)
        grant = self._ledger.take(demand) if is_in else None
        requests: Standing | None = None
        tokens: Standing | None = None
        for at, scope in enumerate(demand.scopes):
            count, newest, total, last, slots, used = numbers[_HEAD + _EACH * at : _HEAD + _EACH * (at + 1)]
            self._totals.note(scope, Use(count, total, slots, used))
            limits = scope.limits
            if scope.key is not None:
                if limits.rpm is not None:
                    requests = tighter(requests, limits.rpm, count, newest, now)
                if limits.tpm is not None:
                    tokens = tighter(tokens, limits.tpm, total, last, now)
        if grant is None:
            wait_ms = None if wait < 0 else wait
            return Refusal(limit=LIMITS[limit], scope=demand.scopes[index], wait_ms=wait_ms, requests=requests, tokens=tokens)
        grant.requests, grant.tokens = requests, tokens
        self._remember(grant, Entry(ident, demand, monotonic_ms(), is_known=True))
        return grant

    def _admit_here(self, demand: Demand, ident: bytes, *, may_be_known: bool) -> Grant | Refusal:
        answer = self._ledger.try_take(demand._replace(scopes=tuple(self._totals.part(scope) for scope in demand.scopes)))
        entry = Entry(ident, demand, monotonic_ms(), is_known=may_be_known)
        if isinstance(answer, Grant):
            # Its tokens may have been lowered.
            answer.demand = entry.demand = answer.demand._replace(scopes=demand.scopes)
            entry.tokens = answer.demand.tokens
            self._remember(answer, entry)
            return answer
        if may_be_known:
            self._undo(entry)
        if answer.wait_ms is not None:
            return answer
        scope = next(each for each in demand.scopes if each.name == answer.scope.name)
        if not fits(scope.limits, answer.limit, demand):
            return answer
        return Refusal(limit=answer.limit, scope=scope, wait_ms=AWAY_WAIT_MS, requests=answer.requests, tokens=answer.tokens)

    def _remember(self, grant: Grant, entry: Entry) -> None:
        self._entries[grant] = entry
        self._recent.append(entry)
        self._forget_old()

    def _forget_old(self) -> None:
        recent = self._recent
        oldest = monotonic_ms() - WINDOW_MS
        while recent and recent[0].at < oldest:
            recent.popleft()

    # Changes

    def _count_extra(self, entry: Entry, extra: int) -> None:
        name, more = b"%b+%x" % (entry.id, len(entry.extras)), extra - entry.sent
        entry.extras.append((name, more, monotonic_ms()))
        entry.sent = extra
        if not self._is_up:
            return
        entry.is_asking = True

        def counted(sums: Sequence[int] | None) -> None:
            entry.is_asking = False
            if sums is not None:
                entry.is_over = is_beyond(entry.demand.scopes, sums)

        keys, words = self._news.written(entry.demand.scopes)
        text = b"%b -1 %b %d 0 0 %d %d" % (entry.id, name, more, *held_of(entry))
        self._line.call(CHANGE, keys, (text, *words), SUMS * len(keys), counted)

    def _undo(self, entry: Entry) -> None:
        entry.tokens, entry.is_request = 0, False
        entry.extras.clear()
        self._end(entry, 0, 0, 0, is_undone=True)

    def _end(self, entry: Entry, more: int, tokens: int, cost: int, *, is_undone: bool = False) -> None:
        entry.is_live = False
        name = b"%b+%x" % (entry.id, len(entry.extras))
        if more > 0:
            entry.extras.append((name, more, monotonic_ms()))
        if not entry.is_known:
            self._news.spend(entry.demand.scopes, tokens, cost)
            return
        change = b"%b %d %b %d 1 %d %d %d" % (entry.id, entry.tokens, name, max(0, more), is_undone, tokens, cost)
        self._change(Change(entry, change))

    def _change(self, change: Change) -> None:
        if not self._is_up:
            self._news.lost.append(change)
            return
        change.was_sent = True

        def confirmed(sums: Sequence[int] | None) -> None:
            if sums is None:
                self._news.lost.append(change)

        keys, words = self._news.written(change.entry.demand.scopes)
        self._line.call(CHANGE, keys, (change.text, *words), SUMS * len(keys), confirmed)

    # The connection

    def _broke(self, reason: str) -> None:
        if self._is_up:
            self._away(reason)
        self._stirred.set()

    def _away(self, reason: str) -> None:
        self._is_up = False
        self._totals.begin_alone()
        if not self._is_told_away:
            self._is_told_away = True
            self._changed(reason)

    async def _keep(self, known: asyncio.Event) -> None:
        while True:
            try:
                await self._connect()
                known.set()
                await self._keep_up()
            except LineBroken as error:
                self._away(str(error))
            known.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _keep_up(self) -> None:
        """Renew leases, and hear what others use, while the line is open. Raises LineBroken."""
        for tick in itertools.count(1):
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._stirred.wait()
            if not self._line.is_open:
                return
            await self._totals.refresh(self._line)
            if tick % RENEW_TICKS == 0:
                await self._line.ask(_PROBE, [_PROBE_KEY], [])  # tells an idle line that is cut
                await self._news.tell(self._entries.values(), is_renewal=True)

    async def _connect(self) -> None:
        """Bring Redis up to date, then let it decide. Raises LineBroken."""
        await self._line.open()
        try:
            await self._line.ask(_PROBE, [_PROBE_KEY], [])
            await self._news.tell([*self._recent, *self._entries.values()])
            if self._replicas > 1 and not self._is_first:
                await asyncio.sleep(RETRY_SECONDS)
            while self._news.is_owed or any(not entry.is_known for entry in self._recent):
                await self._news.tell([entry for entry in (*self._recent, *self._entries.values()) if not entry.is_known])
                await self._news.settle()
            await self._totals.refresh(self._line)
        except LineBroken:
            self._line.close()
            raise
        if not self._line.is_open:
            raise LineBroken(self._line.why)
        self._is_up, self._is_first = True, False
        if self._is_told_away:
            self._is_told_away = False
            self._changed(None)
