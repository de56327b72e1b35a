"""The rows about those who take part: upstreams, keys, the relay itself."""

from grafana.board import Panel, Query, Row
from grafana.selectors import FU, F, K, R, S, U, quantile_of


def upstreams() -> Row:
    """Tell whose fault it is."""
    state = {name: f'max by (target) (relay_target_health{{{FU}, state="{name}"}})' for name in ("probing", "cooling")}
    health = f"{state['probing']} + 2 * {state['cooling']}"
    return Row(
        title="Upstreams",
        panels=(
            Panel(
                title="Target health",
                about="Targets that keep failing rest (cooling) and are then probed with single requests.",
                kind="state-timeline",
                unit="none",
                queries=(Query(expr=health, legend="{{target}}"),),
                mappings=(
                    {"type": "value", "options": {"0": {"text": "healthy", "color": "green", "index": 0}}},
                    {"type": "value", "options": {"1": {"text": "probing", "color": "orange", "index": 1}}},
                    {"type": "range", "options": {"from": 2, "to": 3, "result": {"text": "cooling", "color": "red", "index": 2}}},
                ),
            ),
            Panel(
                title="Attempts by result",
                about="Calls to upstreams and what came of them; one request may make several.",
                unit="reqps",
                queries=(
                    Query(
                        expr=f"sum by (upstream, result) (rate(relay_upstream_attempts_total{{{FU}}}[{R}])) > 0",
                        legend="{{upstream}} {{result}}",
                    ),
                ),
            ),
            Panel(
                title="Attempt TTFT p95",
                about="From sending one attempt to its first content event. It begins anew with every attempt, so a slow first choice is"
                " not blamed on the fallback.",
                unit="s",
                queries=(
                    Query(expr=quantile_of(0.95, "relay_upstream_time_to_first_token_seconds", U, "upstream"), legend="{{upstream}}"),
                ),
            ),
            Panel(
                title="Connections",
                about="Open connections to upstreams.",
                queries=(Query(expr=f"sum by (upstream, state) (relay_upstream_connections{{{U}}})", legend="{{upstream}} {{state}}"),),
                width=8,
            ),
            Panel(
                title="New-connection time p95",
                about="DNS, TCP and TLS together; kept-alive connections need none of it.",
                unit="s",
                queries=(Query(expr=quantile_of(0.95, "relay_upstream_connect_seconds", U, "upstream"), legend="{{upstream}}"),),
            ),
            Panel(
                title="Upstream rate limit left",
                about="Share of the account's own limit that is left, as the last answer of the upstream said.",
                unit="percentunit",
                queries=(
                    Query(
                        expr=f"min by (upstream, limit) (relay_upstream_ratelimit_remaining_ratio{{{U}}})", legend="{{upstream}} {{limit}}"
                    ),
                ),
                has_ceiling=True,
            ),
            Panel(
                title="Calls in flight",
                about="Attempts under way at each upstream.",
                queries=(Query(expr=f"sum by (upstream) (relay_upstream_in_flight{{{U}}})", legend="{{upstream}}"),),
                is_stacked=True,
            ),
            Panel(
                title="Credentials",
                about="Keys of each upstream by state. One that was refused or throttled rests (cooling) and is then tried again.",
                queries=(Query(expr=f"sum by (upstream, state) (relay_upstream_credentials{{{U}}})", legend="{{upstream}} {{state}}"),),
            ),
            Panel(
                title="Flaws of upstreams",
                about="Kept-alive connections that had died when they were used again, so that the request was sent twice; and events"
                " that could not be read and were passed on as they are.",
                unit="reqps",
                queries=(
                    Query(
                        expr=f"sum by (upstream) (rate(relay_stale_connection_resends_total{{{U}}}[{R}]))", legend="{{upstream}} sent again"
                    ),
                    Query(
                        expr=f"sum by (upstream) (rate(relay_malformed_events_total{{{U}}}[{R}]))", legend="{{upstream}} unreadable events"
                    ),
                ),
            ),
        ),
    )


