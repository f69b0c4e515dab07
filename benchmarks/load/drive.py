"""Load on a running service, over HTTP alone, as its users put it there: the two loops, and a record of each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, cast
from urllib.parse import SplitResult, urlencode, urlsplit

import numpy as np

from benchmarks import intervals, records
from benchmarks.load.bodies import Body
from benchmarks.load.loops import Done, after, closed_loop, open_loop
from benchmarks.load.wire import Pool, Reply, request
from benchmarks.rates import Rung, arrivals, highest
from models import SPECS, console
from models.console import Failure, Usage

# The first requests open connections and fill caches; they are sent and not counted.
WARMUP_REQUESTS = 8

# If the client itself sends this late at the 99th percentile, the client and not the service is being measured.
CLIENT_LAG_MS = 10.0

STAGES = ("decode", "queue", "inference")

# In flight while the highest possible rate is measured.
FULL = 16

# How long a client waits before it asks again a service that is not there: its absence is not a million errors.
ABSENT_S = 0.1

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Scenario:
    """Either so many requests in flight (closed loop) or so many due per second (open loop)."""

    concurrency: int | None = None
    rate: float | None = None
    seed: int = 0  # of the times at which requests are due

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError("a scenario has a concurrency or a rate, and not both")

    @property
    def name(self) -> str:
        return (
            f"closed loop, {self.concurrency} in flight" if self.concurrency else f"open loop, {self.rate:g} per second"
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one request; times in milliseconds. `status` is the HTTP status, or a word if none came."""

    status: int | str
    latency: float
    lag: float  # how much later than due it was sent
    answer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, done: Done[Reply]) -> Outcome:
        reply, times = done.answer, (done.latency_ms, done.lag_ms)
        if reply.status != 200:
            return cls(reply.status or reply.lost, *times)
        answer = reply.answer
        return cls(200, *times, answer) if "predictions" in answer else cls("not a classification", *times)


