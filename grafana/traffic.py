"""The rows about requests: is it up, is it slow, how much is it, what goes wrong."""

from typing import Final

from grafana.board import Panel, Query, Row
from grafana.selectors import FU, TOKENS_PER_SECOND, F, R, S, quantile_of, quantiles
from relay.config.tree import Slo
from relay.telemetry.rules import BAD_OUTCOMES, COUNTED_OUTCOMES, budget

NO_COLOUR: Final = ((0.0, "text"),)


def overview(slo: Slo) -> Row:
    """Answer whether it is up and keeps its promises."""
    share = budget(slo)
    bad, counted = f"relay_requests_total{{{F}, {BAD_OUTCOMES}}}", f"relay_requests_total{{{F}, {COUNTED_OUTCOMES}}}"
    return Row(
        title="Overview",
        panels=(
            _stat(
                "Requests / s",
                "Client requests that ended, whatever became of them.",
                "reqps",
                f"sum(rate(relay_requests_total{{{F}}}[{R}]))",
            ),
            _stat(
                "Failed",
                "Share of requests that the relay or an upstream failed. What callers got wrong, a limit refused or a client broke off is"
                " in neither number.",
                "percentunit",
                f"(sum(rate({bad}[{R}])) or vector(0)) / (sum(rate({counted}[{R}])) > 0)",
                steps=((0, "green"), (float(share), "orange"), (5 * float(share), "red")),
                decimals=2,
            ),
            _stat(
                "TTFT p95",
                "95 % of streams show their first content (text, reasoning or a tool call, written to the client) within this time.",
                "s",
                quantile_of(0.95, "relay_time_to_first_token_seconds", FU),
                steps=((0, "green"), (slo.ttft, "orange"), (2 * slo.ttft, "red")),
                decimals=2,
            ),
            _stat(
                "Output tok / s",
                "Tokens that upstreams generated, as they report them.",
                TOKENS_PER_SECOND,
                f'sum(rate(relay_tokens_total{{{FU}, type="output"}}[{R}]))',
            ),
            _stat(
                "Tok / s of a stream",
                "How fast the median stream generates: one over its time per output token, where usage was reported.",
                TOKENS_PER_SECOND,
                f"1 / {quantile_of(0.5, 'relay_time_per_output_token_seconds', FU)}",
                decimals=0,
            ),
            _stat("In flight", "Requests being served now.", "short", f"sum(relay_requests_in_flight{{{F}}})", decimals=0),
            _stat(
                "Error budget left",
                f"Part of the allowance of {float(share):.3%} failures that is left over the range shown. Below 0 the promise is broken.",
                "percentunit",
                f"1 - (sum(increase({bad}[$__range])) or vector(0)) / ({share} * sum(increase({counted}[$__range])) > 0)",
                steps=((-1000, "red"), (0, "orange"), (0.5, "green")),
                decimals=0,
                is_instant=True,
            ),
            _stat(
                "Relays not reached",
                "Relays that Prometheus cannot scrape now.",
                "none",
                f"count(up{{{S}}} == 0) or vector(0)",
                steps=((0, "green"), (1, "red")),
                decimals=0,
            ),
        ),
    )


def _stat(
    title: str,
    about: str,
    unit: str,
    expr: str,
    *,
    steps: tuple[tuple[float, str], ...] = NO_COLOUR,
    decimals: int | None = None,
    is_instant: bool = False,
) -> Panel:
    query = Query(expr=expr, is_instant=is_instant)
    return Panel(title=title, about=about, queries=(query,), kind="stat", unit=unit, width=3, height=4, steps=steps, decimals=decimals)


def latency(slo: Slo) -> Row:
    """Answer whether it is slow, and for whom."""
    ttft = "relay_time_to_first_token_seconds"
    promise = ((0.0, "transparent"), (slo.ttft, "red"))
    return Row(
        title="Latency",
        panels=(
            Panel(
                title="Time to first token",
                about="From the request fully received to the first content event written to the client, failed attempts included."
                " The line is what is promised.",
                unit="s",
                queries=quantiles(ttft, FU, 0.5, 0.9, 0.95, 0.99),
                steps=promise,
            ),
            Panel(
                title="TTFT heatmap",
                about="How many streams showed their first content after which time; two bands mean two kinds of requests or targets.",
                kind="heatmap",
                unit="s",
                queries=(Query(expr=f"sum by (le) (increase({ttft}_bucket{{{FU}}}[{R}]))", legend="{{le}}", is_heatmap=True),),
            ),
            Panel(
                title="TTFT p95 by route",
                about="Which route is slow.",
                unit="s",
                queries=(Query(expr=quantile_of(0.95, ttft, FU, "route"), legend="{{route}}"),),
                steps=promise,
            ),
            Panel(
                title="Inter-token latency",
                about="Mean gap between the content events of a stream, as they came from the upstream; each stream counts once.",
                unit="s",
                queries=quantiles("relay_inter_token_latency_seconds", FU, 0.5, 0.95, 0.99),
            ),
            Panel(
                title="Request duration",
                about="From the request fully received to the last byte written, for requests that ended well.",
                unit="s",
                queries=quantiles("relay_request_duration_seconds", f'{F}, result="good"', 0.5, 0.95, 0.99),
            ),
            Panel(
                title="Relay overhead",
                about="The relay's own part of a request: neither waiting for an upstream nor for the client.",
                unit="s",
                queries=tuple(
                    Query(expr=quantile_of(quantile, "relay_overhead_seconds", S, "phase"), legend=f"p{quantile * 100:g} {{{{phase}}}}")
                    for quantile in (0.5, 0.99)
                ),
            ),
        ),
    )


