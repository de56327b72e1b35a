"""Which changed settings a reload cannot put into force: each is named, so that nobody believes it is."""

from pathlib import Path

import pytest

from relay.app.reloading import fixed_changes
from relay.config import Config, load

UPSTREAM = "upstreams: {mine: {base_url: 'http://127.0.0.1:9000/v1'}}\nroutes: {fast: mine/model}\n"


def read(folder: Path, more: str) -> Config:
    file = folder / "relay.yaml"
    file.write_text(UPSTREAM + more)
    return load(str(file), {})


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ("", []),
        ("timeouts: {total: 5m}", []),
        ("server: {listen: '127.0.0.1:1'}", ["server.listen"]),
        ("server: {workers: 2}", ["server.workers"]),
        ("metrics: {slo: {ttft: 9s}}", ["metrics.slo.ttft"]),
        ("tracing: {otlp: 'http://127.0.0.1:4318'}", ["tracing"]),
        ("state_dir: states", ["state_dir"]),
        ("usage: {store: usage.db}", ["usage"]),
    ],
)
def test_what_a_reload_cannot_change_is_named(tmp_path: Path, more: str, names: list[str]) -> None:
    assert fixed_changes(read(tmp_path, more), read(tmp_path, "")) == names
