"""Figures for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from everlearn_runtime.edge import EdgeLearner

TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counts what is asked, and tells how the learner is.

    No metric names a class: their names may be private, and would add a series each.

    Args:
        learner: Who is asked.
    """

    def __init__(self, learner: EdgeLearner) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "everlearn_requests", "Requests answered.", ("call", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "everlearn_request_seconds",
            "From a request's first byte to its answer.",
            ("call",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.images = Counter(
            "everlearn_images", "Pictures predicted or learned.", ("call",), registry=self._registry
        )
        self.unknown = Counter(
            "everlearn_unknown", "Pictures that were called unknown.", registry=self._registry
        )
        self._registry.register(_State(learner))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _State(Collector):
    """The learner as it is when somebody looks."""

    def __init__(self, learner: EdgeLearner) -> None:
        self._learner = learner

    def collect(self) -> Iterable[Metric]:
        counts = self._learner.counts
        for name, says, value in (
            ("classes", "Classes known.", len(counts)),
            ("samples", "Samples learned, the workstation's included.", sum(counts.values())),
            ("version", "Number of the last change.", self._learner.version),
            ("head_bytes", "Bytes that learning keeps.", self._learner.nbytes),
            ("drifted", "1 while pictures are unlike those of known classes.", self._learner.drifted),
        ):
            yield GaugeMetricFamily(f"everlearn_{name}", says, value=float(value))
