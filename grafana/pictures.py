"""Draws the board from real data, for docs/observability.md: `make pictures`.

It runs a relay under the load of the demonstration, scraped by a real Prometheus, asks Prometheus what every panel asks, and
draws the answers with matplotlib in the places that Grafana gives them. Grafana itself is not run, so colours and type differ.
"""

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from grafana.build import build
from grafana.flaky import FlakyUpstream
from grafana.load import run_load
from relay.config.tree import Slo
from relay.telemetry.rules import make_rules, to_yaml
from tests.fakes.ports import free_port
from tests.servers import ROOT, Prometheus, running, running_prometheus

IMAGES: Final = ROOT / "docs/images"
SECONDS: Final = 300.0
SCRAPE_SECONDS: Final = 5
RATE: Final = f"{4 * SCRAPE_SECONDS}s"
"""What Grafana puts for `$__rate_interval` at this scrape interval."""
KEYS: Final = ("sk-demo-alice", "sk-demo-alice", "sk-demo-bob")
WORKERS: Final = 6
Json = dict[str, Any]


def main() -> None:
    """Collect, or take what was collected, and draw."""
    parser = argparse.ArgumentParser(prog="python -m grafana.pictures", description="Draw the board from real data.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long the load runs")
    parser.add_argument("--data", type=Path, metavar="FILE", help="keep the data here, and draw from it when it is there")
    options = parser.parse_args()
    if options.data is not None and options.data.exists():
        data = json.loads(options.data.read_text())
    else:
        data = collect(options.seconds)
        if options.data is not None:
            options.data.write_text(json.dumps(data))

    from grafana.drawing import draw  # needs the dependency group `docs`

    IMAGES.mkdir(exist_ok=True)
    board = build(Slo())
    draw(rows_of(board, ("Overview", "Latency", "Throughput")), data, IMAGES / "board-requests.png")
    draw(rows_of(board, ("Errors", "Upstreams")), data, IMAGES / "board-faults.png")
    draw(rows_of(board, ("Keys and cost", "Relay internals")), data, IMAGES / "board-inside.png")


def rows_of(board: Json, titles: Sequence[str]) -> list[tuple[str, list[Json]]]:
    """Return these rows, each with its panels, whether folded or not."""
    rows: list[tuple[str, list[Json]]] = []
    for panel in board["panels"]:
        if panel["type"] == "row":
            rows.append((panel["title"], list(panel["panels"])))
        else:
            rows[-1][1].append(panel)
    return [(title, panels) for title, panels in rows if title in titles]


def collect(seconds: float) -> Json:
    """Run the demonstration and return, by panel and query, what Prometheus answers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port()
        flaky = FlakyUpstream("127.0.0.1", 0, period=seconds / 2.5, outage=20)
        threading.Thread(target=flaky.serve_forever, daemon=True).start()
        with (
            _relay(folder, port, flaky.server_address[1]),
            running_prometheus(
                folder, [f"127.0.0.1:{port}"], rules=to_yaml(make_rules(Slo()), "rules"), interval=f"{SCRAPE_SECONDS}s"
            ) as prometheus,
        ):
            prometheus.wait_for('up{job="relay"} == 1')
            began = time.time()
            run_load(f"http://127.0.0.1:{port}", KEYS, workers=WORKERS, is_over=lambda: time.time() > began + seconds)
            return dict(_answers(prometheus, began + 4 * SCRAPE_SECONDS, began + seconds))


def _relay(folder: Path, port: int, flaky_port: int) -> Any:
    variables = [f"LOAD_URL=http://127.0.0.1:{flaky_port}", f"METRICS_LISTEN=127.0.0.1:{port}"]
    serve = [sys.executable, "-m", "relay", "serve", "--config", str(ROOT / "config/demo.yaml"), "--listen", f"127.0.0.1:{port}"]
    return running(["env", *variables, *serve], folder, lambda: _is_up(port))


def _is_up(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _answers(prometheus: Prometheus, start: float, end: float) -> Iterator[tuple[str, Any]]:
    for _, panels in rows_of(build(Slo()), [panel["title"] for panel in build(Slo())["panels"] if panel["type"] == "row"]):
        for panel in panels:
            for target in panel["targets"]:
                expression = _filled(target["expr"], f"{end - start:.0f}s")
                key = f"{panel['title']}/{target['refId']}"
                yield key, prometheus.query_range(expression, start, end, SCRAPE_SECONDS)


def _filled(expression: str, span: str) -> str:
    filled = expression.replace("$__rate_interval", RATE).replace("$__range", span)
    for name in ("job", "instance", "route", "upstream", "key"):
        filled = filled.replace(f'"${name}"', '".+"')
    return filled


def legend_of(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return what Grafana calls a series."""
    text = str(target["legendFormat"])
    if text == "__auto":
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__")
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return " ".join(text.replace("{{why}}", "").split())


if __name__ == "__main__":
    main()
