"""Arrivals at random, and the highest rate that keeps a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

# A bound on the 99th percentile is kept if this share of the requests was answered within it.
WITHIN = 0.99

# How often the search halves the range of rates: it ends within 2 % of the highest possible.
HALVINGS = 6
# A rate that passed once is tried again with other arrivals. If it fails, it is lowered to this share, so many times.
STEP_DOWN, STEPS = 0.95, 6


def poisson(rate: float, seed: int = 0) -> Iterator[float]:
    """Seconds at which requests are due, without end: a Poisson process of `rate` per second."""
    generator, at = np.random.default_rng(seed), 0.0
    while True:
        yield (at := at + float(generator.exponential(1 / rate)))


def arrivals(rate: float, duration: float, seed: int = 0) -> list[float]:
    """The times of a Poisson process of `rate` per second within `duration` seconds."""
    return list(takewhile(lambda at: at < duration, poisson(rate, seed)))


@dataclass(frozen=True)
class Rung:
    """One rate that was tried, and the share of its requests within the bound."""

    rate: float
    within: float
    p99_ms: float | None

    @property
    def passes(self) -> bool:
        return self.within >= WITHIN


def highest(trial: Callable[[float, int], Rung], top: float) -> tuple[float | None, list[Rung]]:
    """The highest rate up to `top` that passes `trial` (a rate, a seed) twice, with other arrivals the second time, and
    every rate that was tried. None if no rate passes. One pass may be luck, so a rate may be lowered after it.
    """
    low, high, rungs = 0.0, top, list[Rung]()
    for _ in range(HALVINGS):
        rungs.append(trial((low + high) / 2, 0))
        low, high = (rungs[-1].rate, high) if rungs[-1].passes else (low, rungs[-1].rate)
    for seed in range(1, STEPS + 1) if low else ():
        rungs.append(trial(low, seed))
        if rungs[-1].passes:
            return low, rungs
        low *= STEP_DOWN
    return None, rungs
