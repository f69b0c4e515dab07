"""The queueing model of one replica: batches that form from a Poisson stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

PERCENTILE = 99.0

# States of the queue and points of a service that the numbers do not change beyond (a test holds them to a simulation).
STATES_PER_BATCH, FEWEST_STATES = 16, 96
POINTS = 12
NEGLIGIBLE = 1e-7

# No plan runs a queue at its limit: there a p99 belongs to the length of the experiment, not to the queue.
HIGHEST_LOAD = 0.98
BISECTIONS = 9


@dataclass(frozen=True)
class Service:
    """What one replica takes, in seconds: `times[n - 1]` for a batch of n up to the largest. A time varies by
    `factors`, which have the probabilities `weights`.
    """

    times: tuple[float, ...]
    factors: tuple[float, ...] = (1.0,)
    weights: tuple[float, ...] = (1.0,)

    @property
    def max_batch(self) -> int:
        return len(self.times)

    @property
    def limit(self) -> float:
        """Images per second that no queue of this service outlasts."""
        return max(n / time for n, time in enumerate(self.times, 1))


@dataclass(frozen=True)
class State:
    """A queue in its steady state; `seconds` from arrival to answer with their probabilities `weights`, in parts."""

    seconds: list[Values]
    weights: list[Values]
    busy: float  # share of the time
    mean_batch: float

    def percentile(self, percent: float) -> float:
        seconds = np.concatenate(self.seconds)
        order = np.argsort(seconds)
        reached = np.cumsum(np.concatenate(self.weights)[order])
        index = int(np.searchsorted(reached, percent / 100 * reached[-1]))
        return float(seconds[order][min(index, len(order) - 1)])

    def within(self, percent: float, bound: float) -> bool:
        """Whether `percentile(percent)` is at most `bound` seconds, without sorting: a search asks it many times."""
        kept = sum(float(w[s <= bound].sum()) for s, w in zip(self.seconds, self.weights, strict=True))
        return kept >= percent / 100 * self.requests

    @property
    def requests(self) -> float:
        """The weights' sum: requests in a cycle of the queue."""
        return sum(float(part.sum()) for part in self.weights)


def solve(service: Service, rate: float) -> State | None:
    """The steady state at `rate` requests a second; None where there is none, for the queue grows without end."""
    b = service.max_batch
    if rate >= b / service.times[-1] or rate <= 0:
        return None
    times, factors, shares = np.array(service.times), np.array(service.factors), np.array(service.weights)
    states = np.arange(1, max(FEWEST_STATES, STATES_PER_BATCH * b) + 1)
    sizes = np.minimum(states, b)
    left = states - sizes
    start, idle = embedded(rate, times[sizes - 1], left, factors, shares)
    # A cycle is a service and, where it ends on an empty queue, the wait for the next arrival.
    working = float(start @ times[sizes - 1]) * float(shares @ factors)
    waiting = float(idle.sum()) / rate
    seconds, weights = [times[0] * factors], [float(idle.sum()) * shares]
    kept = start > NEGLIGIBLE
    for factor, share in zip(factors, shares, strict=True):
        length = times[sizes[kept] - 1] * factor
        for point in (np.arange(POINTS) + 0.5) / POINTS:
            before, rest = length * point, length * (1 - point)
            chance = start[kept] * share * rate * length / POINTS
            position, p = ahead(rate * before, left[kept], chance)
            likely = p > NEGLIGIBLE * 1e-2
            wait = np.broadcast_to(rest[:, None], position.shape)[likely]
            position, p = position[likely], p[likely]
            full = (position - 1) // b
            wait = wait + full * times[-1] * float(shares @ factors)
            place = position - full * b
            for size, those, chance_of_size in last_batch(place, rate * wait, b):
                seconds.append(np.add.outer(times[size - 1] * factors, wait[those]).ravel())
                weights.append(np.multiply.outer(shares, p[those] * chance_of_size).ravel())
    return State(seconds, weights, working / (working + waiting), float(start @ sizes))


def embedded(rate: float, times: Values, left: NDArray[Any], factors: Values, shares: Values) -> tuple[Values, Values]:
    """For every number in the queue at a start of service: its probability, and that together with a service that
    leaves nobody, so that the engine falls idle.
    """
    count = len(times)
    arrivals = sum(share * poisson(rate * times * factor, count) for factor, share in zip(factors, shares, strict=True))
    assert isinstance(arrivals, np.ndarray)
    moves = np.zeros((count, count))
    for i in range(count):
        room = count - left[i]  # numbers from left[i] to count, the last standing for all above
        row = arrivals[i, :room].copy()
        target = left[i] + np.arange(room)
        # Nobody there: the engine waits, and starts on the one that comes.
        np.add.at(moves[i], np.maximum(target, 1) - 1, row)
        moves[i, -1] += max(0.0, 1 - row.sum())
    system = np.vstack([(moves.T - np.eye(count))[:-1], np.ones(count)])
    steady = np.linalg.solve(system, np.append(np.zeros(count - 1), 1.0)).clip(0)
    steady /= steady.sum()
    return steady, steady * arrivals[:, 0] * (left == 0)


def ahead(means: Values, left: NDArray[Any], chance: Values) -> tuple[NDArray[Any], Values]:
    """The places in the queue that a request may take, [states, arrivals], and the probability of each."""
    most = int(np.max(means) + 6 * math.sqrt(float(np.max(means))) + 8)
    return left[:, None] + np.arange(most)[None, :] + 1, chance[:, None] * poisson(means, most)


def last_batch(place: NDArray[Any], means: Values, b: int) -> Iterable[tuple[int, NDArray[Any], Values]]:
    """The sizes of the batch that a request at `place` of it is in, which arrivals until its start fill up: for each
    size, which requests may be in one, and with which probability.
    """
    pmf = poisson(means, b)
    rest = np.ones(len(place))
    for size in range(1, b):
        those = np.flatnonzero(place <= size)
        chance = pmf[those, size - place[those]]
        rest[those] -= chance
        if len(those):
            yield size, those, chance
    yield b, np.arange(len(place)), rest.clip(0)


def poisson(means: Values, count: int) -> Values:
    """[means, count]: the probabilities of 0 to count - 1 events, for every mean."""
    k = np.arange(count)
    pmf: Values = np.exp(np.outer(np.log(np.maximum(means, 1e-300)), k) - means[:, None] - log_factorials(count))
    return pmf


@cache
def log_factorials(count: int) -> Values:
    return np.cumsum(np.log(np.maximum(np.arange(count), 1)))


def highest_rate(service: Service, slo: float) -> float | None:
    """Images per second of one replica whose 99th percentile is within `slo` seconds; None where even one alone takes
    longer.
    """
    top = HIGHEST_LOAD * service.max_batch / service.times[-1]
    return bisect(lambda rate: within(service, rate, slo), top / 2**BISECTIONS, top)


def within(service: Service, rate: float, slo: float) -> bool:
    state = solve(service, rate)
    return state is not None and state.within(PERCENTILE, slo)


def bisect(passes: Callable[[float], bool], low: float, high: float) -> float | None:
    """The highest of the rates between `low` and `high` that passes, where a lower one passes if a higher does."""
    if passes(high):
        return high
    if not passes(low):
        return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low
