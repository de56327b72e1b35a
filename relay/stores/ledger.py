"""A limiter over a table of accounts, whose memory is its own or shared: every call is one step under the table's lock.

Nothing waits for the lock but an admission, and that without holding up the process. What cannot be counted at once is counted as soon as
the lock can be had: `catch_up` is for who looks. While whoever has the lock does not go on, a `StandIn` admits
this process's part of each limit.

It also keeps books of its own on what this process was granted, so that a grant that was lost, or given back twice, shows.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic_ns, time
from typing import Final

from relay.errors import Overloaded
from relay.policy import limits
from relay.policy.accounts import Account
from relay.policy.limits import Demand, Grant, Refusal, Scope
from relay.policy.shares import NOTHING, Use
from relay.stores.gates import SharedGate
from relay.stores.standin import StandIn, private_account
from relay.stores.table import Busy, Full, Table

SLOTS_IDENTITY: Final = "slots_taken_are_returned_or_held"
TOKENS_IDENTITY: Final = "tokens_reserved_are_settled_refunded_or_held"
_LOOK_SECONDS: Final = 0.002
"""Between two looks of a waiting admission at the lock: as soon as its holder may have had its turn on a busy core."""


def monotonic_ms() -> int:
    """Return the machine's monotonic clock, the same in all its processes."""
    return monotonic_ns() // 1_000_000


