"""When a second attempt may start beside a slow first one: after a fixed time or the learned p95.

How many may is a `ration` of the route's: at most `at_most` times its requests, in the last minute and over any run.
"""

from typing import Final

from relay.policy.latency import Latencies

WINDOW_SECONDS: Final = 60
"""Hedges are a share of the requests of this time: long enough for a share of a few in a hundred to be one."""
SHARE: Final = 0.95
MIN_SAMPLES: Final = 20
"""Answers to prompts of a size before their 95th percentile is one."""


def delay_of(latencies: Latencies, prompt_tokens: int) -> float | None:
    """Return after how many seconds without content a hedge is due, by the learned p95; None while that is not known yet."""
    return latencies.quantile(prompt_tokens, SHARE, at_least=MIN_SAMPLES)
