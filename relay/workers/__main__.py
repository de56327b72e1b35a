"""`python -m relay.workers INDEX DESCRIPTOR`: what a supervisor starts; a person has no use for it."""

import sys

from relay.workers.worker import main

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
