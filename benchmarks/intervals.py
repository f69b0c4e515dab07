"""Statistics of call times, and the interval in which their median lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.records import Latency

# Consecutive calls are not independent (clocks, neighbours, caches drift), so the interval of a median is drawn over
# blocks of neighbouring values; ten blocks keep drift inside a block visible between blocks.
BLOCKS = 10
RESAMPLES = 1000
CONFIDENCE = 0.95


def confident(draws: Sequence[float]) -> tuple[float, float]:
    """The interval in which `CONFIDENCE` of a bootstrap's draws lie."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, (tail, 100 - tail))
    return float(low), float(high)


def latency(starts: Sequence[Sequence[float]]) -> Latency:
    """Statistics of call times in milliseconds, one sequence per process that measured them.

    `interval` is the median's: a 95 % block bootstrap, widened to the medians of the single processes, because a
    process keeps the memory layout it started with, and two processes differ by more than the calls of one.
    """
    # Five digits are more than a clock gives; rounded first, so that the statistics are exactly those of `values`.
    starts = [[float(f"{value:.5g}") for value in start] for start in starts]
    values = np.array([value for start in starts for value in start])
    p50, p90, p99 = (float(v) for v in np.percentile(values, (50, 90, 99)))
    low, high = median_interval(starts)
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "count": len(values),
        "values": values.tolist(),
        "starts": [len(start) for start in starts],
        "interval": [low, high],
    }


def median_interval(starts: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The interval of the median of all values, as `latency` describes it."""
    blocks = [b for start in starts for b in np.array_split(np.asarray(start), min(BLOCKS, len(start)))]
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(blocks), size=(RESAMPLES, len(blocks)))
    if len({len(block) for block in blocks}) == 1:
        even = np.array(blocks)
        medians = [
            m for part in np.array_split(draws, 20) for m in np.median(even[part].reshape(len(part), -1), axis=1)
        ]
    else:
        medians = [float(np.median(np.concatenate([blocks[i] for i in draw]))) for draw in draws]
    low, high = confident(medians)
    own = [float(np.median(start)) for start in starts]
    return min(low, *own), max(high, *own)
