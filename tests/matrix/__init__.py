"""The fault matrix: each fault as a stream and not, with one target and with a fallback, asked by the official SDK.

`python -m tests.matrix` runs it against a `relay serve` of its own and prints the table; `test_matrix.py` checks each cell and that the
committed copy, docs/fault-matrix.md, says the same.
"""
