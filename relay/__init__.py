"""relay: a streaming reverse proxy for LLM APIs. This page is the map of the package.

The life of a request, and the room each step happens in:

1. `transport` reads the head off the client's connection and hands the request to the `gateway`. Its `reception` finds the key, has
   `dialects` tell the operation by the path and `wire.body` parse the body once, and makes a `ClientRequest`.
2. `gateway.planning` has `policy.routing` turn the model's name into an ordered plan of targets.
   `gateway.admission` measures it against the limits of its key and route, which a limiter of `stores` counts.
3. `forward` takes the next target, and one of the `turns` there where calls are bounded; a provider (`providers`) encodes the
   request for it. -> `UpstreamRequest`
   Where the route asks for it, `forward.race` starts a second beside a slow one, and `heartbeat` fills a silence with comments.
4. An `attempt` has `transport.upstream` connect, send and read the answer's head; `forward.answering` chooses how its body is relayed.
   -> `ResponseHead`
5. `stream` passes the body on as it comes, a copy of it observed by `wire`; with the first meaningful event it commits:
   status and headers go to the client, and from then on no other target is tried.
6. A failure before that is judged by `policy.verdicts` and entered where it belongs by `policy.trial`; `policy.course` says what
   is tried next. When nothing is left the answer is the last upstream's own, or one that `errors` has for it.
7. The `gateway` closes the exchange with exactly one `Outcome`. The `Summary` of it is told to `telemetry` once.

`exchange` holds the records that travel, `config` builds the one frozen tree of settings, `app` puts the rooms together,
`workers` runs several such processes behind one address, `cli` is the command line, `usage` is the file of the usage ledger, `demo`
is the simulated upstream for people without an account. Rooms of several modules say on their first page what each is for: begin
with `gateway`, `forward`, `policy` and `transport`.

Who may import whom (a test checks it), lowest first:

    errors <- config <- exchange <- wire, policy <- providers, dialects <- stream <- forward <- gateway
    gateway <- transport <- app <- workers <- cli
    exchange, usage <- telemetry <- app;  policy <- stores <- app;  wire <- demo <- transport

From `errors` up to `stream` nothing does I/O, reads a clock or rolls a die, `config`'s loader excepted: time and chance come in
as arguments. `forward.ports` declares what `forward` needs from `transport`. From the upstream's socket to the client's a
chunk passes through plain functions and wakes no task.
"""

__version__ = "0.1.0"
