"""What `/metrics` says of us beside BentoML's own figures."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

STAGES = ("decode", "queue", "inference", "total")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Made once per worker, after BentoML has said where its workers gather their figures."""

    def __init__(self, models: Iterable[str], registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "podium_requests",
            "Images answered, by outcome: ok or an error's code",
            ["model", "outcome"],
            registry=registry,
        )
        stage = Histogram(
            "podium_stage_seconds", "Seconds spent per image", ["model", "stage"], buckets=SECONDS, registry=registry
        )
        size = Histogram("podium_batch_size", "Images per engine call", ["model"], buckets=SIZES, registry=registry)
        depth = Gauge(
            "podium_queue_depth",
            "Images waiting for the engine",
            ["model"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.inflight = Gauge(
            "podium_inflight", "Requests being answered", multiprocess_mode="livesum", registry=registry
        )
        # Looked up once: a label lookup costs more than the counting.
        self.stages = {model: [stage.labels(model, name) for name in STAGES] for model in models}
        self.batch_size = {model: size.labels(model) for model in models}
        self.queue_depth = {model: depth.labels(model) for model in models}
        self.ok = {model: self.requests.labels(model, "ok") for model in models}

    def observe(self, model: str, seconds: Iterable[float | None]) -> None:
        """One answered image: its seconds by stage, in the order of `STAGES`; None for a stage it did not pass."""
        self.ok[model].inc()
        for stage, value in zip(self.stages[model], seconds, strict=True):
            if value is not None:
                stage.observe(value)

    def failed(self, model: str, code: str) -> None:
        self.requests.labels(model, code).inc()
