"""The names, labels, buckets and help texts of the relay's metrics: what a dashboard may rely on."""

from typing import Final

from relay.telemetry.registry import Family, Merge

TTFT: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)
"""Waits for a first token, seconds."""
GAPS: Final = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
"""Gaps between tokens, seconds."""
DURATIONS: Final = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)
"""Whole requests, seconds."""
QUEUE_WAITS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Waits for a turn, seconds."""
OVERHEADS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
"""The relay's own time, seconds."""
WAITS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Waits for a place or for a connection, seconds."""
LAGS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
"""How late the event loop ran, seconds."""
SIZES: Final = (16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
"""Tokens of a request."""

REQUESTS: Final = Family(
    name="relay_requests_total",
    help="Client requests finished, by route and outcome. A stream that broke after the 200 status counts as upstream_cut, "
    "upstream_stalled or upstream_error.",
    labels=("operation", "route", "stream", "code", "outcome"),
)
STARTED: Final = Family(
    name="relay_requests_started_total",
    help="Client requests begun, answered lists of models included: finished + forgotten + lost + lists + in flight.",
)
MODEL_LISTS: Final = Family(name="relay_model_lists_total", help="Lists of models that were answered; no other metric counts them.")
FORGOTTEN: Final = Family(
    name="relay_requests_forgotten_total",
    help="Finished client requests whose series were dropped because a reload removed their route.",
)
LOST: Final = Family(
    name="relay_requests_lost_total",
    help="Client requests that a worker process took with it when it died, as far as it had told of them; none with a single process.",
)
IN_FLIGHT: Final = Family(
    name="relay_requests_in_flight",
    help="Client requests currently being served, by route; _none until one is found.",
    labels=("route", "stream"),
)
QUEUED: Final = Family(name="relay_requests_queued", help="Requests waiting for a concurrency slot, by route.", labels=("route",))
QUEUE_WAIT: Final = Family(
    name="relay_queue_wait_seconds",
    help="Time a request waited for concurrency slots of upstreams; those that found one free are not in it.",
    labels=("route",),
    buckets=QUEUE_WAITS,
)
TIME_TO_FIRST_TOKEN: Final = Family(
    name="relay_time_to_first_token_seconds",
    help="From request fully received to the first content-bearing event (text, reasoning or tool call) written to the client; "
    "streaming responses only.",
    labels=("route", "upstream"),
    buckets=TTFT,
)
UPSTREAM_TIME_TO_FIRST_TOKEN: Final = Family(
    name="relay_upstream_time_to_first_token_seconds",
    help="From sending one upstream attempt to its first content-bearing event; earlier failed attempts not included.",
    labels=("upstream",),
    buckets=TTFT,
)
INTER_TOKEN_LATENCY: Final = Family(
    name="relay_inter_token_latency_seconds",
    help="Mean gap between consecutive content-bearing events of a stream, observed once per stream.",
    labels=("route", "upstream"),
    buckets=GAPS,
)
TIME_PER_OUTPUT_TOKEN: Final = Family(
    name="relay_time_per_output_token_seconds",
    help="(last content - first content) / (output tokens - 1), once per completed stream that reported usage.",
    labels=("route", "upstream"),
    buckets=GAPS,
)
GAP: Final = Family(
    name="relay_gap_seconds_total",
    help="Silence inside streams after their first content, split into upstream, relay and client.",
    labels=("route", "blame"),
)
STALLS: Final = Family(
    name="relay_stalls_total",
    help="Gaps of a stream longer than one second, by who caused them.",
    labels=("route", "blame"),
)
REQUEST_DURATION: Final = Family(
    name="relay_request_duration_seconds",
    help="From request fully received to last byte written, by result.",
    labels=("operation", "route", "stream", "result"),
    buckets=DURATIONS,
)
OVERHEAD: Final = Family(
    name="relay_overhead_seconds",
    help="Time spent in the relay itself and not waiting for an upstream, a queue or the client.",
    labels=("phase",),
    buckets=OVERHEADS,
)
TOKENS: Final = Family(
    name="relay_tokens_total",
    help="Tokens, by type. cached_input is part of input, and reasoning part of output: never add them up.",
    labels=("route", "upstream", "type", "source"),
)
COST: Final = Family(
    name="relay_cost_usd_total",
    help="Estimated spend in US dollars, for models with a price in the configuration.",
    labels=("route", "upstream"),
)
REQUEST_TOKENS: Final = Family(name="relay_request_tokens", help="Tokens per request, by type.", labels=("route", "type"), buckets=SIZES)
ATTEMPTS: Final = Family(
    name="relay_upstream_attempts_total",
    help="Calls made to an upstream, by result. One client request may make several.",
    labels=("route", "upstream", "result"),
)
RESENDS: Final = Family(
    name="relay_stale_connection_resends_total",
    help="Requests sent again on a new connection because a kept-alive one died before it answered.",
    labels=("upstream",),
)
FALLBACKS: Final = Family(
    name="relay_fallbacks_total",
    help="Requests that moved on to another upstream, by cause.",
    labels=("route", "from_upstream", "to_upstream", "reason"),
)
RETRIES: Final = Family(
    name="relay_retries_total",
    help="Attempts made again at the same target, after a wait or with another credential, by cause.",
    labels=("route", "upstream", "reason"),
)
HEDGES: Final = Family(
    name="relay_hedges_total",
    help="Backup attempts started beside a slow one, by whether the backup's content came first.",
    labels=("route", "won"),
)
KEY_REQUESTS: Final = Family(name="relay_key_requests_total", help="Client requests finished, by key.", labels=("key", "outcome"))
KEY_TOKENS: Final = Family(name="relay_key_tokens_total", help="Tokens, by key and type.", labels=("key", "type"))
KEY_RATE_LIMITED: Final = Family(
    name="relay_key_rate_limited_total",
    help="Requests refused by a limit: rpm, tpm, concurrency or budget of the key, with the prefix key_route_ those of the key on "
    "one route, with route_ those of a route.",
    labels=("key", "limit"),
)
KEY_LIMIT_USED: Final = Family(
    name="relay_key_limit_used_ratio",
    help="Share of a key limit used in its current window.",
    labels=("key", "limit"),
    merge=Merge.MAX,
)
TOKENS_RESERVED: Final = Family(
    name="relay_tokens_reserved",
    help="Tokens reserved for requests in flight and not yet settled.",
    labels=("key",),
    merge=Merge.MAX,
)
FIDELITY: Final = Family(
    name="relay_stream_fidelity_total",
    help='Streams relayed byte for byte (mode="exact") or translated (mode="rewritten"), and why.',
    labels=("route", "mode", "why"),
)
MALFORMED_EVENTS: Final = Family(
    name="relay_malformed_events_total",
    help="Events of upstreams that could not be read; they were passed on unchanged.",
    labels=("upstream",),
)
BACKPRESSURE: Final = Family(
    name="relay_client_backpressure_seconds_total", help="Time streams waited for a slow client to take bytes.", labels=("route",)
)
CONNECT: Final = Family(
    name="relay_upstream_connect_seconds",
    help="Time to open a new upstream connection (DNS, TCP and TLS).",
    labels=("upstream",),
    buckets=WAITS,
)
UPSTREAM_LIMIT_LEFT: Final = Family(
    name="relay_upstream_ratelimit_remaining_ratio",
    help="Share of the upstream rate limit left, from its last response headers.",
    labels=("upstream", "limit"),
    merge=Merge.MIN,
)
CONNECTIONS: Final = Family(name="relay_upstream_connections", help="Open upstream connections, by state.", labels=("upstream", "state"))
UPSTREAM_IN_FLIGHT: Final = Family(name="relay_upstream_in_flight", help="Calls in flight to an upstream.", labels=("upstream",))
TARGET_HEALTH: Final = Family(
    name="relay_target_health",
    help="1 for the health state the target is in (healthy, cooling, probing), else 0.",
    labels=("route", "upstream", "target", "state"),
    merge=Merge.MAX,
)
CREDENTIALS: Final = Family(
    name="relay_upstream_credentials",
    help="Credentials of an upstream by state: healthy, cooling (refused or throttled of late), probing.",
    labels=("upstream", "state"),
    merge=Merge.MAX,
)
VIOLATIONS: Final = Family(
    name="relay_invariant_violations_total",
    help="Times an accounting identity of the relay did not hold. Anything but 0 is a bug.",
    labels=("invariant",),
)
LOOP_LAG: Final = Family(name="relay_event_loop_lag_seconds", help="How late a 100 ms timer of the event loop ran.", buckets=LAGS)
LIMITER_DEGRADED: Final = Family(
    name="relay_limiter_degraded",
    help="Whether limits are counted here alone, each in part: Redis is away, or another process was stopped. 1 or 0.",
    merge=Merge.MAX,
)
RELOAD_SUCCESSFUL: Final = Family(
    name="relay_config_last_reload_successful", help="Whether the last configuration load succeeded.", merge=Merge.MAX
)
RELOAD_TIME: Final = Family(
    name="relay_config_last_reload_success_timestamp_seconds",
    help="Unix time of the last successful configuration load.",
    merge=Merge.MAX,
)
BUILD: Final = Family(
    name="relay_build_info", help="Always 1; the labels name the build.", labels=("version", "python", "commit"), merge=Merge.MAX
)
LABEL_OVERFLOW: Final = Family(
    name="relay_label_overflow_total",
    help="Observations whose label value was folded into _other by the cardinality cap.",
    labels=("label",),
)
USAGE_DROPPED: Final = Family(
    name="relay_usage_dropped_total", help="Exchanges missing in the usage ledger because it could not be written for long."
)
SPANS_DROPPED: Final = Family(name="relay_spans_dropped_total", help="Spans dropped because the collector was behind or did not take them.")
LOG_DROPPED: Final = Family(name="relay_log_events_dropped_total", help="Log events dropped because the log writer was behind.")

WORKERS: Final = Family(name="relay_workers", help="Worker processes, by state; none with a single process.", labels=("state",))
WORKER_EXITS: Final = Family(
    name="relay_worker_exits_total",
    help="Worker processes that ended, by reason: exit (by themselves), error (with an error code) or killed (by a signal).",
    labels=("reason",),
)


def all_families() -> tuple[Family, ...]:
    """Return every family, in the order of the page."""
    return tuple(value for value in globals().values() if isinstance(value, Family))
