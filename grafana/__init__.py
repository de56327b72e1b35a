"""The dashboard for Grafana, as data that makes data: `rows` says what is shown, `build` how Grafana writes it."""
