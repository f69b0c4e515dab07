"""Simulates replicas behind a balancer, request by request: many of the queues that `capacity` solves one of.

A request reaches the balancer, which gives it to a replica by its policy; after its way there and its decoding it joins
that replica's queue; an idle engine starts at once on what waits, up to a largest batch; the answer frees its place.
The policies: `random`, which makes independent queues of the replicas, as `capacity` has them (and as a balancer of
connections does at best); `in turn`; `two choices`, the less loaded of two drawn at random, which many balancers can do
that do not see each other (Mitzenmacher, The power of two choices in randomized load balancing, IEEE Trans. Parallel
Distrib. Syst. 12, 2001); `fewest`, the replica with the fewest requests under way, as deploy/haproxy.cfg does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import records
from benchmarks.advise.queueing import Service

Values = NDArray[np.float64]
Draw = Callable[[int], float]  # seconds of an engine call on a batch of so many

POLICIES = ("random", "in turn", "two choices", "fewest")

ARRIVED, JOINED, DONE = range(3)


def simulate(
    due: Values, around: Values, engine: Draw, max_batch: int, replicas: int, policy: str = "fewest", seed: int = 0
) -> Values:
    """Seconds from arrival to answer of requests due at the times `due`, each with its own seconds `around` the engine;
    the engine's seconds are drawn for each call.
    """
    generator = np.random.default_rng(seed)
    under_way = [0] * replicas
    waiting: list[list[int]] = [[] for _ in range(replicas)]
    batch: list[list[int]] = [[] for _ in range(replicas)]  # in the engine
    place = generator.integers(replicas, size=(len(due), 2)).tolist()
    taken = np.zeros(len(due))
    # Time, what, whom: an arrival and a joining name a request, an end names a replica.
    agenda: list[tuple[float, int, int]] = [(float(at), ARRIVED, i) for i, at in enumerate(due)]
    heapq.heapify(agenda)
    chosen = [0] * len(due)

    def choose(request: int) -> int:
        first, second = place[request]
        if policy == "random":
            return int(first)
        if policy == "in turn":
            return request % replicas
        if policy == "two choices":
            return int(first if under_way[first] <= under_way[second] else second)
        fewest = min(under_way)
        # Not always the first of equals.
        return next(r for i in range(replicas) if under_way[r := (int(first) + i) % replicas] == fewest)

    def start(replica: int, now: float) -> None:
        batch[replica], waiting[replica] = waiting[replica][:max_batch], waiting[replica][max_batch:]
        if batch[replica]:
            heapq.heappush(agenda, (now + engine(len(batch[replica])), DONE, replica))

    while agenda:
        now, what, whom = heapq.heappop(agenda)
        if what == ARRIVED:
            chosen[whom] = replica = choose(whom)
            under_way[replica] += 1
            heapq.heappush(agenda, (now + float(around[whom]), JOINED, whom))
        elif what == JOINED:
            replica = chosen[whom]
            waiting[replica].append(whom)
            if not batch[replica]:
                start(replica, now)
        else:
            for request in batch[whom]:
                taken[request] = now - due[request]
            under_way[whom] -= len(batch[whom])
            start(whom, now)
    return taken


def arrivals(rate: float, count: int, seed: int = 0) -> Values:
    """Times at which `count` requests are due at random, `rate` a second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def of_service(service: Service, seed: int = 0) -> Draw:
    """The engine of the queueing model: its times, each with one of its factors."""
    generator = np.random.default_rng(seed)
    factors = iter(generator.choice(service.factors, size=1_000_000, p=service.weights).tolist())
    return lambda size: service.times[size - 1] * float(next(factors))


def of_measured(engine_ms: Mapping[str, Sequence[float]], seed: int = 0) -> Draw:
    """An engine whose every call takes as long as one that was measured at that batch; if none was, as one of the
    nearest batch, in proportion to the line through the medians of the smallest batch and the largest.
    """
    generator = np.random.default_rng(seed)
    known = {int(size): np.asarray(values) / 1e3 for size, values in engine_ms.items()}
    first, last = min(known), max(known)
    low, high = float(np.median(known[first])), float(np.median(known[last]))
    slope = max(0.0, (high - low) / (last - first)) if last > first else low / first

    def line(size: int) -> float:
        return low + slope * (size - first)

    def draw(size: int) -> float:
        nearest = min(known, key=lambda other: abs(other - size))
        return float(generator.choice(known[nearest])) * line(size) / line(nearest)

    return draw


def repeat(item: records.Replicas, count: int = 20_000, max_batch: int = 8) -> dict[str, float]:
    """The steady phase of `benchmarks replicas` played out: p50, p90 and p99 in milliseconds, from the same rate and
    the times that were measured in it.
    """
    around = np.random.default_rng(1).choice(np.asarray(item["around_ms"]) / 1e3, size=count)
    due = arrivals(item["rate"] or 0.0, count)
    taken = 1e3 * simulate(due, around, of_measured(item["engine_ms"]), max_batch, len(item["by_replica"]))
    return {f"p{p}": float(np.percentile(taken, p)) for p in (50, 90, 99)}


def by_policy(service: Service, load: float, replicas: int, count: int = 20_000) -> dict[str, dict[str, Any]]:
    """For every policy, p50 and p99 in milliseconds of `replicas` replicas at `load` of what they could do at most."""
    due = arrivals(load * replicas * service.max_batch / service.times[-1], count)
    found = {}
    for policy in POLICIES:
        taken = 1e3 * simulate(due, np.zeros(count), of_service(service), service.max_batch, replicas, policy)
        # Left out are the first requests, which find empty replicas.
        settled = taken[count // 10 :]
        found[policy] = {f"p{p}": float(np.percentile(settled, p)) for p in (50, 99)}
    return found
