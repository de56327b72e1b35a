"""A process that shares limits with others: told what to do by lines on its stdin, it answers by lines on its stdout."""

import asyncio
import json
import sys
import time

from relay.config.tree import Budget, Limits, Period
from relay.policy.limits import Demand, Grant, Scope
from relay.stores import open_ledger


def main() -> None:
    directory, told = sys.argv[1], json.loads(sys.argv[2])
    budget = told.pop("budget", None)
    made = Budget(amount=budget, is_money=False, period=Period.MONTH) if budget else None
    scopes = (Scope(limits=Limits(**told, budget=made), key="alice"),)
    ledger = open_ledger(directory)
    held: list[Grant] = []
    longest = 0.0
    print("ready", flush=True)
    for line in sys.stdin:
        verb, _, number = line.partition(" ")
        count = int(number or 0)
        match verb.strip():
            case "admit":
                answers = [asyncio.run(ledger.admit(Demand(scopes=scopes, tokens=1))) for _ in range(count)]
                granted = [answer for answer in answers if isinstance(answer, Grant)]
                held += granted
                result = len(granted)
            case "scope":
                scopes = (Scope(limits=scopes[0].limits, key=f"key-{count}"),)
                result = count
            case "churn":
                # The most ever held, seen from inside the lock's turns: everybody's slots at once.
                result = 0
                for _ in range(count):
                    answer = asyncio.run(ledger.admit(Demand(scopes=scopes, tokens=1)))
                    if isinstance(answer, Grant):
                        result = max(result, next(iter(ledger._accounts.values()))[1].slots)
                        ledger.settle(answer, 1, 0)
            case "settle":
                for grant in held:
                    began_at = time.monotonic()
                    ledger.settle(grant, 1, 0)
                    longest = max(longest, time.monotonic() - began_at)
                result = len(held)
                held.clear()
            case "longest":
                # How long a settlement took, in milliseconds: nothing in it may wait.
                result = int(longest * 1000)
            case "sweep":
                result = len(ledger.sweep())
            case "die":
                # With the lock, in the middle of a change.
                ledger._table.enter()
                next(iter(ledger._accounts.values()))[1].cells[0] += 77  # type: ignore[index]
                result = 0
                print(result, flush=True)
                if sys.stdin.readline().strip() == "go on":
                    next(iter(ledger._accounts.values()))[1].cells[0] -= 77  # type: ignore[index]
                    ledger._table.leave()
                continue
            case _:
                break
        print(result, flush=True)
    ledger.close()


if __name__ == "__main__":
    main()
