"""When a second attempt may start beside a slow first one: after a fixed time or the learned p95.

How many may is a `ration` of the route's: at most `at_most` times its requests, in the last minute and over any run.
"""

from typing import Final

from relay.config.tree import Hedge
from relay.policy.latency import Latencies

WINDOW_SECONDS: Final = 60
"""Hedges are a share of the requests of this time: long enough for a share of a few in a hundred to be one."""
SHARE: Final = 0.95
MIN_SAMPLES: Final = 20
"""Answers to prompts of a size before their 95th percentile is one."""


def delay_of(hedge: Hedge, latencies: Latencies | None, prompt_bytes: int) -> float | None:
    """Return after how many seconds without content a hedge is due; None while the p95 that was asked for is not known yet."""
    if hedge.after is not None or latencies is None:
        return hedge.after
    return latencies.quantile(prompt_bytes, SHARE, at_least=MIN_SAMPLES)
