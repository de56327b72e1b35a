"""How much an upstream is given to do at once, and how it is asked whether it is well."""

from pydantic import BaseModel, Field

from relay.config.fields import STRICT, Count, Duration, Interval, Places, ProbePath, setting


class UpstreamLimits(BaseModel):
    """How much an upstream is given to do at once; the rest waits for a turn, or goes to another target."""

    model_config = STRICT

    concurrency: Count | None = setting(None, "Calls at once. Left out: no bound.", 64)
    queue: Places = setting(128, "Requests that may wait for a turn; 0 for none.", 128, shown=128)
    queue_wait: Duration = setting(5.0, "How long a request waits for a turn.", "5s", shown="5s")


class HealthCheck(BaseModel):
    """A request that asks an upstream whether it is well: it rests when several fail, and comes back sooner when one succeeds."""

    model_config = STRICT

    path: ProbePath = Field(description="What is asked for with GET, below base_url.", examples=["/models"])
    every: Interval = setting(30.0, "How often.", "30s", shown="30s")
    timeout: Duration = setting(5.0, "How long the whole answer may take.", "5s", shown="5s")
