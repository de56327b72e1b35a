"""The settings of what the relay tells about itself: metrics, what they are measured against, spans, and the log."""

from pydantic import BaseModel

from relay.config.fields import STRICT, Availability, BaseUrl, Count, FirstContent, Listen, Sample, setting


class Slo(BaseModel):
    """What is promised to those who call; `relay rules` makes alerts of it."""

    model_config = STRICT

    ttft: FirstContent = setting(2.0, "How soon 95 % of streams should show their first content.", "2s", shown="2s")
    availability: Availability = setting(0.995, "Share of requests that should end well, over 30 days.", "99.5%", shown="99.5%")


class Metrics(BaseModel):
    """Where metrics are served, and what they are measured against."""

    model_config = STRICT

    listen: Listen | None = setting(
        None, "Address of /metrics. Left out: the main listener when that is loopback, else 127.0.0.1:9464.", "127.0.0.1:9464"
    )
    slo: Slo = setting(Slo(), "What is promised to those who call.", {"ttft": "2s", "availability": "99.5%"})
    label_values: Count = setting(
        200, "How many routes, upstreams or keys are told apart in metrics; further ones count as `_other`.", 500, shown=200
    )


class Tracing(BaseModel):
    """Where spans are sent. Needs relay's extra `otel`."""

    model_config = STRICT

    otlp: BaseUrl | None = setting(
        None, "Address of an OTLP/HTTP collector. Left out: what OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere.", "http://127.0.0.1:4318"
    )
    sample: Sample = setting(
        1.0, "Share of requests that are recorded, of those whose caller has not decided it in a traceparent.", "10%", shown="100%"
    )


class Logging(BaseModel):
    """What the log may hold."""

    model_config = STRICT

    prompts: bool = setting(
        False, "Whether prompts and answers go into the log too, the first 16 KiB of each. They are people's own words: think twice.", True
    )
