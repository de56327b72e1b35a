"""What a relay that is one of several worker processes needs of the others."""

from typing import Any, Protocol

from relay.app.desk import Order
from relay.gateway.planning import Siblings


class Crew(Siblings, Protocol):
    """The other workers, as one of them sees them."""

    index: int
    """From 0 to total - 1; a worker that takes a dead one's place has its index."""
    total: int
    directory: str
    """A folder of all workers' own that lives as long as their supervisor."""

    def limits_changed(self, *, are_degraded: bool) -> None:
        """Have the supervisor know whether limits are counted here alone, or cannot be counted."""

    async def page(self, path: str, accept: str) -> tuple[int, bytes, bytes]:
        """Return status, content type and body of a page that speaks for all workers."""

    async def carry_out(self, order: Order) -> dict[str, Any]:
        """Have all workers do what a person asks for, and report. Raises RelayError."""
