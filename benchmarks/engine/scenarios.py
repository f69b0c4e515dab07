"""MLPerf-style scenarios, in process against `Runtime`: the field's four kinds of load, in our own small harness. The
results are not MLPerf results and may not be compared with them.

- single-stream: one image, and the next when it is answered; what counts is the 90th percentile.
- multi-stream: eight images at once, and the next eight when they are answered; the 99th percentile.
- server: images at the times of a Poisson process, gathered while the engine is busy, as the service does; the highest
  rate that keeps the 99th percentile, from arrival to answer, within a bound, found by search and then confirmed.
- offline: all images are there from the start, in batches of the fastest size; images per second.

Pixels are in memory, so that no decoding is measured. `python -m benchmarks load --search` is the server scenario over
HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import numpy as np

from benchmarks import intervals, records
from benchmarks.engine import passes
from benchmarks.engine.passes import Clock
from benchmarks.process import PassError
from benchmarks.rates import Rung, arrivals, highest
from models.preprocess import Pixels

NAMES = get_args(records.ScenarioName)

# Which percentile each scenario is judged by; offline is judged by its rate.
PERCENTILES: dict[records.ScenarioName, Literal["p90", "p99"] | None] = {
    "single-stream": "p90", "multi-stream": "p99", "server": "p99", "offline": None,
}  # fmt: skip

STREAMS = 8  # images of a multi-stream query
OFFLINE_BATCHES = (1, 2, 4, 8, 16, 32)
OFFLINE_TRIAL_S = 0.4
FEWEST_ARRIVALS, LONGEST = 200, 4
MAX_BATCH = 8  # of the server scenario: the service's default
# The images of a scenario's largest call.
LARGEST = {"single-stream": 1, "multi-stream": STREAMS, "server": MAX_BATCH, "offline": OFFLINE_BATCHES[-1]}

Run = Callable[[Pixels], object]
Sleep = Callable[[float], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of every query, or of every image in the server scenario, and the rate."""

    values: list[float]
    images: int
    seconds: float
    mean_batch: float
    rate: float | None = None  # of arrivals
    rungs: tuple[Rung, ...] = ()


def perform(name: str, run: Run, images: Pixels, seconds: float, slo_ms: float, clock: Clock, sleep: Sleep) -> Timing:
    """Scenario `name` for about `seconds` (the server's search takes several times that); `images` are as many as the
    largest batch takes.
    """
    if name == "server":
        return server(run, images, seconds, slo_ms, clock, sleep)
    if name == "offline":
        batch = fastest_batch(run, images, clock)
        return stream(run, images[:batch], seconds, clock)
    return stream(run, images[: 1 if name == "single-stream" else STREAMS], seconds, clock)


def stream(run: Run, batch: Pixels, seconds: float, clock: Clock, fewest: int = 3) -> Timing:
    """One call after another."""
    values, took = passes.repeated(lambda: run(batch), lambda s, calls: s >= seconds and calls >= fewest, clock)
    return Timing(values, len(values) * len(batch), took, float(len(batch)))


def fastest_batch(run: Run, images: Pixels, clock: Clock) -> int:
    sizes = [size for size in OFFLINE_BATCHES if size <= len(images)]
    rates = {}
    for size in sizes:
        run(images[:size])  # engines make room for a new size on its first call
        trial = stream(run, images[:size], OFFLINE_TRIAL_S, clock, fewest=1)
        rates[size] = trial.images / trial.seconds
    return max(sizes, key=rates.__getitem__)


def server(run: Run, images: Pixels, seconds: float, slo_ms: float, clock: Clock, sleep: Sleep) -> Timing:
    """The highest rate within the bound. The timing is that of the run that confirmed it. If no rate keeps the
    bound, it is that of the lowest rate tried, and `rate` is None.
    """
    images = images[:MAX_BATCH]
    run(images)
    full = stream(run, images, OFFLINE_TRIAL_S, clock)
    timings: dict[float, Timing] = {}

    def trial(rate: float, seed: int) -> Rung:
        # A p99 needs calls, and at a low rate they take longer to come.
        lasts = min(max(seconds, FEWEST_ARRIVALS / rate), LONGEST * seconds)
        timings[rate] = timing = poisson(run, images, arrivals(rate, lasts, seed), rate, clock, sleep)
        if not timing.values:
            return Rung(rate, 1.0, None)
        within = float(np.mean([value <= slo_ms for value in timing.values]))
        return Rung(rate, within, float(np.percentile(timing.values, 99)))

    rate, rungs = highest(trial, full.images / full.seconds)
    timing = timings[rungs[-1].rate]
    return Timing(timing.values, timing.images, timing.seconds, timing.mean_batch, rate, tuple(rungs))


