"""A limiter over a table of accounts, whose memory is its own or shared: every call is one step under the table's lock.

It also keeps books of its own on what this process was granted, so that a grant that was lost, or given back twice, shows.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic_ns, time
from typing import Final

from relay.errors import Overloaded
from relay.policy import limits
from relay.policy.accounts import Account
from relay.policy.limits import Demand, Grant, Refusal, Scope
from relay.policy.shares import Use
from relay.stores.gates import SharedGate
from relay.stores.table import Stalled, Table

SLOTS_IDENTITY: Final = "slots_taken_are_returned_or_held"
TOKENS_IDENTITY: Final = "tokens_reserved_are_settled_refunded_or_held"


def monotonic_ms() -> int:
    """Return the machine's monotonic clock, the same in all its processes."""
    return monotonic_ns() // 1_000_000


class Ledger:
    """A `ports.Limiter`."""

    __slots__ = (
        "_accounts",
        "_late",
        "_live",
        "_now",
        "_table",
        "_unix_time",
        "held",
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
        """Take what `demand` asks for, or refuse and take nothing. Raises Overloaded while nobody can count."""
        return self.try_take(demand)

    def try_take(self, demand: Demand) -> Grant | Refusal:
        """Do what `admit` does, which never waits here."""
        accounts = self._enter_for(demand.scopes)
        try:
            answer = limits.admit(accounts, demand, self._now(), self._unix_time())
        finally:
            self._table.leave()
        if isinstance(answer, Grant):
            self._begin(answer)
        return answer

    def take(self, demand: Demand) -> Grant:
        """Take what `demand` asks for, whether there is room or not: somebody else has admitted it. Raises Overloaded as `admit` does."""
        accounts = self._enter_for(demand.scopes)
        try:
            grant = limits.take(accounts, demand, self._now())
        finally:
            self._table.leave()
        self._begin(grant)
        return grant

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
        budget = scope.limits.budget
        (account,) = self._enter_for((scope,))
        try:
            now = self._now()
            used = 0 if budget is None else budget.amount - account.left(budget, self._unix_time())
            return Use(account.requests.total(now), account.tokens.total(now), account.slots, used)
        finally:
            self._table.leave()

    def debit(self, grant: Grant, tokens: int) -> bool:
        """Count that `tokens` have flowed in all; tell whether every limit of tokens still holds."""
        if tokens <= grant.demand.tokens + grant.extra:
            return True
        accounts = self._of(grant)
        try:
            self._enter()
        except Stalled:
            return True  # the next debit counts these as well, or the settlement
        try:
            return limits.debit(accounts, grant, tokens, self._now(), self._unix_time())
        finally:
            self._table.leave()

    def settle(self, grant: Grant, tokens: int, cost: int) -> None:
        """Replace what was reserved by what was used, in tokens and billionths of a dollar; a grant that is over stays as it is."""
        if self._end(grant, tokens):
            accounts = self._of(grant)
            self._change(lambda: limits.settle(accounts, grant, tokens, cost, self._now(), self._unix_time()))

    def release(self, grant: Grant) -> None:
        """Give everything back: nothing was sent anywhere."""
        if self._end(grant, 0):
            accounts = self._of(grant)
            self._change(lambda: limits.release(accounts, grant, self._now(), self._unix_time()))

    def gate(self, name: str) -> SharedGate:
        """Return the gate of an upstream's slots, which all processes at this table share."""
        # No scope's name holds a character that does not print.
        account = partial(self._table.account, f"\0{name}")
        return SharedGate(account, enter=self._enter, leave=self._table.leave, change=self._change, now=self._now)

    @property
    def is_stalled(self) -> bool:
        """Tell whether nobody can count, because a process that was counting does not go on."""
        return self._table.is_stalled

    def _enter_for(self, scopes: Iterable[Scope]) -> list[Account]:
        try:
            accounts = [self._account(scope) for scope in scopes]
            self._enter()
        except Stalled:
            # To let a request in uncounted would break the limit, to wait would hold up every stream of this process.
            raise Overloaded from None
        return accounts

    def _enter(self) -> None:
        self._table.enter()
        if self._late:
            late, self._late = self._late, []
            for change in late:
                change()

    def _change(self, change: Callable[[], None]) -> None:
        """Change accounts now, or as soon as that can be done."""
        try:
            self._enter()
        except Stalled:
            self._late.append(change)
            return
        try:
            change()
        finally:
            self._table.leave()

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
        except Stalled:
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
            except Stalled:
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

    def _of(self, grant: Grant) -> list[Account]:
        return [self._accounts[scope.name][1] for scope in grant.demand.scopes]
