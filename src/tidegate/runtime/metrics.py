"""Metrics in the Prometheus form. One registry a process; names begin with `tidegate_`, process metrics are included.

Names follow the Prometheus conventions: base units (seconds, bytes) as suffix, counters end in `_total`.
"""

from collections.abc import Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

REGISTRY: Final = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

NAMESPACE: Final = "tidegate"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

# From a map update to a re-list of a large cluster.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    """`tidegate_<name>_total`. A name given twice is a ValueError."""
    return Counter(name, text, labels, namespace=NAMESPACE, registry=REGISTRY)


def gauge(name: str, text: str, labels: Sequence[str] = (), unit: str = "") -> Gauge:
    """`tidegate_<name>[_<unit>]`."""
    return Gauge(name, text, labels, namespace=NAMESPACE, unit=unit, registry=REGISTRY)


def histogram(
    name: str,
    text: str,
    labels: Sequence[str] = (),
    unit: str = "seconds",
    buckets: Sequence[float] = SECONDS,
) -> Histogram:
    """`tidegate_<name>_<unit>`, with upper bounds of the buckets in that unit."""
    return Histogram(name, text, labels, namespace=NAMESPACE, unit=unit, registry=REGISTRY, buckets=tuple(buckets))


def exposition(*more: Collector) -> bytes:
    """All metrics in the text format (content type: CONTENT_TYPE), and what these collectors have."""
    beside = CollectorRegistry()
    for collector in more:
        beside.register(collector)
    return generate_latest(REGISTRY) + generate_latest(beside)
