"""Load on a running service, over HTTP alone, as its users put it there.

Closed loop: so many requests are always in flight; each waits for its answer before the next is sent, so the service
sets the pace and its queue never shows. Open loop: requests are due at random times (a Poisson process, MLPerf-style
Server) whatever the service does, and a latency counts from the time a request was due, not from when the client came
to send it; otherwise the requests that a stall delays would be missing from its cost (coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import numpy as np

from benchmarks import intervals, records
from benchmarks.load.bodies import Body
from benchmarks.rates import Rung, arrivals, highest
from models import SPECS, console
from models.console import Failure, Usage

if TYPE_CHECKING:
    import aiohttp


# The first requests open connections and fill caches; they are sent and not counted.
WARMUP_REQUESTS = 8

# An answer that takes longer is counted as a timeout: its sender is gone.
PATIENCE_S = 60.0

# When the client itself sends this late at the 99th percentile, the client and not the service is being measured.
CLIENT_LAG_MS = 10.0

STAGES = ("decode", "queue", "inference")


# In flight while the highest possible rate is found.
FULL = 16


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


@dataclass
class Outcome:
    """What one request came to; times in milliseconds. `status` is the HTTP status, or a word where none came."""

    status: int | str
    latency: float
    lag: float  # how much later than due it was sent
    answer: Mapping[str, Any] = field(default_factory=dict)


Send = Callable[[], Awaitable[Outcome]]


def drive(
    url: str, scenario: Scenario, bodies: Sequence[Body], duration: float, model: str | None, slo_ms: float | None
) -> records.Load:
    """One scenario against the service at `url` for `duration` seconds, as a record; `Usage` for an unusable URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Usage(f"{url!r} is not an address of a service; expected http://HOST:PORT")
    outcomes, seconds = asyncio.run(_drive(url.rstrip("/"), scenario, bodies, duration, model))
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
    which keeps the bound, with every rate tried as `rungs`; "failed: reason" where none does.
    """
    full = drive(url, Scenario(concurrency=FULL), bodies, duration, model, slo_ms)
    progress()
    if full["throughput_img_s"] is None:
        return [full]
    made: dict[float, records.Load] = {}

    def trial(rate: float, seed: int) -> Rung:
        made[rate] = item = drive(url, Scenario(rate=rate, seed=seed), bodies, duration, model, slo_ms)
        progress()
        # A request that failed did not meet the bound either, and a rate too low for any request shows nothing.
        latency = item["latency_ms"]
        return Rung(rate, item["within_slo"] or 0.0, latency["p99"] if latency else None)

    rate, rungs = highest(trial, full["throughput_img_s"])
    last: dict[str, Any] = {**made[rungs[-1].rate], "kind": "search"}
    last |= {"scenario": f"MLPerf-style server, p99 within {slo_ms:g} ms"}
    last |= {"rungs": [[rung.rate, rung.within, rung.p99_ms] for rung in rungs]}
    found = cast(records.Search, last)
    if rate is None:
        found["rate"] = None
        records.fail(found, records.Failed("bound", f"no rate keeps the 99th percentile within {slo_ms:g} ms"))
    return [full, found]


async def _drive(
    url: str, scenario: Scenario, bodies: Sequence[Body], duration: float, model: str | None
) -> tuple[list[Outcome], float]:
    import aiohttp

    # No limit on connections: a request must not wait for another inside the client, where nobody would see it.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=PATIENCE_S)
    ) as session:
        sent = 0

        async def send(due: float | None = None) -> Outcome:
            nonlocal sent
            body = bodies[sent % len(bodies)]
            sent += 1
            return await classify(session, url, body, model, due)

        for _ in range(WARMUP_REQUESTS):
            first = await send()
            if first.status == "unreachable":
                raise Failure(f"nothing answers at {url}; start the service with `bentoml serve`")
        began = time.perf_counter()
        if scenario.concurrency:
            outcomes = await closed_loop(send, scenario.concurrency, duration)
        else:
            outcomes = await open_loop(send, arrivals(scenario.rate or 0, duration, scenario.seed))
        return outcomes, time.perf_counter() - began


async def closed_loop(
    send: Send, concurrency: int, duration: float, clock: Callable[[], float] = time.perf_counter
) -> list[Outcome]:
    """Keep `concurrency` requests in flight for `duration` seconds, then wait for the last answers."""
    end, outcomes = clock() + duration, list[Outcome]()

    async def worker() -> None:
        while clock() < end:
            outcomes.append(outcome := await send())
            if outcome.status == "unreachable":
                # A service that is gone refuses at once; do not turn its absence into a million errors.
                await asyncio.sleep(0.1)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return outcomes


async def open_loop(
    send: Callable[[float], Awaitable[Outcome]],
    due: Sequence[float],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> list[Outcome]:
    """Send a request at each time of `due` (seconds from now) without waiting for any answer; `send` gets that time."""
    began = clock()
    tasks = []
    for at in due:
        if (wait := began + at - clock()) > 0:
            await sleep(wait)
        tasks.append(asyncio.ensure_future(send(began + at)))
    return list(await asyncio.gather(*tasks))


async def classify(
    session: aiohttp.ClientSession, url: str, body: Body, model: str | None, due: float | None
) -> Outcome:
    """One request to /classify; its latency counts from `due`, or from now where it has no appointed time."""
    import aiohttp

    sent = time.perf_counter()
    due = sent if due is None else due
    answer: Mapping[str, Any] = {}
    try:
        async with session.post(
            f"{url}/classify",
            data=body.data,
            headers={"Content-Type": body.content_type},
            params={"model": model} if model else {},
        ) as response:
            raw = await response.read()
            done = time.perf_counter()
            status: int | str = response.status
            if status == 200:
                answer = await response.json(content_type=None) if raw else {}
    except TimeoutError:
        status, done = "timeout", time.perf_counter()
    except aiohttp.ClientConnectorError:
        status, done = "unreachable", time.perf_counter()
    except (aiohttp.ClientError, ValueError) as error:
        status, done = type(error).__name__, time.perf_counter()
    if status == 200 and not (isinstance(answer, dict) and "predictions" in answer):
        status, answer = "not a classification", {}
    return Outcome(status, 1e3 * (done - due), 1e3 * (sent - due), answer)


def record(
    scenario: Scenario, outcomes: Sequence[Outcome], seconds: float, model: str | None, slo_ms: float | None
) -> records.Load:
    """The record of one scenario. Latencies are those of answered requests; every other is counted in `errors`."""
    answered = [o for o in outcomes if o.status == 200]
    errors = Counter(str(o.status) for o in outcomes if o.status != 200)
    first = answered[0].answer if answered else {}
    network = str(first.get("model") or model or "unknown")
    row = SPECS.get(network)
    made: records.Load = {
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
            records.fail(made, records.Failed("unanswered", counted))
        return made
    made["status"], made["failure"] = "ok", None
    made["latency_ms"] = intervals.latency([[o.latency for o in answered]])
    made["throughput_img_s"] = len(answered) / seconds
    made["split_ms"] = split(answered)
    sizes = [o.answer["batch_size"] for o in answered if isinstance(o.answer.get("batch_size"), int)]
    made["mean_batch"] = mean(sizes)
    return made


def split(answered: Sequence[Outcome]) -> dict[str, records.Stage] | None:
    """Where the time of answered requests went, mean, p50 and p99 in ms: the stages that `timing_ms` of answers names,
    the service's remainder, and transport, which is everything outside it (the network, the socket, the client).
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