def keys() -> Row:
    """Tell who is using it."""
    return Row(
        title="Keys and cost",
        is_collapsed=True,
        panels=(
            Panel(
                title="Top keys by tokens",
                about="Input and output tokens over the range shown.",
                kind="bargauge",
                queries=(
                    Query(
                        expr=f'topk(10, sum by (key) (increase(relay_key_tokens_total{{{K}, type=~"input|output"}}[$__range])))',
                        legend="{{key}}",
                        is_instant=True,
                    ),
                ),
                width=8,
            ),
            Panel(
                title="Requests / s by key",
                about="The ten keys with the most requests.",
                unit="reqps",
                queries=(Query(expr=f"topk(10, sum by (key) (rate(relay_key_requests_total{{{K}}}[{R}])))", legend="{{key}}"),),
                width=8,
            ),
            Panel(
                title="Refused by a limit",
                about="Requests that got a 429 from the relay itself, by whose limit and which.",
                unit="reqps",
                queries=(Query(expr=f"sum by (key, limit) (rate(relay_key_rate_limited_total{{{K}}}[{R}]))", legend="{{key}} {{limit}}"),),
            ),
            Panel(
                title="Spend",
                about="Estimated US dollars in the hour before, for models with a price in the configuration.",
                unit="currencyUSD",
                queries=(Query(expr=f"sum by (route) (increase(relay_cost_usd_total{{{FU}}}[1h]))", legend="{{route}}"),),
                width=8,
            ),
            Panel(
                title="Limit used",
                about="Share of each key's limits that is used in the window they count over.",
                kind="bargauge",
                unit="percentunit",
                queries=(
                    Query(expr=f"max by (key, limit) (relay_key_limit_used_ratio{{{K}}})", legend="{{key}} {{limit}}", is_instant=True),
                ),
                width=8,
                steps=((0, "green"), (0.75, "orange"), (0.9, "red")),
                has_ceiling=True,
            ),
            Panel(
                title="Tokens reserved",
                about="Tokens set aside for requests in flight, until their usage is known; at rest it is 0.",
                queries=(Query(expr=f"max by (key) (relay_tokens_reserved{{{K}}})", legend="{{key}}"),),
                width=8,
            ),
        ),
    )


def internals() -> Row:
    """Tell how the process is."""
    nothing = "a bug of the relay, records that nobody takes fast enough, more names than have series, limits without their Redis"
    single = f"count by (instance) (relay_build_info{{{S}}}) unless on (instance) relay_workers{{{S}}}"
    named = f'label_replace({single}, "state", "single", "", "")'
    return Row(
        title="Relay internals",
        is_collapsed=True,
        panels=(
            Panel(
                title="CPU",
                about="Share of one core.",
                unit="percentunit",
                queries=(Query(expr=f"rate(process_cpu_seconds_total{{{S}}}[{R}])", legend="{{instance}}"),),
            ),
            Panel(
                title="Memory",
                about="Resident memory.",
                unit="bytes",
                queries=(Query(expr=f"process_resident_memory_bytes{{{S}}}", legend="{{instance}}"),),
            ),
            Panel(
                title="Event-loop lag p99",
                about="How late a timer of the event loop runs: everything in the process waits as long.",
                unit="s",
                queries=(Query(expr=quantile_of(0.99, "relay_event_loop_lag_seconds", S, "instance"), legend="{{instance}}"),),
            ),
            Panel(
                title="Open files",
                about="Sockets above all.",
                queries=(Query(expr=f"process_open_fds{{{S}}}", legend="{{instance}}"),),
            ),
            Panel(
                title="Processes",
                about="Those that serve: workers by state, or the single process of a relay without. What ended was replaced.",
                queries=(
                    Query(expr=f"sum by (instance, state) (relay_workers{{{S}}}) or {named}", legend="{{instance}} {{state}}"),
                    Query(expr=f"sum(increase(relay_worker_exits_total{{{S}}}[{R}])) or vector(0)", legend="ended"),
                ),
            ),
            Panel(
                title="Slow clients",
                about="Streams that stand still because their client does not read: 1 is one stream waiting all the time.",
                queries=(Query(expr=f"sum by (route) (rate(relay_client_backpressure_seconds_total{{{F}}}[{R}]))", legend="{{route}}"),),
            ),
            Panel(
                title="Should be nothing",
                about=f"What should never be seen: {nothing}.",
                queries=(
                    Query(
                        expr=f"sum by (invariant) (increase(relay_invariant_violations_total{{{S}}}[{R}]))", legend="violated {{invariant}}"
                    ),
                    Query(expr=f"sum(increase(relay_log_events_dropped_total{{{S}}}[{R}]))", legend="log lines dropped"),
                    Query(expr=f"sum(increase(relay_spans_dropped_total{{{S}}}[{R}]))", legend="spans dropped"),
                    Query(expr=f"sum(increase(relay_usage_dropped_total{{{S}}}[{R}]))", legend="usage records dropped"),
                    Query(expr=f"sum(relay_limiter_degraded{{{S}}})", legend="limits counted alone"),
                    Query(expr=f"sum(increase(relay_label_overflow_total{{{S}}}[{R}])) or vector(0)", legend="names folded into _other"),
                ),
                width=24,
                height=6,
            ),
            Panel(
                title="Build and age of the configuration",
                about="What runs where, and how long ago its configuration was loaded.",
                kind="table",
                unit="none",
                queries=(
                    Query(expr=f"relay_build_info{{{S}}}", is_instant=True, is_table=True),
                    Query(expr=f"time() - relay_config_last_reload_success_timestamp_seconds{{{S}}}", is_instant=True, is_table=True),
                ),
                width=24,
                height=5,
            ),
        ),
    )
