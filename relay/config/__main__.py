"""`python -m relay.config FILE [LISTEN]`: what a relay starts to have its file read again; a person has no use for it."""

import os
import sys

from relay.config.apart import attempt

if __name__ == "__main__":
    sys.stdout.buffer.write(attempt(sys.argv[1], os.environ, sys.argv[2] if len(sys.argv) > 2 else None))
