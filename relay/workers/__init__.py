"""Several worker processes behind one address: a supervisor that keeps them running and never touches a stream.

Each worker is a whole relay with a listener of its own on the shared address (SO_REUSEPORT): the kernel deals new
connections out, so nothing stands between a client and its worker. The supervisor holds the address (bound, not
listening), restarts what dies, has a reload taken by all or by none, and answers for all of them: one `/metrics`, one
`/readyz`. The two sides talk over a socket pair, in `messages`; a worker whose pair closes has lost its supervisor, drains
and ends.

`process` is the supervisor's, `supervisor` what it does, `child` a worker as it sees one, `restarts` when to start it again; `worker`
is the other side, `channel` what lies between. `sums` makes one page of all, `orders` are a person's to all of them.
"""

from relay.workers.process import run

__all__ = ["run"]
