"""`python -m tests.fakes.buggy serve ...`: the relay with one bug, for what only a bug brings about.

No input is known to reach one. Who asks here for the model `bug` meets an exception where the upstream's request is made.
"""

import sys
from typing import Any

from relay.cli import main
from relay.providers.openai import OpenAIProvider

MODEL = "bug"
_encode = OpenAIProvider.encode


def _stumble(self: OpenAIProvider, request: Any, *values: Any, **more: Any) -> Any:
    if request.model == MODEL:
        raise RuntimeError("planted")
    return _encode(self, request, *values, **more)


if __name__ == "__main__":
    OpenAIProvider.encode = _stumble  # type: ignore[method-assign]
    sys.exit(main())
