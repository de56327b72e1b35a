"""What the queries of the board have in common: the selectors of its variables, and quantiles.

S is one of the relays, F also one of the routes, FU also one of the upstreams; U one of the upstreams, K one of the keys.
"""

from typing import Final

from grafana.board import Query

S: Final = 'job=~"$job", instance=~"$instance"'
F: Final = f'{S}, route=~"$route"'
FU: Final = f'{F}, upstream=~"$upstream"'
U: Final = f'{S}, upstream=~"$upstream"'
K: Final = f'{S}, key=~"$key"'
R: Final = "$__rate_interval"

TOKENS_PER_SECOND: Final = "suffix: tok/s"


def quantiles(metric: str, selector: str, *shares: float) -> tuple[Query, ...]:
    """Return a query per quantile of a histogram."""
    return tuple(Query(expr=quantile_of(quantile, metric, selector), legend=f"p{quantile * 100:g}") for quantile in shares)


def quantile_of(quantile: float, metric: str, selector: str, *by: str) -> str:
    """Return the expression of one quantile, per label named in `by`."""
    labels = ", ".join((*by, "le"))
    return f"histogram_quantile({quantile:g}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}[{R}])))"