def drive(
    url: str, scenario: Scenario, bodies: Sequence[Body], duration: float, model: str | None, slo_ms: float | None
) -> records.Load:
    """One scenario against the service at `url` for `duration` seconds, as a record; `Usage` for an unusable URL."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme in PORTS and parts.hostname and (parts.port or PORTS[parts.scheme])
    except ValueError:  # a port that is not a number
        usable = None
    if not usable:
        raise Usage(f"{url!r} is not an address of a service; expected http://HOST:PORT")
    if parts.username is not None:
        raise Usage("the address has a user's name or a password, which is not sent; leave it out")
    outcomes, seconds = asyncio.run(_drive(parts, scenario, bodies, duration, model))
    return record(scenario, outcomes, seconds, model, slo_ms)


def search(
    url: str,
    bodies: Sequence[Body],
    duration: float,
    model: str | None,
    slo_ms: float,
    progress: Callable[[], object] = lambda: None,
) -> list[records.Load | records.Search]:
    """MLPerf-style server: the record of the full closed loop that bounds the search, and that of the highest rate
    that keeps the bound, with every rate tried as `rungs`; "failed: reason" if none does.
    """
    full = drive(url, Scenario(concurrency=FULL), bodies, duration, model, slo_ms)
    progress()
    if full["throughput_img_s"] is None:
        return [full]
    by_rate: dict[float, records.Load] = {}

    def trial(rate: float, seed: int) -> Rung:
        by_rate[rate] = item = drive(url, Scenario(rate=rate, seed=seed), bodies, duration, model, slo_ms)
        progress()
        # A request that failed did not meet the bound either, and a rate too low for any request shows nothing.
        latency = item["latency_ms"]
        return Rung(rate, item["within_slo"] or 0.0, latency["p99"] if latency else None)

    rate, rungs = highest(trial, full["throughput_img_s"])
    last: dict[str, Any] = {**by_rate[rungs[-1].rate], "kind": "search"}
    last |= {"scenario": f"MLPerf-style server, p99 within {slo_ms:g} ms"}
    last |= {"rungs": [[rung.rate, rung.within, rung.p99_ms] for rung in rungs]}
    search = cast(records.Search, last)
    if rate is None:
        search["rate"] = None
        records.fail(search, records.Failed("bound", f"no rate keeps the 99th percentile within {slo_ms:g} ms"))
    return [full, search]


async def _drive(
    url: SplitResult, scenario: Scenario, bodies: Sequence[Body], duration: float, model: str | None
) -> tuple[list[Outcome], float]:
    target = f"{url.path.rstrip('/')}/classify" + (f"?{urlencode({'model': model})}" if model else "")
    requests = cycle([request(body.data, body.content_type, target, host=url.netloc) for body in bodies])
    # As many connections as there are requests: none waits for another inside the client, where nobody would see it.
    pool = Pool(url.port or PORTS[url.scheme], url.hostname or "", url.scheme == "https")

    async def ask() -> Reply:
        return await pool.ask(next(requests))

    with closing(pool):
        for _ in range(WARMUP_REQUESTS):
            if (await ask()).lost == "unreachable":
                raise Failure(f"nothing answers at {url.geturl()}; start the service with `bentoml serve`")
        began = time.perf_counter()
        if scenario.concurrency:
            done = await closed_loop(
                ask, scenario.concurrency, after(duration), lambda reply: ABSENT_S * (reply.lost == "unreachable")
            )
        else:
            done = await open_loop(ask, arrivals(scenario.rate or 0, duration, scenario.seed))
        seconds = time.perf_counter() - began
    return list(map(Outcome.of, done)), seconds


def record(
    scenario: Scenario, outcomes: Sequence[Outcome], seconds: float, model: str | None, slo_ms: float | None
) -> records.Load:
    """The record of one scenario. Latencies are those of answered requests; every other is counted in `errors`."""
    answered = [o for o in outcomes if o.status == 200]
    errors = Counter(str(o.status) for o in outcomes if o.status != 200)
    first = answered[0].answer if answered else {}
    network = str(first.get("model") or model or "unknown")
    row = SPECS.get(network)
    item: records.Load = {
        **records.unmeasured(records.Failed("unanswered", "no request was due")),
        "kind": "load",
        "split_ms": None,
        "mean_batch": None,
        "batch": None,
        "network": network,
        "version": first.get("version"),
        "engine": str(first.get("engine", "unknown")),
        "precision": str(first.get("precision", "unknown")),
        "weights": str(first.get("weights", "unknown")),
        "scenario": scenario.name,
        "concurrency": scenario.concurrency,
        "rate": scenario.rate,
        "duration_s": seconds,
        "sent": len(outcomes),
        "errors": dict(sorted(errors.items())),
        "macs": row.macs if row else None,
        "params": row.params if row else None,
        "power": records.no_power("not measured over HTTP: the service may be on another machine"),
        "slo_ms": slo_ms,
        "within_slo": None if slo_ms is None else share_within(outcomes, slo_ms),
        "client_lag_p99_ms": float(np.percentile([o.lag for o in outcomes], 99)) if outcomes else None,
    }
    if not answered:
        if errors:
            counted = ", ".join(f"{count} x {status}" for status, count in errors.items())
            records.fail(item, records.Failed("unanswered", counted))
        return item
    item["status"], item["failure"] = "ok", None
    item["latency_ms"] = intervals.latency([[o.latency for o in answered]])
    item["throughput_img_s"] = len(answered) / seconds
    item["split_ms"] = split(answered)
    sizes = [o.answer["batch_size"] for o in answered if isinstance(o.answer.get("batch_size"), int)]
    item["mean_batch"] = mean(sizes)
    return item


def split(answered: Sequence[Outcome]) -> dict[str, records.Stage] | None:
    """Where the time of answered requests went, mean, p50 and p99 in ms.

    The stages that `timing_ms` of answers names, the rest of the service, transport (the network, the sockets), and
    the client, which may send late.
    """
    timed = [(o, o.answer["timing_ms"]) for o in answered if isinstance(o.answer.get("timing_ms"), dict)]
    timed = [(o, t) for o, t in timed if all(isinstance(t.get(s), int | float) for s in (*STAGES, "total"))]
    if not timed:
        return None
    parts = {stage: [float(t[stage]) for _, t in timed] for stage in STAGES}
    parts["service"] = [t["total"] - sum(t[stage] for stage in STAGES) for _, t in timed]
    parts["transport"] = [o.latency - o.lag - t["total"] for o, t in timed]
    parts["client"] = [o.lag for o, _ in timed]
    return {
        name: {"mean": mean(v), "p50": float(np.percentile(v, 50)), "p99": float(np.percentile(v, 99))}
        for name, v in parts.items()
    }


def share_within(outcomes: Sequence[Outcome], slo_ms: float) -> float | None:
    """The share of requests answered within `slo_ms`; one that failed did not meet the bound either."""
    return mean([o.status == 200 and o.latency <= slo_ms for o in outcomes])


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def summary(items: Sequence[records.Load | records.Search]) -> str:
    """What was measured, for the terminal."""
    s, rows, notes = records.significant, [], []
    for item in items:
        latency, within = item["latency_ms"], item["within_slo"]
        shown = (s(latency["p50"]), s(latency["p90"]), s(latency["p99"])) if latency else (s(None),) * 3
        if item["kind"] == "search" and records.measured(item):
            notes.append(
                f"Highest rate with the 99th percentile within {item['slo_ms']:g} ms: {s(item['rate'])} per second, of "
                f"{len(item['rungs'])} tried."
            )
        elif not records.measured(item):
            notes.append(f"{item['scenario']}: {item['status']}")
        rows.append(
            (item["network"], item["scenario"], item["sent"], sum(item["errors"].values()),
             s(item["throughput_img_s"]), *shown,
             "" if within is None else f"{100 * within:.1f} %")
        )  # fmt: skip
        for status, count in item["errors"].items():
            notes.append(f"{item['scenario']}: {count} x {status}")
        if (lag := item["client_lag_p99_ms"] or 0) > CLIENT_LAG_MS:
            notes.append(
                f"{item['scenario']}: this client sent {lag:.0f} ms late at p99; "
                "run it on another machine or lower the rate"
            )
    header = ("network", "scenario", "sent", "errors", "img/s", "p50 ms", "p90 ms", "p99 ms", "in bound")
    return "\n".join([console.table(rows, header, right=range(2, 9)), *notes])
