"""Decisions over time. Nothing here does I/O, reads a clock or rolls a die; `now` and chance are arguments.

Where a request goes: `routing` (name to route), `balance` and `affinity` (order of its targets), `targets` (what is known of them),
`course` (what is tried first, and what after each failure), `owners` (objects that live at one upstream).

What a failure means: `refusals` (an upstream's words), `verdicts` (next target, blame, repeat), `trial` (whose books it is entered
in), `breaker` and `credentials` (who rests), `retries`, `ration`, `backoff` and `patience` (whether and when to try again), `signs`
(health checks).

How long to wait: `bounds` (which wait ends next), `deadlines`, `latency` and `lessons` (learned first tokens), `hedging` (backups),
`slots` (turns at a full upstream).

Who may what: `keys` and `keyformat`, `limits` over `accounts`, `sliding` minutes and `periods`, `shares` (what one of several relays
may give away by itself), `estimates` of tokens. `window` counts for whoever judges by what came of late.
"""
