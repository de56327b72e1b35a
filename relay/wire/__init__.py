"""Formats, bytes to objects and back, without I/O.

Requests: `body` reads one once and strictly, `edits` replaces members, `query` looks a parameter up, `headers` says what passes,
`tracing` reads W3C trace context. Answers: `sse` finds events, `events` says what one is, `openai` observes a stream on a copy,
`usage` and `faults` read tokens and errors, `unasked` takes out an event that the client did not ask for.
"""
