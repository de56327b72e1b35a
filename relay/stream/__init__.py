"""The body of one attempt on its way to the client: bytes through, marks taken, commit announced, exactly one end.

Sans-IO: whoever reads the upstream's connection calls `feed` and then `finish` once; what must happen on the client's
side is said to a `Port`, synchronously, so that a chunk wakes no task. Three relays, chosen when the head is known:

* `EventRelay`: server-sent events. Holds comments, role-only deltas and lifecycle events until the first meaningful
  event, then passes every piece as it came. Only the protocol's own terminator makes it complete.
* `WholeRelay`: JSON answers and error bodies. Holds the body until it is all there, so that a broken one can still
  become an honest error.
* `OpaqueRelay`: anything else (audio, files, encoded bodies). Passes at once; the framing proves the end.

After the commit a relay never fails: it ends, cleanly or by a cut.
"""

from relay.stream.bodies import OpaqueRelay, WholeRelay
from relay.stream.ends import DONE_GRACE_SECONDS, HOLD_SECONDS, BodyEnd, HoldBudget, Port, broken
from relay.stream.events import EventRelay
from relay.stream.flow import Brake, Flow, Tally
from relay.stream.overheard import Overheard
from relay.stream.unasked import WithoutUsage

BodyRelay = EventRelay | WholeRelay | OpaqueRelay

__all__ = [
    "DONE_GRACE_SECONDS",
    "HOLD_SECONDS",
    "BodyEnd",
    "BodyRelay",
    "Brake",
    "EventRelay",
    "Flow",
    "HoldBudget",
    "OpaqueRelay",
    "Overheard",
    "Port",
    "Tally",
    "WholeRelay",
    "WithoutUsage",
    "broken",
]
