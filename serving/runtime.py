"""From artifact to scores: `open(artifact, engine).run(batch)` is the one way to run anything."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from models.console import Failure
from serving.artifact import Artifact, ArtifactError
from serving.engines import OnnxRuntime, OnnxRuntimeCuda, OpenVino, Runtime
from serving.trt import MODULES, TensorRt, TensorRtRtx, check_record, gpu, load_module

# A container's processor time, in microseconds per period (Linux control groups, version 2).
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """The processors that this process may use: those it may run on, but no more than its container's quota allows."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text("ascii").split()
        return max(1, min(here, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # without a control group, or with "max" in it, there is no quota
        return here


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


ENGINES: dict[str, Callable[..., Runtime]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "onnxruntime-cuda": OnnxRuntimeCuda,
    "tensorrt": TensorRt,
    "tensorrt-rtx": TensorRtRtx,
}

# Engines that run a plan, compiled for a GPU, instead of ONNX; and all that need a GPU.
PLAN_ENGINES = tuple(MODULES)
GPU_ENGINES = ("onnxruntime-cuda", *PLAN_ENGINES)

# The package that carries each engine, and the extra that installs it.
PACKAGES = {
    "onnxruntime": ("onnxruntime", "cpu"),
    "openvino": ("openvino", "cpu"),
    "onnxruntime-cuda": ("onnxruntime", "gpu"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx"),
}


def installed() -> tuple[str, ...]:
    """The engines whose packages are installed here."""
    from importlib.metadata import distributions
    from importlib.util import find_spec

    engines = [engine for engine, (package, _) in PACKAGES.items() if find_spec(package)]
    # onnxruntime and onnxruntime-gpu are the same module. Only the name of its package tells whether it has CUDA.
    if not any((d.name or "").lower() == "onnxruntime-gpu" for d in distributions(name="onnxruntime-gpu")):
        engines = [engine for engine in engines if engine != "onnxruntime-cuda"]
    return tuple(engines)


@cache
def available() -> tuple[str, ...]:
    """The engines that can run here: they are installed, and the GPU is there if they need one."""
    return tuple(engine for engine in installed() if engine not in GPU_ENGINES or _has_gpu())


def _has_gpu() -> bool:
    try:
        return gpu() is not None
    except Failure:  # cuda-bindings or the driver is missing
        return False


def unusable(engine: str) -> str:
    """Why `engine` does not run here, and the repair."""
    _, extra = PACKAGES[engine]
    if engine not in installed():
        return f"engine {engine} is not installed; pip install 'podium[{extra}]'"
    return f"engine {engine} needs an NVIDIA GPU with its driver, and this machine shows none"


class Choice(NamedTuple):
    """What runs a network."""

    engine: str
    precision: str
    threads: int


# What to run if nothing was measured on a machine like this: a GPU, then the lower precision, then OpenVINO. On two
# cores (benchmarks/results/intel-xeon-2c-2026-11-22/report.md), in each of the lecture's five networks at batch 1, INT8
# on OpenVINO is 1.9 to 3.6 times as fast as INT8 on ONNX Runtime, and that is 1.6 to 3.5 times as fast as fp32 on
# either. In fp32 OpenVINO is 1.04 to 1.5 times as fast. An INT8 file is saved only if it answers as its original does.
ENGINES_BY_SPEED = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime")
PRECISIONS_BY_SPEED = ("int8", "fp16", "fp32")


def by_expected_speed(pair: tuple[str, str]) -> tuple[bool, int, int]:
    """A key that sorts pairs (engine, precision), the one expected to be fastest first."""
    engine, precision = pair
    return engine not in GPU_ENGINES, PRECISIONS_BY_SPEED.index(precision), ENGINES_BY_SPEED.index(engine)


def _tuned(artifact: Artifact) -> list[tuple[str, str, int]]:
    """(engine, precision, threads) from fastest to slowest, if the export measured them on a machine like this.

    They are sorted by the product of their latencies over the batch sizes, so that all batch sizes count alike.
    """
    tuning = artifact.manifest.get("tuning") or {}
    if (tuning.get("cpu"), tuning.get("cores")) != (cpu_model(), cores()):
        return []
    product: dict[tuple[str, str, int], float] = {}
    for row in tuning["rows"]:
        key = (row["engine"], row["precision"], row["threads"])
        product[key] = product.get(key, 1.0) * row["latency_ms"]
    return sorted(product, key=product.__getitem__)


def choose(artifact: Artifact, engine: str = "auto", precision: str = "auto", threads: int = 0) -> Choice:
    """What should run `artifact`: of what the arguments allow, a GPU's engine, else the fastest that tuning measured on
    a machine like this, else the one expected to be fastest.

    `threads` 0 takes the number that tuning chose, or one per core. Raises `ArtifactError` if nothing fits.
    """
    graphs, usable = artifact.graphs(), available()
    if engine != "auto" and engine not in ENGINES:
        raise ArtifactError(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    if engine != "auto" and engine not in usable:
        raise ArtifactError(unusable(engine))
    fitting = [(e, p) for e, p in graphs if e in usable and engine in ("auto", e) and precision in ("auto", p)]
    if engine == "auto":  # if nothing else fits, a plan for another GPU is taken, and opening it says what is wrong
        fitting = [pair for pair in fitting if _loads_here(artifact, *pair)] or fitting
    fitting.sort(key=by_expected_speed)
    if fitting and fitting[0][0] not in GPU_ENGINES:  # tuning measures only the CPU's engines
        for e, p, tuned in _tuned(artifact):
            if (e, p) in fitting:
                return Choice(e, p, threads or tuned)
    if fitting:
        return Choice(*fitting[0], threads or cores())
    has = ", ".join(f"{e} {p}" for e, p in graphs) or "nothing"
    raise ArtifactError(
        f"{artifact.tag} has no file for engine {engine} at precision {precision}; it has {has}, "
        f"and usable here: {', '.join(usable) or 'no engine (pip install podium[cpu])'}"
    )


def _loads_here(artifact: Artifact, engine: str, precision: str) -> bool:
    """Whether the plan of `engine`, if it runs one, was built for this machine's GPU, driver and engine version."""
    if engine not in PLAN_ENGINES:
        return True
    record = artifact.manifest["files"][artifact.graphs()[engine, precision]].get("plan", {})
    try:
        here = gpu()
        if here is not None:
            check_record(record, engine, load_module(engine).__version__, here)
    except Failure:
        return False
    return here is not None


def open(
    artifact: Artifact, engine: str = "auto", precision: str = "auto", threads: int = 0, lean: bool = False
) -> Runtime:
    """`artifact` loaded into an engine, after its file's sha256 was checked. The arguments are those of `choose`.

    `lean` takes half a second longer, and lets `give_back_memory` free what a warm engine does not need. Raises
    `Failure` with the repair.
    """
    chosen = choose(artifact, engine, precision, threads)
    name = artifact.graphs()[chosen.engine, chosen.precision]
    graph = artifact.file(name)
    plan = (artifact.manifest["files"][name]["plan"],) if chosen.engine in PLAN_ENGINES else ()
    try:
        more = {"lean": True} if lean and chosen.engine == "openvino" else {}
        return ENGINES[chosen.engine](graph, chosen.precision, chosen.threads, *plan, **more)
    except Failure:
        raise
    except Exception as error:  # engines raise types of their own, RuntimeError among them
        raise refused(artifact, f"{chosen.engine} cannot load {graph.name}", error) from error


def refused(artifact: Artifact, what: str, error: Exception) -> ArtifactError:
    """An engine's own exception as ours: there was too little memory, or the graph cannot run."""
    memory = isinstance(error, MemoryError) or "alloc" in str(error)  # most engines say so only in the text
    repair = "there is too little memory: free some, or load less" if memory else "export it again"
    return ArtifactError(f"{artifact.tag}: {what}; {repair} ({error})")
