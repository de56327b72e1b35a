"""`python -m relay.workers INDEX DESCRIPTOR`: what a supervisor starts; a person has no use for it."""

import sys

from relay.transport.tls import drop_unused_contexts

if __name__ == "__main__":
    drop_unused_contexts()  # before the rest is imported, which then takes their memory
    from relay.workers.worker import main

    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
