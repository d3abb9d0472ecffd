"""Metrics: prometheus_client on a registry of the process. Names begin with `tidegate_` and end with their unit."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds: what we promise lies between a millisecond and a second.
LATENCY_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    return Counter(f"tidegate_{name}", text, labels, registry=REGISTRY)


def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
    return Gauge(f"tidegate_{name}", text, labels, registry=REGISTRY)


def seconds(name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
    return Histogram(f"tidegate_{name}_seconds", text, labels, registry=REGISTRY, buckets=LATENCY_BUCKETS)


def render() -> bytes:
    return generate_latest(REGISTRY)