def poisson(run: Run, images: Pixels, due: Sequence[float], rate: float, clock: Clock, sleep: Sleep) -> Timing:
    """Images that arrive at `due` (seconds from now). One thread is enough: an arrival takes no work, so what is due
    when a batch ends is what a queue would hold.
    """
    began, first, values, batches = clock(), 0, list[float](), 0
    while first < len(due):
        if (wait := began + due[first] - clock()) > 0:
            sleep(wait)
        now = clock() - began
        size = 1
        while size < len(images) and first + size < len(due) and due[first + size] <= now:
            size += 1
        run(images[:size])
        now = clock() - began
        values += [1e3 * (now - at) for at in due[first : first + size]]
        first, batches = first + size, batches + 1
    return Timing(values, len(values), clock() - began, len(values) / max(1, batches), rate)


# In the child and the parent


class Answer(TypedDict):
    """A `Timing` as JSON, with the processor seconds and whether the warm-up settled."""

    values: list[float]
    images: int
    seconds: float
    mean_batch: float
    rate: float | None
    rungs: records.Rungs
    cpu_s: float
    warm: bool


def measure(job: passes.ScenarioJob) -> Answer:
    """The pass of one scenario."""
    settings, network, name = passes.Settings(**job["settings"]), passes.opened(job), job["scenario"]
    images = passes.pixels(job, min(LARGEST[name], job["max_batch"]))
    warm = passes.warm_up(lambda: network.run(images[:1]), settings.warmup_s)
    cpu = time.process_time()
    timing = perform(name, network.run, images, settings.measure_s, job["slo_ms"], time.perf_counter, time.sleep)
    return {
        "values": timing.values,
        "images": timing.images,
        "seconds": timing.seconds,
        "mean_batch": timing.mean_batch,
        "rate": timing.rate,
        "rungs": [(rung.rate, rung.within, rung.p99_ms) for rung in timing.rungs],
        "cpu_s": time.process_time() - cpu,
        "warm": warm,
    }


def fill(item: records.Scenario, answer: Answer, slo_ms: float) -> None:
    """The answer into the scenario's record; `PassError` if no rate of the server scenario keeps the bound."""
    if answer["values"]:
        item["latency_ms"] = {**intervals.latency([answer["values"]]), "warm": answer["warm"]}
    item |= {
        "throughput_img_s": answer["images"] / answer["seconds"],
        "mean_batch": answer["mean_batch"],
        "sent": answer["images"],
        "errors": {},
        "judged_by": PERCENTILES[item["name"]],
        "power": records.no_power("not measured in a scenario"),
    }
    if item["name"] in ("single-stream", "multi-stream"):
        # In the other two, the processor time includes the search and the trials of batch sizes.
        item["cpu_seconds_per_image"] = answer["cpu_s"] / answer["images"]
    if item["name"] == "server":
        item |= {"rate": answer["rate"], "slo_ms": slo_ms, "rungs": answer["rungs"]}
        item["within_slo"] = answer["rungs"][-1][1]
        if answer["rate"] is None:
            raise PassError("bound", f"no rate keeps the 99th percentile within {slo_ms:g} ms")
    item["status"], item["failure"] = "ok", None


def summary(items: Sequence[records.Scenario]) -> str:
    """What was measured, for the terminal."""
    from models.console import table

    s, rows, notes = records.significant, [], []
    for item in items:
        first = (item["network"], item["engine"], item["precision"], item.get("scenario") or "")
        if not records.measured(item):
            notes.append(f"{' '.join(first)} {item['status']}")
            continue
        judged, latency = item["judged_by"], item["latency_ms"]
        assert latency is not None
        figure = f"{judged} {s(latency[judged])} ms" if judged else f"{s(item['throughput_img_s'])} img/s"
        if item.get("rate"):
            figure = f"{s(item['rate'])} img/s, {figure}"
        rows.append((*first, figure, s(item["mean_batch"]), f"{latency['count']:,}"))
    header = ("network", "engine", "precision", "scenario", "result", "mean batch", "calls")
    return "\n".join([table(rows, header, right=(5, 6)), *notes])
