"""One request from its arrival to its one end.

`gateway` is that life, step by step. `reception` finds who calls and what is asked for, `planning` where it goes, `admission` whether
limits allow it and what it used of them, `catalog` answers for the list of models.
"""

from relay.gateway.gateway import Client, Gateway, Observer

__all__ = ["Client", "Gateway", "Observer"]
