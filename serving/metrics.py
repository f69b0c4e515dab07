"""What `/metrics` shows.

The service is one process, so its figures are plain numbers, and they are collected when somebody asks for them. To
count takes well under a microsecond; prometheus_client's shared files would take ten on every request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.power import Sensor, SensorError

STAGES = ("decode", "queue", "inference", "total")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Histogram:
    """Counts of observations by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def samples(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, as text, and the sum."""
        total, buckets = 0, []
        for bound, count in zip([*map(float, self.bounds), float("inf")], self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        return buckets, self.sum


class Metrics(Collector):
    """The figures of one process, registered with `registry`.

    The event loop writes them. The workers write `batch_size`, one at a time, and each change of `queue_depth` is one
    assignment, from whatever thread.
    """

    def __init__(self, models: Iterable[str], registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.stages: dict[str, list[Histogram]] = {}
        self.batch_size: dict[str, Histogram] = {}
        self.queue_depth: dict[str, float] = {}
        self.inflight = 0
        self.sensors: Sequence[Sensor] = ()
        for model in models:
            self.add(model)
        registry.register(self)

    def add(self, model: str) -> None:
        """Show `model` from now on, with zeros until something is counted."""
        self.outcomes[model, "ok"] += 0
        self.stages.setdefault(model, [Histogram(SECONDS) for _ in STAGES])
        self.batch_size.setdefault(model, Histogram(SIZES))
        self.queue_depth.setdefault(model, 0)

    def observe(self, model: str, seconds: Iterable[float | None]) -> None:
        """Count one answered image: its seconds by stage, in the order of `STAGES`; None for a stage it skipped."""
        self.outcomes[model, "ok"] += 1
        for stage, value in zip(self.stages[model], seconds, strict=True):
            if value is not None:
                stage.observe(value)

    def failed(self, model: str, code: str) -> None:
        self.outcomes[model, code] += 1

    def text(self) -> bytes:
        """Everything in the registry, as Prometheus reads it."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "podium_requests", "Images answered, by outcome: ok or an error's code", labels=["model", "outcome"]
        )
        for (model, outcome), count in sorted(self.outcomes.items()):
            requests.add_metric([model, outcome], count)
        yield requests
        stage = HistogramMetricFamily("podium_stage_seconds", "Seconds spent per image", labels=["model", "stage"])
        for model, histograms in self.stages.items():
            for name, histogram in zip(STAGES, histograms, strict=True):
                stage.add_metric([model, name], *histogram.samples())
        yield stage
        size = HistogramMetricFamily("podium_batch_size", "Images per engine call", labels=["model"])
        for model, histogram in self.batch_size.items():
            size.add_metric([model], *histogram.samples())
        yield size
        depth = GaugeMetricFamily("podium_queue_depth", "Images waiting for the engine", labels=["model"])
        for model, waiting in self.queue_depth.items():
            depth.add_metric([model], waiting)
        yield depth
        yield GaugeMetricFamily("podium_inflight", "Requests being answered", value=self.inflight)
        yield from self._power()

    def _power(self) -> Iterator[Metric]:
        """What the sensors read now. One that cannot be read, or whose counter does not move, is left out, not zero."""
        watts = GaugeMetricFamily("podium_power_watts", "Power of the whole device", labels=["sensor"])
        joules = CounterMetricFamily(
            "podium_energy_joules", "Energy of the whole device since the server started", labels=["sensor"]
        )
        for sensor in self.sensors:
            with suppress(SensorError):
                if not (energy := sensor.joules()):
                    continue
                joules.add_metric([sensor.name], energy)
                if (power := sensor.watts()) is not None:
                    watts.add_metric([sensor.name], power)
        yield from (family for family in (watts, joules) if family.samples)
