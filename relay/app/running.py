"""The attempts under way, for a stop that has to end them."""

from relay.exchange import Outcome
from relay.forward.attempt import Attempting


class Running:
    """The attempts under way."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: set[Attempting] = set()

    def begin(self, run: Attempting) -> None:
        """Count an attempt in."""
        self._runs.add(run)

    def end(self, run: Attempting) -> None:
        """Count an attempt out."""
        self._runs.discard(run)

    def cut_alone(self) -> None:
        """End every attempt whose client has left."""
        for run in list(self._runs):
            if run.is_alone:
                run.cut(Outcome.DRAINED, "server_shutting_down")

    def cut_all(self, outcome: Outcome, code: str) -> None:
        """End every attempt."""
        for run in list(self._runs):
            run.cut(outcome, code)
