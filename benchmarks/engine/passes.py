"""One pass over one engine: the time of its calls, the memory it needs, the power it draws."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

import numpy as np

from benchmarks import records
from models.preprocess import Pixels
from serving import runtime
from serving.artifact import Artifact, load
from serving.engines import Runtime

# Warm-up ends when the medians of this many windows in a row lie within this share of each other: wider than the
# jitter of a quiet machine (about 1 %), narrower than the first calls' cost (caches, lazy kernels: 10 % and more).
WINDOWS = 3
AGREEMENT = 0.05
CALLS_PER_WINDOW = 5

# Memory grows until every buffer has been used once; the second and third call show whether it still grows.
MEMORY_CALLS = 3

STATUS = Path("/proc/self/status")

Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Settings:
    """How long to look. Times are in seconds."""

    name: str
    starts: int  # fresh processes that time the same cell
    warmup_s: float  # at most; warm-up ends when windows agree
    measure_s: float  # at least, in each start
    limit_s: float  # at most, in each start, unless fewer than `fewest` calls fit
    calls: int  # at least, in each start, if `limit_s` allows
    fewest: int  # at least, in each start, whatever it takes
    most: int  # at most, in each start: every value is kept, and the smallest network makes 50,000 a second
    idle_s: float
    window_s: float
    trials: int

    def enough(self, seconds: float, calls: int) -> bool:
        """Whether so many calls in so many seconds are a measurement."""
        done = seconds >= self.measure_s and calls >= self.calls
        return calls >= self.fewest and (done or seconds >= self.limit_s or calls >= self.most)


class Job(TypedDict):
    """What opens an engine in a child process."""

    folder: str
    version: str
    engine: str
    precision: str
    threads: int


class PassJob(Job):
    """What every pass is told; `settings` are the fields of `Settings`."""

    settings: Mapping[str, Any]


class CellJob(PassJob):
    batch: int


class ScenarioJob(PassJob):
    scenario: records.ScenarioName
    slo_ms: float
    max_batch: int


class Calls(TypedDict):
    """Milliseconds of every call, and the wall and processor seconds of all."""

    values: list[float]
    wall_s: float
    cpu_s: float


class Latency(Calls):
    warm: bool  # whether the warm-up settled


def artifact_of(job: Job) -> Artifact:
    return load(Path(job["folder"]), job["version"])


def opened(job: Job) -> Runtime:
    return runtime.open(artifact_of(job), job["engine"], job["precision"], job["threads"])


def pixels(job: Job, batch: int) -> Pixels:
    """Noise in the shape of `batch` images: the time of a dense network does not depend on what it looks at."""
    return noise((batch, *artifact_of(job).preprocess.shape))


def noise(shape: tuple[int, ...]) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def latency(job: CellJob) -> Latency:
    settings, batch, network = Settings(**job["settings"]), pixels(job, job["batch"]), opened(job)

    def call() -> object:
        return network.run(batch)

    warm = warm_up(call, settings.warmup_s)
    return {**timed(call, settings), "warm": warm}


def timed(call: Call, settings: Settings) -> Calls:
    cpu = time.process_time()
    values, seconds = repeated(call, settings.enough)
    return {"values": values, "wall_s": seconds, "cpu_s": time.process_time() - cpu}


def repeated(
    call: Call, enough: Callable[[float, int], bool], clock: Clock = time.perf_counter
) -> tuple[list[float], float]:
    """Call until `enough` of (seconds, calls): the milliseconds of every call, and the seconds of all."""
    values = list[float]()
    began = after = clock()
    while not enough(after - began, len(values)):
        before = after
        call()
        # One reading ends a call and begins the next, so that nothing lies between calls unmeasured.
        after = clock()
        values.append(1e3 * (after - before))
    return values, after - began


def warm_up(call: Call, limit_s: float, clock: Clock = time.perf_counter) -> bool:
    """Call until the last windows agree (True) or `limit_s` seconds are over (False); at least twice."""
    began, medians = clock(), []
    call()
    while True:
        window = []
        for _ in range(CALLS_PER_WINDOW):
            before = clock()
            call()
            window.append(clock() - before)
            if clock() - began >= limit_s:
                break
        medians.append(median(window))
        recent = medians[-WINDOWS:]
        if len(recent) == WINDOWS and max(recent) - min(recent) <= AGREEMENT * median(recent):
            return True
        if clock() - began >= limit_s:
            return False


def memory(job: CellJob) -> records.Memory:
    """MB: the graph's file; peak resident memory above the process before it opened the engine (engine library,
    weights, buffers); and what the calls need above the loaded network. Null if the system does not say.
    """
    batch = pixels(job, job["batch"])
    baseline = resident("VmRSS")
    network = opened(job)
    graph = Path(job["folder"]) / artifact_of(job).graphs()[job["engine"], job["precision"]]
    loaded, load_peak = resident("VmRSS"), resident("VmHWM")
    fresh = forget_peak()
    for _ in range(MEMORY_CALLS):
        network.run(batch)
    peak = resident("VmHWM")
    # Loading often needs more than running. If that peak could not be reset, it hides the peak of the calls.
    hidden = not fresh and peak == load_peak
    return {
        "weights": graph.stat().st_size / 1e6,
        "peak_rss": None if peak is None or baseline is None else max(peak, load_peak or 0) - baseline,
        "peak_gpu": None,
        "activations": None if peak is None or loaded is None or hidden else max(0.0, peak - loaded),
        "loaded": None if loaded is None or baseline is None else loaded - baseline,
    }


def resident(field: str) -> float | None:
    """VmRSS (now) or VmHWM (the peak) of this process in MB."""
    try:
        kilobytes = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(kilobytes[1]) * 1024 / 1e6 if kilobytes else None


def forget_peak() -> bool:
    """Reset VmHWM; False if the kernel does not offer that."""
    before = resident("VmHWM")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    after = resident("VmHWM")
    return after is not None and before is not None and after <= before


def power(job: CellJob) -> records.Power:
    from benchmarks.engine.power import measure, sensor_for

    settings = Settings(**job["settings"])

    def load() -> Call:
        network, batch = opened(job), pixels(job, job["batch"])
        warm_up(lambda: network.run(batch), settings.warmup_s)
        return lambda: network.run(batch)

    return measure(
        sensor_for(job["engine"]),
        load,
        job["batch"],
        idle_s=settings.idle_s,
        window_s=settings.window_s,
        trials=settings.trials,
    )
