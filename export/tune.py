"""Measure which engine, precision and number of threads is fastest on this machine, for the manifest."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.console import progress
from models.preprocess import Pixels
from serving.engines import Runtime
from serving.runtime import ENGINES, by_expected_speed, cores, cpu_model

BATCHES = (1, 8)
ROUNDS = 5
HOPELESS = 1.5
ROUND_S = 0.05  # long enough for a clock, short enough that a slow moment of the machine affects all alike
BUDGET_S = 5.0  # how long an export may take for it; a candidate that has begun by then is still measured

Candidate = tuple[str, str, int]  # engine, precision, threads


def tune(
    name: str,
    graphs: Mapping[tuple[str, str], Path],
    shape: tuple[int, ...],
    max_batch: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any] | None:
    """Time every (engine, precision) of `graphs` with all threads and with one, at batch 1 and 8, in interleaved
    rounds.

    Those expected to be fastest come first. None begins after `BUDGET_S`, so only the first of them are measured for a
    large network. A candidate that is far behind after the first round is left out of the others.

    Returns the manifest's table: the median of milliseconds for each batch with every value, the fastest choice at each
    batch and over all batches (by the product of throughputs, so that no batch size is given up for another), and what
    was left out. None if there is nothing to choose from.
    """
    candidates = _candidates(graphs)
    if len(candidates) < 2:
        return None
    batches = [b for b in BATCHES if b <= max_batch]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (max(batches), *shape), dtype=np.uint8)
    values: dict[tuple[Candidate, int], list[float]] = {}
    began = clock()
    contenders = candidates
    for _ in progress(range(ROUNDS), f"tuning {name}"):
        for candidate in contenders:
            if values and clock() - began > BUDGET_S:
                break
            for b, value in zip(batches, _time(candidate, graphs, images, batches, clock), strict=True):
                values.setdefault((candidate, b), []).append(value)
        contenders = _contenders(contenders, values)
        if len(contenders) < 2 or clock() - began > BUDGET_S:
            break
    medians = {key: statistics.median(times) for key, times in values.items()}
    measured = [c for c in candidates if (c, batches[0]) in medians]

    def named(candidate: Candidate) -> dict[str, Any]:
        return dict(zip(("engine", "precision", "threads"), candidate, strict=True))

    best = {b: min(measured, key=lambda c: medians[c, b]) for b in batches}
    overall = min(measured, key=lambda c: math.prod(medians[c, b] for b in batches))
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "seconds": round(clock() - began, 1),
        "rows": [
            {**named(c), "batch": b, "latency_ms": medians[c, b], "values": values[c, b]}
            for c in measured
            for b in batches
        ],
        "left_out": [named(c) for c in candidates if c not in measured],
        "by_batch": {str(b): named(c) for b, c in best.items()},
        "choice": named(overall),
    }


def _candidates(graphs: Mapping[tuple[str, str], Path]) -> list[Candidate]:
    """All threads before one, which is faster only for the smallest networks; then by the expected speed of engines."""
    sides, counts = sorted(graphs, key=by_expected_speed), sorted({1, cores()}, reverse=True)
    return [(engine, precision, threads) for threads in counts for engine, precision in sides]


def _contenders(candidates: list[Candidate], values: Mapping[tuple[Candidate, int], list[float]]) -> list[Candidate]:
    """The candidates that were measured and are not slower by `HOPELESS` at every batch."""
    medians = {key: statistics.median(times) for key, times in values.items()}
    best = {batch: min(ms for (_, b), ms in medians.items() if b == batch) for _, batch in medians}
    return [
        c for c in candidates if any(medians.get((c, b), math.inf) < HOPELESS * fastest for b, fastest in best.items())
    ]


def _time(
    candidate: Candidate,
    graphs: Mapping[tuple[str, str], Path],
    images: Pixels,
    batches: Sequence[int],
    clock: Callable[[], float],
) -> list[float]:
    """Milliseconds of one call of a warm engine at each of `batches`.

    The engine is opened for this and closed afterwards, because another open engine would share the cores with it.
    """
    engine, precision, threads = candidate
    runtime = ENGINES[engine](graphs[engine, precision], precision, threads)
    try:
        return [_milliseconds(runtime, images[:b], clock) for b in batches]
    finally:
        runtime.close()


def _milliseconds(runtime: Runtime, batch: Pixels, clock: Callable[[], float]) -> float:
    """The mean time of one `run` over at least `ROUND_S`, after one to warm up."""
    runtime.run(batch)
    started, count = clock(), 0
    while (elapsed := clock() - started) < ROUND_S or not count:
        runtime.run(batch)
        count += 1
    return 1000 * elapsed / count


def said(tuning: Mapping[str, Any]) -> str:
    """What tuning chose and how long it took, in one line."""
    choice = tuning["choice"]
    threads = f"{choice['threads']} thread{'s' if choice['threads'] > 1 else ''}"
    return f"fastest here {choice['engine']} {choice['precision']} on {threads} (measured in {tuning['seconds']} s)"
