"""The only room that touches sockets, towards clients and towards upstreams.

Clients: `listener` is the server's half of a connection, `downstream` takes a parsed request to the gateway, `upload` brings its
body in, `sink` frames and writes the answer.

Upstreams: `dial` and `tls` connect, `connection` parses one answer, `upstream` pools and sends, `credentials` fills in what is sent,
`fetch` asks small questions (lists of models, health), `demo` serves the simulated upstream.
"""
