"""How many replicas keep a bound at a rate: a queueing model on measured batch times.

A replica serves as `serving.batcher` does: an idle engine starts at once on what is there, and what arrives while it
runs is the next batch, up to a largest one. With Poisson arrivals this is the bulk queue M/G^[1,b]/1 (Bailey, On
queueing processes with bulk service, J. R. Stat. Soc. B 16, 1954; Neuts, A general class of bulk queues with Poisson
input, Ann. Math. Stat. 38, 1967). `solve` gives the steady state of the chain embedded at the starts of service, and
from it the distribution of the time from arrival to answer, by integrating over where in a service a request arrives.
A random share of a Poisson stream is a Poisson stream, so replicas behind a balancer that chooses at random are that
many such queues. A balancer that chooses in turn, or the least loaded, does better.

Times of a batch come from `benchmarks run`: measured at some sizes, straight lines between them, spread as the single
calls were. Decoding and HTTP are not in them; with closed-loop records of `benchmarks load` beside them, the service's
own times for a batch take their place. If `benchmarks load --search` has found the highest rate within the same
bound, and it is lower than the model's, it is the rate that counts; both are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np

from benchmarks.advise.queueing import PERCENTILE, Service, highest_rate, solve
from benchmarks.records import (
    Document,
    Identity,
    Load,
    MeasuredCell,
    Record,
    Search,
    measured,
    measured_cells,
    searches,
    significant,
)
from models.console import table

# The spread of a service time, as shares of the calls from the fastest on: the last two make the p99.
SHARES = (0.5, 0.9, 0.99, 1.0)


# --- from records -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One way to serve `rate`: so many replicas of a network in an engine with batches up to `max_batch`."""

    record: MeasuredCell  # at batch 1: what it is
    max_batch: int
    replicas: int
    rate_each: float  # the highest within the bound: the model's, or the measured one if that is lower
    model_each: float
    measured_each: float | None  # by search over HTTP
    busy: float  # at the rate asked for
    p99_ms: float
    served: bool  # decoding and HTTP are in it