def throughput() -> Row:
    """Tell how much passes, and how."""
    cached = (
        f'sum(rate(relay_tokens_total{{{FU}, type="cached_input"}}[{R}])) / (sum(rate(relay_tokens_total{{{FU}, type="input"}}[{R}])) > 0)'
    )
    return Row(
        title="Throughput",
        panels=(
            Panel(
                title="Requests / s by route",
                about="Client requests that ended.",
                unit="reqps",
                queries=(Query(expr=f"sum by (route) (rate(relay_requests_total{{{F}}}[{R}]))", legend="{{route}}"),),
                is_stacked=True,
            ),
            Panel(
                title="Tokens / s by type",
                about="As upstreams report them. Cached input is part of input, and reasoning of output, so neither is added here.",
                unit=TOKENS_PER_SECOND,
                queries=(Query(expr=f'sum by (type) (rate(relay_tokens_total{{{FU}, type=~"input|output"}}[{R}]))', legend="{{type}}"),),
            ),
            Panel(
                title="Prompt cache share",
                about="Share of input tokens that upstreams took from their prompt cache.",
                unit="percentunit",
                queries=(Query(expr=cached, legend="cached"),),
                has_ceiling=True,
            ),
            Panel(
                title="Tokens per request",
                about="Size of prompts and answers.",
                queries=tuple(
                    Query(expr=quantile_of(quantile, "relay_request_tokens", F, "type"), legend=f"p{quantile * 100:g} {{{{type}}}}")
                    for quantile in (0.5, 0.95)
                ),
            ),
            Panel(
                title="In flight and queued",
                about="Requests being served, and those that wait for a place at an upstream.",
                queries=(
                    Query(expr=f"sum by (route) (relay_requests_in_flight{{{F}}})", legend="{{route}}"),
                    Query(expr=f"sum by (route) (relay_requests_queued{{{F}}})", legend="{{route}} queued"),
                ),
                is_stacked=True,
            ),
            Panel(
                title="Queue wait p95",
                about="How long requests waited for a place at an upstream before it was called.",
                unit="s",
                queries=(Query(expr=quantile_of(0.95, "relay_queue_wait_seconds", F, "route"), legend="{{route}}"),),
            ),
        ),
    )


def errors(slo: Slo) -> Row:
    """Tell what goes wrong, and how fast the budget goes."""
    share = budget(slo)
    failed = (
        f"sum by (route) (rate(relay_requests_total{{{F}, {BAD_OUTCOMES}}}[{R}]))"
        f" / (sum by (route) (rate(relay_requests_total{{{F}, {COUNTED_OUTCOMES}}}[{R}])) > 0)"
    )
    return Row(
        title="Errors",
        panels=(
            Panel(
                title="Requests by outcome",
                about="How requests ended that were not answered whole; docs/errors.md says whose side each outcome is on.",
                unit="reqps",
                queries=(
                    Query(expr=f'sum by (outcome) (rate(relay_requests_total{{{F}, outcome!="complete"}}[{R}])) > 0', legend="{{outcome}}"),
                ),
                width=6,
                is_stacked=True,
            ),
            Panel(
                title="Failure ratio by route",
                about="Share of requests that the relay or an upstream failed.",
                unit="percentunit",
                queries=(Query(expr=failed, legend="{{route}}"),),
                width=6,
                has_ceiling=True,
            ),
            Panel(
                title="Burn rate",
                about="How many times faster than allowed the error budget is being used up: 1 lasts 30 days, 14.4 pages somebody. From the"
                " recording rules.",
                queries=tuple(
                    Query(
                        expr=f'route:relay_requests_bad:ratio_rate{window}{{route=~"$route"}} / {share}', legend=f"{{{{route}}}} {window}"
                    )
                    for window in ("1h", "6h")
                ),
                width=6,
                steps=((0, "transparent"), (6, "orange"), (14.4, "red")),
            ),
            Panel(
                title="Fallbacks / s",
                about="Requests that moved on to another upstream, from which to which and why.",
                unit="reqps",
                queries=(
                    Query(
                        expr=f"sum by (from_upstream, to_upstream, reason) (rate(relay_fallbacks_total{{{F}}}[{R}]))",
                        legend="{{from_upstream}} to {{to_upstream}}: {{reason}}",
                    ),
                ),
                width=6,
            ),
            Panel(
                title="Stalls by culprit",
                about="Streams that stood still for more than a second, by who had the largest part in it.",
                unit="ops",
                queries=(Query(expr=f"sum by (blame) (rate(relay_stalls_total{{{F}}}[{R}]))", legend="{{blame}}"),),
                width=6,
            ),
            Panel(
                title="Silence in streams by culprit",
                about="Time between the events of streams, split into waiting for the upstream, for the relay and for the client:"
                " 1 is one stream's time. The upstream's part is what generating takes.",
                unit="none",
                queries=(Query(expr=f"sum by (blame) (rate(relay_gap_seconds_total{{{F}}}[{R}]))", legend="{{blame}}"),),
                width=6,
            ),
            Panel(
                title="Streams by fidelity",
                about="Streams passed on byte for byte (exact), or not, and why.",
                unit="reqps",
                queries=(Query(expr=f"sum by (mode, why) (rate(relay_stream_fidelity_total{{{F}}}[{R}]))", legend="{{mode}} {{why}}"),),
                width=6,
                is_stacked=True,
            ),
            Panel(
                title="Hedges / s",
                about="Backup attempts beside a slow first one, on routes with `hedge`; won: the backup's content came first.",
                unit="reqps",
                queries=(Query(expr=f"sum by (route, won) (rate(relay_hedges_total{{{F}}}[{R}]))", legend="{{route}} won={{won}}"),),
                width=6,
            ),
        ),
    )
