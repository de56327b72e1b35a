"""From a plan of targets to one answer: the attempt loop, and all that happens in one attempt.

`forwarder` is the loop: offer targets, attempt, fall back until something is committed. Before a target there may be a wait for one
of its `turns`. An `attempt` is one try at one target; `answering` tells by the answer's head how its body is relayed, `waiting` bounds
an upload and the rest of an answer that nobody reads, `tunnel` carries a WebSocket. `race` starts a backup beside a slow attempt,
`heartbeat` fills a silent stream with comments. `ports` are the protocols that rooms with sockets implement for this one.
"""

from relay.forward.forwarder import Forwarder

__all__ = ["Forwarder"]
