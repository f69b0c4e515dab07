"""The queueing model of one replica: batches that form from a Poisson stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Integers = NDArray[np.int64]

PERCENTILE = 99.0

# States of the queue and points of a service that the numbers do not change beyond (a test holds them to a simulation).
STATES_PER_BATCH, FEWEST_STATES = 16, 96
POINTS = 12
NEGLIGIBLE = 1e-9

# No plan runs a queue at its limit: there a p99 belongs to the length of the experiment, not to the queue.
HIGHEST_LOAD = 0.98
BISECTIONS = 9


@dataclass(frozen=True)
class Service:
    """What one replica takes, in seconds: `times[n - 1]` for a batch of n, up to the largest, never less than for a
    smaller one. A time varies by `factors`, which have the probabilities `weights`.
    """

    times: tuple[float, ...]
    factors: tuple[float, ...] = (1.0,)
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if any(later < time for time, later in pairwise(self.times)):
            raise ValueError(f"a larger batch takes less time than a smaller one: {self.times}")

    @property
    def max_batch(self) -> int:
        return len(self.times)

    @property
    def limit(self) -> float:
        """Images per second that this service cannot exceed."""
        return max(n / time for n, time in enumerate(self.times, 1))


@dataclass(frozen=True)
class State:
    """A queue in its steady state. Requests that wait equally long, at the same place of their batch, are one entry of
    `wait` (seconds until their batch starts), `place` (from 1), `weight` (of such requests in a cycle of the queue) and
    `row`: `at_most[row, k]` is the probability that no more than k others arrive in that time.
    """

    service: Service
    wait: Values
    place: Integers
    weight: Values
    row: Integers
    at_most: Values
    busy: float  # share of the time
    mean_batch: float

    @property
    def requests(self) -> float:
        """Requests in a cycle of the queue."""
        return float(self.weight.sum())

    def share_within(self, bound: float) -> float:
        """The share of requests that are answered within `bound` seconds."""
        times, answered = np.array(self.service.times), 0.0
        for factor, share in zip(self.service.factors, self.service.weights, strict=True):
            # The largest batch that still ends in time, and how many may join this request in it.
            largest = np.searchsorted(times * factor, bound - self.wait, "right")
            others = largest - self.place
            chance = np.where(others >= 0, self.at_most[self.row, np.maximum(others, 0)], 0.0)
            chance[largest == len(times)] = 1.0  # arrivals beyond the largest batch wait for the next one
            answered += share * float(self.weight @ chance)
        return answered / self.requests

    def within(self, percent: float, bound: float) -> bool:
        """Whether `percentile(percent)` is at most `bound` seconds."""
        return self.share_within(bound) >= percent / 100

    def percentile(self, percent: float) -> float:
        """The seconds within which `percent` of the requests are answered, to nine digits."""
        low, high = 0.0, float(self.wait.max()) + self.service.times[-1] * max(self.service.factors)
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.within(percent, middle) else (middle, high)
        return high


def solve(service: Service, rate: float) -> State | None:
    """The steady state at `rate` requests a second; None if there is none, because the queue grows without end."""
    b = service.max_batch
    if rate >= b / service.times[-1] or rate <= 0:
        return None
    sizes = np.minimum(np.arange(1, max(FEWEST_STATES, STATES_PER_BATCH * b) + 1), b)
    start, idle = embedded(service, rate, sizes)
    # A cycle is a service and, if it ends on an empty queue, the wait for the next arrival.
    working = float(start @ np.array(service.times)[sizes - 1]) * mean_factor(service)
    waiting = float(idle.sum()) / rate
    wait, place, weight = joining(service, rate, start)
    # The request that ends the wait is a batch of its own.
    wait, place, weight = np.append(wait, 0.0), np.append(place, 1), np.append(weight, idle.sum())
    means, row = np.unique(rate * wait, return_inverse=True)
    at_most = np.cumsum(poisson(means, b), axis=1)
    busy = working / (working + waiting)
    return State(service, wait, place, weight, row, at_most, busy, float(start @ sizes))


def mean_factor(service: Service) -> float:
    return float(np.dot(service.weights, service.factors))


def embedded(service: Service, rate: float, sizes: Integers) -> tuple[Values, Values]:
    """For every number in the queue at a start of service, whose batches are `sizes`: its probability, and that
    together with a service that leaves nobody, so that the engine falls idle.
    """
    count, times = len(sizes), np.array(service.times)
    arrivals = np.zeros((len(times), count))  # [size - 1, arrivals during a service]
    for factor, share in zip(service.factors, service.weights, strict=True):
        arrivals += share * poisson(rate * times * factor, count)
    left = np.arange(1, count + 1) - sizes
    moves = np.zeros((count, count))
    for i in range(count):
        row = arrivals[sizes[i] - 1, : count - left[i]]
        if left[i]:
            moves[i, left[i] - 1 : count - 1] = row
        else:  # If nobody came, the engine waits and starts on the one that comes.
            moves[i, : count - 1] = row[1:]
            moves[i, 0] += row[0]
        moves[i, -1] += max(0.0, 1 - row.sum())  # the last number stands for all above
    system = np.vstack([(moves.T - np.eye(count))[:-1], np.ones(count)])
    steady = np.linalg.solve(system, np.append(np.zeros(count - 1), 1.0)).clip(0)
    steady /= steady.sum()
    return steady, steady * arrivals[sizes - 1, 0] * (left == 0)


def joining(service: Service, rate: float, start: Values) -> tuple[Values, Integers, Values]:
    """Requests that arrive during a service: seconds until their batch starts, place in it, weight in a cycle."""
    b, times = service.max_batch, np.array(service.times)
    longest = rate * times[-1] * max(service.factors)
    most = int(longest + 6 * math.sqrt(longest) + 8)
    by_size = np.append(start[: b - 1], 1.0)  # a full batch leaves 0, 1, ... in the queue, with `start[b - 1 :]`
    parts = []
    for factor, share in zip(service.factors, service.weights, strict=True):
        length = times * factor
        chance = by_size * share * rate * length / POINTS
        for point in (np.arange(POINTS) + 0.5) / POINTS:
            came = chance[:, None] * poisson(rate * length * point, most)
            weight = np.zeros((b, len(start) - b + most))  # [size - 1, requests ahead in the queue]
            weight[:-1, :most] = came[:-1]
            weight[-1] = np.convolve(start[b - 1 :], came[-1])
            size, ahead = np.nonzero(weight > NEGLIGIBLE)
            wait = length[size] * (1 - point) + ahead // b * times[-1] * mean_factor(service)
            parts.append((wait, ahead % b + 1, weight[size, ahead]))
    waits, places, weights = zip(*parts, strict=True)
    return np.concatenate(waits), np.concatenate(places), np.concatenate(weights)


def poisson(means: Values, count: int) -> Values:
    """[means, count]: the probabilities of 0 to count - 1 events, for every mean."""
    k = np.arange(count)
    pmf: Values = np.exp(np.outer(np.log(np.maximum(means, 1e-300)), k) - means[:, None] - log_factorials(count))
    return pmf


@cache
def log_factorials(count: int) -> Values:
    return np.cumsum(np.log(np.maximum(np.arange(count), 1)))


def highest_rate(service: Service, slo: float) -> float | None:
    """Images per second of one replica whose 99th percentile is within `slo` seconds; None if even a request alone
    takes longer.
    """
    top = HIGHEST_LOAD * service.max_batch / service.times[-1]
    return bisect(lambda rate: within(service, rate, slo), top / 2**BISECTIONS, top)


def within(service: Service, rate: float, slo: float) -> bool:
    state = solve(service, rate)
    return state is not None and state.within(PERCENTILE, slo)


def bisect(passes: Callable[[float], bool], low: float, high: float) -> float | None:
    """The highest rate between `low` and `high` that passes, given that every rate below one that passes does too."""
    if passes(high):
        return high
    if not passes(low):
        return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low
