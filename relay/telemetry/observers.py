"""Tells several observers of exchanges, in order."""

from collections.abc import Iterable
from typing import Protocol

from relay.exchange import Exchange, Summary


class Observer(Protocol):
    """Who is told what happens to exchanges."""

    def began(self) -> None:
        """An exchange has begun."""

    def routed(self, exchange: Exchange) -> None:
        """Its route is known."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """It is over: called exactly once."""

    def violated(self, identity: str) -> None:
        """An accounting identity of this name does not hold."""

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """A bug of ours ended it."""


class Observers:
    """An observer made of several."""

    __slots__ = ("_observers",)

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)

    def began(self) -> None:
        """An exchange has begun."""
        for observer in self._observers:
            observer.began()

    def routed(self, exchange: Exchange) -> None:
        """Its route is known."""
        for observer in self._observers:
            observer.routed(exchange)

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """It is over."""
        for observer in self._observers:
            observer.ended(exchange, summary)

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """A bug of ours ended it."""
        for observer in self._observers:
            observer.crashed(exchange, error)

    def violated(self, identity: str) -> None:
        """An accounting identity does not hold."""
        for observer in self._observers:
            observer.violated(identity)
