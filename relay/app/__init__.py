"""The composition root: makes every part, starts them, drains and stops them.

`application` puts the parts together, `reloading` swaps a configuration, `pages` are the relay's own paths, `listening`
binds the addresses, `process` is a relay as a process of its own with its signals. `running` knows the attempts under way.

What goes on beside requests: `checks` of upstreams' health, `keywatch` over the file of keys, `accounts` of limits held against each
other, `tracing` (who sends spans). `admin` is the endpoint for a person, `desk` what it tells and does. `crew` is what a relay that is
one of several workers needs of the others.
"""

from collections.abc import Callable

from relay.config.tree import Config
from relay.transport.tls import drop_unused_contexts


def run(config: Config, *, reload: Callable[[], Config] | None, announce: Callable[[str], None]) -> int:
    """Serve `config` until a signal ends it; call `announce` with the address once it listens. Returns an exit code."""
    drop_unused_contexts()  # before the rest is imported, which then takes their memory
    from relay.app import process

    return process.run(config, reload=reload, announce=announce)