def plan(
    documents: Sequence[Document],
    rate: float,
    slo_ms: float,
    min_top1: float | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> tuple[list[Option], list[str]]:
    """The best option of every network, fewest replicas first and of equals the most accurate; and in words, which
    combinations cannot keep the bound.
    """
    every = [item for _, document in documents for item in document["records"]]
    searched = searches(every, slo_ms)
    best: dict[str, Option] = {}
    refused = []
    for (network, engine, precision), group in progress(list(series(measured_cells(every)).items())):
        name = f"{network} {engine} {precision}"
        alone = group.get(1)
        if alone is None:
            refused.append(f"{name}: batch 1 was not measured")
            continue
        if min_top1 is not None and (alone["top1"] is None or alone["top1"] < min_top1):
            refused.append(f"{name}: top-1 {'is not known' if alone['top1'] is None else alone['top1']}")
            continue
        rates = [i["rate"] for i in searched if key(i) == (network, engine, precision)]
        if rates and not any(rates):
            refused.append(f"{name}: the search over HTTP found no rate that keeps {slo_ms:g} ms")
            continue
        loads = [i for i in every if is_served(i) and key(i) == (network, engine, precision)]
        options = [o for b in sorted(group) if (o := option(group, b, loads, rate, slo_ms)) is not None]
        if not options:
            refused.append(f"{name}: a request alone takes longer than {slo_ms:g} ms at its 99th percentile")
            continue
        found = min(options, key=lambda o: (o.replicas, o.p99_ms))
        if network not in best or order(found) < order(best[network]):
            best[network] = found
    return sorted(best.values(), key=order), refused


def order(one: Option) -> tuple[float, float, float]:
    top1 = one.record["top1"]
    return one.replicas, -(top1 if top1 is not None else -math.inf), -one.rate_each


def key(item: Identity) -> tuple[str, str, str]:
    return item["network"], item["engine"], item["precision"]


def is_served(item: Record) -> TypeGuard[Load | Search]:
    """Whether the service answered requests of this record, and said where their time went."""
    return item["kind"] in ("load", "search") and measured(item) and bool(item.get("split_ms"))


def series(items: Sequence[MeasuredCell]) -> dict[tuple[str, str, str], dict[int, MeasuredCell]]:
    """The cells by network, engine and precision, and in these by batch."""
    found: dict[tuple[str, str, str], dict[int, MeasuredCell]] = {}
    for item in items:
        found.setdefault(key(item), {})[item["batch"]] = item
    return found


def option(
    group: dict[int, MeasuredCell], max_batch: int, loads: Sequence[Load | Search], rate: float, slo_ms: float
) -> Option | None:
    service = service_of(group, max_batch, loads)
    modelled = highest_rate(service, slo_ms / 1e3)
    if modelled is None:
        return None
    found = [highest for item in searches(loads, slo_ms) if (highest := item["rate"]) is not None]
    each = min(modelled, *found) if found else modelled
    replicas = math.ceil(rate / each)
    state = solve(service, rate / replicas)
    assert state is not None
    p99 = 1e3 * state.percentile(PERCENTILE)
    served = of_the_service(loads) is not None
    measured_each = found[-1] if found else None
    return Option(group[1], max_batch, replicas, each, modelled, measured_each, state.busy, p99, served)


def service_of(group: dict[int, MeasuredCell], max_batch: int, loads: Sequence[Load | Search] = ()) -> Service:
    """The service of records by batch, 1 among them, with what the load records say the engine's time leaves out."""
    known = sorted(b for b in group if b <= max_batch)
    middles = [float(np.median(group[b]["latency_ms"]["values"])) / 1e3 for b in known]

    def engine(n: float) -> float:
        return float(np.interp(n, known, middles))

    # At the largest batch: a full queue is what misses the bound, and there a stall is a smaller share of the time.
    factors, weights = spread_of(group[known[-1]]["latency_ms"]["values"])
    mean = sum(factor * weight for factor, weight in zip(factors, weights, strict=True))
    whole = of_the_service(loads)
    # A closed loop gives means, which are `mean` times as long as medians.
    times = [whole(n) / mean if whole else engine(n) for n in range(1, max_batch + 1)]
    # That a larger batch took less than a smaller one is noise.
    rising = np.maximum.accumulate([max(time, engine(n)) for n, time in enumerate(times, 1)])
    return Service(tuple(rising.tolist()), factors, weights)


def of_the_service(loads: Sequence[Load | Search]) -> Callable[[float], float] | None:
    """Seconds that the whole service takes for a batch, from its closed-loop records; None if they are fewer than two.

    A closed loop that is never idle answers a batch of m at a rate of X in m / X seconds, decoding and HTTP included;
    the line through the smallest and the largest of these batches gives the others.
    """
    closed = [(i["mean_batch"], i["throughput_img_s"]) for i in loads if i["concurrency"]]
    points = sorted((batch, batch / rate) for batch, rate in closed if batch and rate)
    if len(points) < 2:
        return None
    (first, low), (last, high) = points[0], points[-1]
    slope = max(0.0, (high - low) / (last - first)) if last > first else 0.0
    return lambda n: low + (n - first) * slope


def spread_of(values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Factors on the median, and their probabilities: the means of the calls' `SHARES`, those that are not empty."""
    ordered = np.sort(np.asarray(values)) / float(np.median(values))
    edges = [0, *(round(share * len(ordered)) for share in SHARES)]
    parts = [(ordered[a:z].mean(), (z - a) / len(ordered)) for a, z in pairwise(edges) if z > a]
    return tuple(float(mean) for mean, _ in parts), tuple(weight for _, weight in parts)


HEADER = (
    "network", "engine", "precision", "top-1 %", "max batch", "replicas", "img/s each", "measured", "busy", "p99 ms",
    "of",
)  # fmt: skip


def text(options: Sequence[Option], refused: Sequence[str], rate: float, slo_ms: float) -> str:
    """The plan for the terminal."""
    parts = [f"Asked for: {rate:g} images a second with the 99th percentile within {slo_ms:g} ms."]
    if options:
        best = options[0]
        r = best.record
        parts.append(
            f"Run {best.replicas} replica{'s' * (best.replicas != 1)} of {r['network']} in {r['engine']} at "
            f"{r['precision']}, batches up to {best.max_batch}: the fewest replicas, and of equals the most accurate."
        )
        parts.append(table([row(one) for one in options], HEADER, right=range(3, 10)))
    parts += ["Cannot keep it:", *(f"  {line}" for line in refused)] if refused else []
    if any(o.record["weights"] == "untrained" and o.record["top1"] is not None for o in options):
        parts.append("† published (weights here are untrained): the accuracy is not that of these weights.")
    if any(not o.served for o in options):
        parts.append(
            "engine: decoding and HTTP are not in it. Add a result file of `python -m benchmarks load URL "
            "--concurrency 1,16` against the service, and they are."
        )
    if options:
        parts.append(
            "A replica is one service with the processors these records were measured on. Model: Poisson arrivals "
            "dealt at random, batch service M/G^[1,b]/1 (Bailey 1954, Neuts 1967) on measured batch times; "
            "PODIUM_MAX_BATCH sets the largest batch."
        )
    return "\n".join(parts)


def row(one: Option) -> tuple[str, ...]:
    r = one.record
    top1 = "–" if r["top1"] is None else f"{r['top1']:.2f}"  # noqa: RUF001
    return (
        *key(r), top1 + ("†" if r["top1"] is not None and r["weights"] == "untrained" else ""), str(one.max_batch),
        str(one.replicas), significant(one.model_each), significant(one.measured_each),
        f"{100 * one.busy:.0f} %", significant(one.p99_ms),
        "service" if one.served else "engine",
    )  # fmt: skip
