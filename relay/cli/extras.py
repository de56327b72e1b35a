"""Which of the relay's extras are installed, looked up without importing them: each costs a part of a second."""

from importlib.util import find_spec


def has_sdk() -> bool:
    """Tell whether spans can be made and sent: the extra `otel`."""
    try:
        return all(find_spec(name) is not None for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:  # not even the package above it is there
        return False
