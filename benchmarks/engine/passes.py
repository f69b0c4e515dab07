"""The measured process: reads one job from stdin, does one pass, and answers with JSON on stdout.

It imports nothing before it measures but numpy and the runtime, so that what it weighs and times is the network.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from models.preprocess import Pixels
from serving import runtime
from serving.artifact import Artifact, load
from serving.engines import Runtime

# Warm-up ends when the medians of this many windows in a row lie within this share of each other: wider than the
# jitter of a quiet machine (about 1 %), narrower than the first calls' cost (caches, lazy kernels: 10 % and more).
WINDOWS = 3
AGREEMENT = 0.05
CALLS_PER_WINDOW = 5

# Memory grows until every buffer has been used once; the second and third call show whether it has stopped.
MEMORY_CALLS = 3

Pass = Callable[[dict[str, Any]], dict[str, Any]]

STATUS = Path("/proc/self/status")


def attempt(job: dict[str, Any], passes: Mapping[str, Pass]) -> dict[str, Any]:
    """The pass that `job` names, or {"failed": reason, "kind": "memory" or "engine"}."""
    try:
        return passes[job["pass"]](job)
    except MemoryError:
        return {"kind": "memory", "failed": f"memory ended in the {job['pass']} pass"}
    except Exception as error:  # whatever an engine raises becomes the record's reason
        message = " ".join(str(error).split()) or type(error).__name__
        ended = re.search(r"bad.?alloc|out of memory|failed to allocate", message, re.IGNORECASE)
        if ended:
            return {"kind": "memory", "failed": f"memory ended in the {job['pass']} pass: {message}"}
        return {"kind": "engine", "failed": message}


def artifact_of(job: dict[str, Any]) -> Artifact:
    return load(Path(job["folder"]), job["version"])


def opened(job: dict[str, Any]) -> Runtime:
    return runtime.open(artifact_of(job), job["engine"], job["precision"], job["threads"])


def pixels(job: dict[str, Any]) -> Pixels:
    """Noise, uint8 [batch, size, size, channels]: the time of a dense network does not depend on what it looks at."""
    recipe = artifact_of(job).preprocess
    channels = 1 if recipe.mode == "L" else 3
    shape = (job["batch"], recipe.crop, recipe.crop, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def latency(job: dict[str, Any]) -> dict[str, Any]:
    """Every call's time in milliseconds, the wall and processor seconds of all, and whether warm-up settled."""
    settings, batch, network = job["settings"], pixels(job), opened(job)

    def call() -> object:
        return network.run(batch)

    warm = warm_up(call, settings["warmup_s"])
    clock, values = time.perf_counter, []
    cpu_began, began = time.process_time(), clock()
    after = began
    while True:
        before = after
        call()
        # One reading ends a call and begins the next, so that nothing lies between calls unmeasured.
        after = clock()
        values.append(after - before)
        passed, count = after - began, len(values)
        enough = passed >= settings["measure_s"] and count >= settings["calls"]
        if count >= settings["fewest"] and (enough or passed >= settings["limit_s"] or count >= settings["most"]):
            break
    return {
        "values": [1e3 * value for value in values],
        "wall_s": after - began,
        "cpu_s": time.process_time() - cpu_began,
        "warm": warm,
    }


def warm_up(call: Callable[[], object], limit_s: float, clock: Callable[[], float] = time.perf_counter) -> bool:
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


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """MB (10^6 bytes): the graph's file; peak resident memory above the process before it opened the engine (engine
    library, weights, buffers); and what the calls need above the loaded network. Null where the system does not say.
    """
    batch = pixels(job)
    baseline = resident("VmRSS")
    network = opened(job)
    graph = Path(job["folder"]) / artifact_of(job).graphs()[job["engine"], job["precision"]]
    loaded, load_peak = resident("VmRSS"), resident("VmHWM")
    fresh = forget_peak()
    for _ in range(MEMORY_CALLS):
        network.run(batch)
    peak = resident("VmHWM")
    # Loading often needs more than running; unless that peak could be forgotten, it hides the calls' own.
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
        found = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 / 1e6 if found else None


def forget_peak() -> bool:
    """Let VmHWM begin anew; False where the kernel does not offer it."""
    before = resident("VmHWM")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    after = resident("VmHWM")
    return after is not None and before is not None and after <= before


def power(job: dict[str, Any]) -> Any:
    from benchmarks.engine.power import measure, sensor_for

    settings = job["settings"]

    def load() -> Callable[[], object]:
        network, batch = opened(job), pixels(job)
        warm_up(lambda: network.run(batch), settings["warmup_s"])
        return lambda: network.run(batch)

    return measure(
        sensor_for(job["engine"]),
        load,
        job["batch"],
        idle_s=settings["idle_s"],
        window_s=settings["window_s"],
        trials=settings["trials"],
    )