class Ledger:
    """A `ports.Limiter`."""

    __slots__ = (
        "_accounts",
        "_apart",
        "_late",
        "_live",
        "_now",
        "_table",
        "_unix_time",
        "held",
        "is_full",
        "on_busy",
        "refunded",
        "reserved",
        "returned",
        "settled",
        "taken",
    )

    def __init__(self, table: Table, *, now: Callable[[], int] = monotonic_ms, unix_time: Callable[[], float] = time) -> None:
        """Keep accounts in `table`; `now` gives milliseconds that never step."""
        self._table = table
        self._now = now
        self._unix_time = unix_time
        self._accounts: dict[str, tuple[Scope, Account]] = {}
        self._live: set[Grant] = set()
        self._late: list[Callable[[], None]] = []
        """What has to be done to accounts once their lock can be had: at most as many as grants were out when it could not."""
        self._apart: StandIn | None = None
        self.on_busy: Callable[[], None] = lambda: None
        """Called when the lock could not be had: somebody should `catch_up` soon."""
        self.is_full = False
        """Whether a scope found no room."""
        self.taken = 0
        """Grants given, ever."""
        self.returned = 0
        self.reserved = 0
        """Tokens reserved, ever; those of a grant count once, however many scopes they were taken from."""
        self.settled = 0
        """Of those, used."""
        self.refunded = 0
        self.held = 0

    async def admit(self, demand: Demand) -> Grant | Refusal:
        """Take what `demand` asks for, or refuse and take nothing; waits for the lock if need be. Raises Overloaded: no room."""
        while True:
            try:
                return self._admit(demand)
            except Busy:
                if self._table.is_stalled:
                    return self._admit_apart(demand)
            await asyncio.sleep(_LOOK_SECONDS)

    def try_take(self, demand: Demand) -> Grant | Refusal:
        """Do what `admit` does, without waiting: from this process's part where the lock cannot be had now."""
        try:
            return self._admit(demand)
        except Busy:
            return self._admit_apart(demand)

    def _admit(self, demand: Demand) -> Grant | Refusal:
        accounts = self._enter_for(demand.scopes, enter=self._enter_whole)
        try:
            answer = limits.admit(accounts, demand, self._now(), self._unix_time())
        finally:
            self._table.leave()
        if isinstance(answer, Grant):
            self._begin(answer)
        return answer

    def _admit_apart(self, demand: Demand) -> Grant | Refusal:
        answer = self._parted().admit(demand, self._peek, self._now(), self._unix_time())
        if isinstance(answer, Grant):
            self._begin(answer)
        return answer

    def take(self, demand: Demand) -> Grant:
        """Take what `demand` asks for, whether there is room or not: somebody else has admitted it. Raises Overloaded as `admit` does."""
        try:
            accounts = self._enter_for(demand.scopes)
        except Busy:
            grant = self._parted().take(demand, self._peek, self._now())
        else:
            try:
                grant = limits.take(accounts, demand, self._now())
            finally:
                self._table.leave()
        self._begin(grant)
        return grant

    def _parted(self) -> StandIn:
        if self._apart is None:
            self._apart = StandIn(self._table.processes, self._live, self._now())
            self._table.part(is_apart=True)
            self.on_busy()
        return self._apart

    def _peek(self, scope: Scope) -> Use:
        found = self._table.find(scope.name)
        return NOTHING if found is None else found.peek(scope.limits.budget, self._now(), self._unix_time())

    def _begin(self, grant: Grant) -> None:
        self._live.add(grant)
        self.taken += 1
        self.reserved += grant.demand.tokens
        self.held += grant.demand.tokens

    def has(self, scope: Scope) -> bool:
        """Tell whether anything was ever counted here of the limits of `scope`, by this process."""
        return scope.name in self._accounts

    def use(self, scope: Scope) -> Use:
        """Return what was used here of the limits of `scope`. Raises Overloaded as `admit` does."""
        now, unix_time = self._now(), self._unix_time()
        try:
            (account,) = self._enter_for((scope,))
        except Busy:
            apart = NOTHING if self._apart is None else self._apart.use(scope, now, unix_time)
            return Use(*map(sum, zip(self._peek(scope), apart, strict=True)))
        try:
            return account.peek(scope.limits.budget, now, unix_time)
        finally:
            self._table.leave()

    def debit(self, grant: Grant, tokens: int) -> bool:
        """Count that `tokens` have flowed in all; tell whether every limit of tokens still holds."""
        if tokens <= grant.demand.tokens + grant.extra:
            return True
        try:
            self._enter()
        except Busy:
            if self._is_apart(grant):
                return limits.debit(self._of(grant), grant, tokens, self._now(), self._unix_time())
            return True  # the next debit counts these as well, or the settlement
        try:
            return limits.debit(self._of(grant), grant, tokens, self._now(), self._unix_time())
        finally:
            self._table.leave()

    def settle(self, grant: Grant, tokens: int, cost: int) -> None:
        """Replace what was reserved by what was used, in tokens and billionths of a dollar; a grant that is over stays as it is."""
        if self._end(grant, tokens):
            self._change(grant, lambda accounts: limits.settle(accounts, grant, tokens, cost, self._now(), self._unix_time()))

    def release(self, grant: Grant) -> None:
        """Give everything back: nothing was sent anywhere."""
        if self._end(grant, 0):
            self._change(grant, lambda accounts: limits.release(accounts, grant, self._now(), self._unix_time()))

    def _change(self, grant: Grant, change: Callable[[list[Account]], None]) -> None:
        """End a grant's part in its accounts now, or as soon as that can be done."""
        try:
            self._enter()
        except Busy:
            accounts = self._of(grant)
            if self._apart is None or not self._is_apart(grant):
                self._late.append(lambda: change(accounts))
                if self._apart is not None:
                    self._apart.ended_before(grant)
            else:
                change(accounts)
                self._apart.grants.discard(grant)
            return
        try:
            change(self._of(grant))
        finally:
            self._table.leave()

    # The lock

    def gate(self, name: str) -> SharedGate:
        """Return the gate of an upstream's slots, which all processes at this table share."""
        # No scope's name holds a character that does not print.
        scope = f"\0{name}"
        return SharedGate(
            partial(self._account_of_gate, scope),
            find=partial(self._table.find, scope),
            enter=self._enter,
            enter_whole=self._enter_whole,
            leave=self._table.leave,
            later=self._late.append,
            now=self._now,
            apart=self._apart_among,
        )

    def _apart_among(self) -> int:
        if not self._table.is_stalled:
            return 0
        self._parted()
        return self._table.processes

    def _account_of_gate(self, name: str) -> Account:
        try:
            return self._table.account(name)
        except Full:
            self.is_full = True
            return private_account()

    @property
    def is_stalled(self) -> bool:
        """Tell whether this process counts by itself, because another one that was counting does not go on."""
        return self._table.is_stalled

    @property
    def is_behind(self) -> bool:
        """Tell whether something is still to be counted where all count."""
        return self._table.is_busy or bool(self._late) or self._apart is not None

    def catch_up(self) -> None:
        """Count what is still to be counted, if the lock can be had."""
        with contextlib.suppress(Busy):
            self._enter()
            self._table.leave()

    def _enter_for(self, scopes: Iterable[Scope], enter: Callable[[], None] | None = None) -> list[Account]:
        """Take the lock; raises Busy, and Overloaded, without it."""
        (enter or self._enter)()
        try:
            return [self._account(scope) for scope in scopes]
        except Full:
            self._table.leave()
            self.is_full = True
            # To let a request in uncounted would break the limit.
            raise Overloaded from None

    def _enter(self) -> None:
        try:
            self._table.enter()
        except Busy:
            self.on_busy()
            raise
        if self._late:
            late = self._late.copy()
            self._late.clear()
            for change in late:
                change()
        if self._apart is not None:
            apart, self._apart = self._apart, None
            apart.enter_into(self._account_or_own, self._now(), self._unix_time())
            self._table.part(is_apart=False)

    def _enter_whole(self) -> None:
        """Take the lock to admit: others that admitted by themselves have to enter that first. Raises Busy."""
        self._enter()
        if not self._table.is_whole:
            self._table.leave()
            raise Busy

    def _is_apart(self, grant: Grant) -> bool:
        return self._apart is not None and grant in self._apart.grants

    def _end(self, grant: Grant, tokens: int) -> bool:
        self.returned += 1
        reserved = grant.demand.tokens
        used = min(tokens, reserved)
        self.settled += used
        self.refunded += reserved - used
        if grant not in self._live:
            return False
        self._live.discard(grant)
        self.held -= reserved
        return True

    def violations(self) -> list[str]:
        """Return the identities that do not hold: a few sums, cheap enough for the end of every exchange."""
        broken = []
        if self.taken != self.returned + len(self._live):
            broken.append(SLOTS_IDENTITY)
        if self.reserved != self.settled + self.refunded + self.held:
            broken.append(TOKENS_IDENTITY)
        return broken

    def sweep(self) -> list[str]:
        """Give back what dead processes held, then hold the books against the accounts; return the identities that do not hold."""
        slots = tokens = 0
        try:
            self._table.sweep()
            self._enter()
        except Busy:
            return self.violations()
        try:
            for _, account in self._accounts.values():
                own = account.own
                slots += own[0]
                tokens += own[1]
        finally:
            self._table.leave()
        broken = self.violations()
        if slots != sum(len(grant.demand.scopes) for grant in self._live):
            broken.append(SLOTS_IDENTITY)
        if tokens != sum(len(grant.demand.scopes) * grant.demand.tokens for grant in self._live):
            broken.append(TOKENS_IDENTITY)
        return sorted(set(broken))

    @property
    def granted(self) -> int:
        """Return how many grants are out."""
        return len(self._live)

    def know(self, scopes: Iterable[Scope]) -> None:
        """Forget the accounts of all other scopes, as far as nothing of theirs is held here."""
        wanted = {scope.name: scope for scope in scopes}
        held = {scope.name for grant in self._live for scope in grant.demand.scopes}
        self._accounts = {
            name: (wanted.get(name, scope), account) for name, (scope, account) in self._accounts.items() if name in wanted or name in held
        }
        self._table.keep(wanted.keys() | held)

    def standings(self) -> Iterator[tuple[Scope, dict[limits.Limit, float], int]]:
        """Yield each scope that was used, none while nobody can count, with the shares of its limits and its reserved tokens."""
        for scope, account in list(self._accounts.values()):
            try:
                self._enter()
            except Busy:
                return
            try:
                shares = limits.used_shares(account, scope.limits, self._now(), self._unix_time())
                reserved = account.reserved
            finally:
                self._table.leave()
            yield scope, shares, reserved

    def close(self) -> None:
        """Let go of the table."""
        self._accounts.clear()
        self._table.close()

    def _account(self, scope: Scope) -> Account:
        known = self._accounts.get(scope.name)
        if known is not None and known[0] is scope:
            return known[1]
        account = self._table.account(scope.name) if known is None else known[1]
        self._accounts[scope.name] = (scope, account)
        return account

    def _account_or_own(self, scope: Scope) -> Account:
        """Return an account for what was let in already, of this process alone where there is no room."""
        try:
            return self._account(scope)
        except Full:
            self.is_full = True
            account = private_account()
            self._accounts[scope.name] = (scope, account)
            return account

    def _of(self, grant: Grant) -> list[Account]:
        if self._apart is not None and grant in self._apart.grants:
            return self._apart.accounts(grant)
        return [self._accounts[scope.name][1] for scope in grant.demand.scopes]
