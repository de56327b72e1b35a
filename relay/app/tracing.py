"""Who sends spans, if anybody is to."""

import random
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from relay import __version__
from relay.config.tree import Tracing

if TYPE_CHECKING:
    from relay.telemetry.spans import Spans


def spans_for(settings: Tracing, log: Any) -> "Spans | None":
    """Return what exports spans, None where nobody wants them or the extra for it is missing: a quarter of a second to import."""
    if settings.otlp is None:
        return None
    try:
        from relay.telemetry.spans import Spans, make_exporter
    except ImportError:
        log.warning("tracing", message="no spans are sent: that needs the extra otel (pip install relay[otel])")
        return None
    return Spans(make_exporter(settings.otlp), __version__, chance=random.random, clock=unix_offset)


def unix_offset() -> float:
    """Return the Unix time of the loop's time 0."""
    return time() - monotonic()
