"""The bench: measures the relay beside nginx and a conventional proxy, and never asserts.

`python -m bench` starts a scripted upstream (`upstream`), one load generator per run (`load`) and the proxies
(`proxies`, `conventional`), each a process of its own; `scenarios` drives them and reads what the operating system
says of the proxy (`measure`); `table` turns the rounds into one Markdown table. What upstream and load must agree
on stands in `script`. Only standard output carries the table; progress goes to standard error.
"""
