"""Which engine, precision and thread count is fastest on this machine: measured, and recorded in the manifest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.console import progress
from serving.runtime import ENGINES, Runtime, cores, cpu_model

BATCHES = (1, 8)
ROUNDS = 5
HOPELESS = 1.5
ROUND_S = 0.25  # long enough for a clock, short enough that a slow spell of the machine strikes all alike

Candidate = tuple[str, str, int]  # engine, precision, threads


def tune(name: str, graphs: Mapping[tuple[str, str], Path], shape: tuple[int, ...], max_batch: int) -> dict[str, Any]:
    """Time every (engine, precision) of `graphs` at one thread and at all, batch 1 and 8, in interleaved rounds.

    What is hopelessly behind after the first round is left out of the others. Gives the manifest's table: each row's
    median milliseconds per batch with every value, and the fastest choice by batch and over all (the highest product
    of throughputs, so that no batch size is given up for another).
    """
    candidates = [(e, p, t) for e, p in graphs for t in sorted({1, cores()})]
    batches = [b for b in BATCHES if b <= max_batch]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (max(batches), *shape), dtype=np.uint8)
    values: dict[tuple[Candidate, int], list[float]] = {(c, b): [] for c in candidates for b in batches}
    for candidate in progress(candidates, f"warming {name}"):
        _with(candidate, graphs, lambda run: [run.run(images[:b]) for b in batches])
    for turn in progress(range(ROUNDS), f"tuning {name}"):
        for candidate in candidates if turn == 0 else _contenders(candidates, values):

            def measure(run: Runtime, candidate: Candidate = candidate) -> None:
                for b in batches:
                    run.run(images[:b])
                    values[candidate, b].append(_milliseconds(run, images[:b]))

            _with(candidate, graphs, measure)
    medians = _medians(values)

    def named(candidate: Candidate) -> dict[str, Any]:
        return dict(zip(("engine", "precision", "threads"), candidate, strict=True))

    best = {b: min(candidates, key=lambda c: medians[c, b]) for b in batches}
    overall = min(candidates, key=lambda c: float(np.prod([medians[c, b] for b in batches])))
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "rows": [
            {**named(c), "batch": b, "latency_ms": medians[c, b], "values": values[c, b]}
            for c in candidates
            for b in batches
        ],
        "by_batch": {str(b): named(c) for b, c in best.items()},
        "choice": named(overall),
    }


def _medians(values: Mapping[Any, list[float]]) -> dict[Any, float]:
    return {key: statistics.median(times) for key, times in values.items()}


def _contenders(candidates: list[Candidate], values: Mapping[tuple[Candidate, int], list[float]]) -> list[Candidate]:
    """Those not yet beaten by `HOPELESS` at every batch: the rest keep their one value, and cost no more time."""
    medians = _medians(values)
    best = {b: min(medians[c, b] for c in candidates) for _, b in medians}
    return [c for c in candidates if any(medians[c, b] < HOPELESS * fastest for b, fastest in best.items())]


def _with(candidate: Candidate, graphs: Mapping[tuple[str, str], Path], work: Any) -> None:
    """Open, work, close: two engines alive at once would share the cores while one is timed."""
    engine, precision, threads = candidate
    runtime = ENGINES[engine](graphs[engine, precision], precision, threads)
    try:
        work(runtime)
    finally:
        runtime.close()


def _milliseconds(runtime: Runtime, batch: Any) -> float:
    """Mean time of one `run` over at least `ROUND_S`."""
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < ROUND_S:
        runtime.run(batch)
        count += 1
    return 1000 * elapsed / count
