"""What the relay tells about itself: each `Summary` told once to metrics, log, ledger and spans.

Metrics: `families` declares them, `registry` counts, `observations` enters one exchange, `metrics` puts it together, `exposition`
renders a scrape. The log: `logs`, with `libraries` for what others say, `redaction` for what must not be said and
`prompts` for those who want them said. Besides: `spans`, `exemplars` (a trace beside a bucket of a histogram),
`usage` (for the ledger), `lag` of the event loop, `quotas` of upstreams, `rules` and `rule_tests` for Prometheus. `observers` tells
several of them in order.
"""
