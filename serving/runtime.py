"""From artifact to scores: `open(artifact, engine).run(batch)` is the one way to run anything."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.console import Failure
from models.preprocess import Pixels
from serving.artifact import LABELS, MANIFEST, Artifact, ArtifactError, find, load, sha256
from serving.trt import DEVICE, MODULES, TensorRt, TensorRtRtx, check_record, gpu, load_module, logger

# ONNX Runtime's wheels report usage and keep a database for it in the user's cache, from their import on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Scores = NDArray[np.float32]

# A container's processor time, in microseconds per period (Linux control groups, version 2).
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

MADV_DONTNEED = 4  # Linux: drop these pages
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGE = 4 << 20  # bytes; a photograph of a megapixel is decoded in blocks below it


class Runtime(Protocol):
    """A network ready to run: `run` takes uint8 [n, height, width, channels] and gives probabilities [n, classes].

    One call runs at a time in a `Runtime`; who shares one brings the lock.
    """

    engine: str
    precision: str
    threads: int

    def run(self, batch: Pixels) -> Scores: ...

    def close(self) -> None: ...


def cores() -> int:
    """The processors this process may use: those it may run on, and no more than its container's quota pays for."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text("ascii").split()
        return max(1, min(here, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or "max": no quota
        return here


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class OnnxRuntime:
    """ONNX Runtime on the CPU: one session, idle threads asleep so that decoding shares the cores with it."""

    engine = "onnxruntime"

    def __init__(self, graph: Path, precision: str, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.precision, self.threads = precision, threads
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: Pixels) -> Scores:
        scores: Scores = self._session.run(None, {self._input: batch})[0]
        return scores

    def close(self) -> None:
        del self._session


class OnnxRuntimeCuda:
    """ONNX Runtime on an NVIDIA GPU, all of it there: a graph that needs the CPU, or a missing GPU, is refused.

    Every batch is padded to a power of two, its bucket, and more images than the largest are run in pieces. A bucket
    is prepared when it is first met: its input and output stay at one place in the GPU's memory, and ONNX Runtime
    captures a CUDA graph of it in its first run and replays that from then on. It keeps the graphs for each thread
    that calls, so one thread of our own does, whoever calls `run`.
    """

    engine = "onnxruntime-cuda"

    def __init__(self, graph: Path, precision: str, threads: int, max_batch: int = 64) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.log_severity_level = 3
        provider = "CUDAExecutionProvider"
        how = {
            "device_id": str(DEVICE),
            "enable_cuda_graph": "1",
            "prefer_nhwc": "1",
            # EXHAUSTIVE times every algorithm anew for every shape; cuDNN's own choice is close and there at once.
            "cudnn_conv_algo_search": "HEURISTIC",
            # float32 means float32: TF32 would drop 13 bits of every factor.
            "use_tf32": "0",
        }
        self.precision, self.threads = precision, threads
        self._ort = ort
        self._session = ort.InferenceSession(str(graph), options, providers=[(provider, how)])
        # Without a driver that fits, ONNX Runtime goes on with the CPU and says so in a log line alone.
        if self._session.get_providers()[0] != provider:
            raise ArtifactError(f"ONNX Runtime gave {self._session.get_providers()[0]} in place of {provider}")
        self._input, self._output = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._largest = 1 << (max_batch - 1).bit_length()
        self._buckets: dict[int, tuple[Any, Any, Any, Any, Pixels]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.engine)

    def run(self, batch: Pixels) -> Scores:
        return self._thread.submit(self._in_pieces, batch).result()

    def _in_pieces(self, batch: Pixels) -> Scores:
        scores = np.empty((len(batch), self._output.shape[1]), np.float32)
        for start in range(0, len(batch), self._largest):
            piece = batch[start : start + self._largest]
            scores[start : start + len(piece)] = self._run(piece)
        return scores

    def _run(self, images: Pixels) -> Scores:
        size = 1 << (len(images) - 1).bit_length()
        if size not in self._buckets:
            self._buckets[size] = self._prepare(size)
        source, target, binding, options, padded = self._buckets[size]
        count = len(images)
        if size > count:
            # The rows above hold an earlier batch: images do not meet inside a network, and their scores are not read.
            padded[:count] = images
            images = padded
        source.update_inplace(images)
        self._session.run_with_iobinding(binding, options)
        scores: Scores = target.numpy()[:count]
        return scores

    def _prepare(self, size: int) -> tuple[Any, Any, Any, Any, Pixels]:
        """Input and output in the GPU's memory, bound; the run's options, which name its graph; host memory to pad in.

        A graph replays the addresses that it was captured with, so these live as long as the session.
        """
        shape = (size, *self._input.shape[1:])
        allocate = self._ort.OrtValue.ortvalue_from_shape_and_type
        source = allocate(list(shape), np.uint8, "cuda", DEVICE)
        target = allocate([size, self._output.shape[1]], np.float32, "cuda", DEVICE)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input.name, source)
        binding.bind_ortvalue_output(self._output.name, target)
        options = self._ort.RunOptions()
        # One graph a bucket: without a name of its own, every shape would replay the first one's.
        options.add_run_config_entry("gpu_graph_id", str(size))
        return source, target, binding, options, np.zeros(shape, np.uint8)

    def close(self) -> None:
        """Free everything; harmless the second time."""
        self._thread.shutdown()
        self._buckets.clear()
        self._session = None


class OpenVino:
    """OpenVINO on the CPU, in float32 as the file says: its own bfloat16 shortcut would change the answers."""

    engine = "openvino"

    def __init__(self, graph: Path, precision: str, threads: int, lean: bool = False) -> None:
        import openvino

        self.precision, self.threads = precision, threads
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        core, self._model = openvino.Core(), None
        if lean:
            # OpenVINO keeps the weights twice: as they came, and packed for its kernels. Those that came out of its
            # cache are pages of a file, which `give_back_memory` drops. The file has no name beyond these lines.
            with suppress(OSError), TemporaryDirectory(prefix="podium-") as folder:
                for _ in ("written", "mapped"):
                    self._model = core.compile_model(str(graph), "CPU", {**options, "CACHE_DIR": folder})
        self._model = self._model or core.compile_model(str(graph), "CPU", options)
        self._request, self._tensor = self._model.create_infer_request(), openvino.Tensor

    def run(self, batch: Pixels) -> Scores:
        # Not `infer`: its dispatch by type of input takes a tenth of a millisecond. The tensor shares the batch's
        # memory and does not keep it alive, `shared` does; the output tensor is the request's, and is copied out.
        shared = np.require(batch, requirements=("C", "W"))
        self._request.set_input_tensor(self._tensor(shared, shared_memory=True))
        self._request.start_async()
        self._request.wait()
        scores: Scores = self._request.get_output_tensor().data.copy()
        return scores

    def close(self) -> None:
        del self._request, self._model


def likeliest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The `count` likeliest classes by their scores [classes], likeliest first; of equals the lower number first."""
    # Only what can be among them is sorted: a thousand classes take longer than the rest of an answer.
    among = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return among[np.argsort(-scores[among], kind="stable")[:count]]


def bound_heap() -> None:
    """Have glibc give large blocks back to the system as soon as they are freed, and keep of each thread's small ones
    no more than that for the next.

    By itself it keeps every size that was ever freed, up to 32 MB: after a few large images a service would hold
    hundreds of megabytes for good.
    """
    with suppress(OSError, AttributeError):  # another system
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)


def give_back_memory() -> None:
    """Let the system have what engines have freed, and the weights that a `lean` one has packed already.

    glibc would keep most of it for later. Dropped pages of a file are read again if they are asked for.
    """
    try:
        libc, maps = ctypes.CDLL("libc.so.6"), Path("/proc/self/maps").read_text("ascii", "replace")
    except OSError:  # another system
        return
    for line in maps.splitlines():
        if ".blob" in line and " r--" in line:
            begin, end = (int(address, 16) for address in line.split()[0].split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    libc.malloc_trim(0)


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
    """The engines whose packages are installed here: they can build."""
    from importlib.metadata import distributions
    from importlib.util import find_spec

    found = [engine for engine, (package, _) in PACKAGES.items() if find_spec(package)]
    # onnxruntime and onnxruntime-gpu are one module: only the name it was installed by tells whether CUDA is in it.
    if not any((d.name or "").lower() == "onnxruntime-gpu" for d in distributions(name="onnxruntime-gpu")):
        found = [engine for engine in found if engine != "onnxruntime-cuda"]
    return tuple(found)


@cache
def available() -> tuple[str, ...]:
    """The engines that can run here: installed, and with a GPU where they need one."""
    return tuple(engine for engine in installed() if engine not in GPU_ENGINES or _has_gpu())


def _has_gpu() -> bool:
    try:
        return gpu() is not None
    except Failure:  # the package that asks is missing, or its driver is
        return False


def unusable(engine: str) -> str:
    """Why `engine` does not run here, and what to do about it."""
    _, extra = PACKAGES[engine]
    if engine not in installed():
        return f"engine {engine} is not installed; pip install 'podium[{extra}]'"
    return f"engine {engine} needs an NVIDIA GPU with its driver, and this machine shows none"


class Choice(NamedTuple):
    """What a network runs with."""

    engine: str
    precision: str
    threads: int


# What to run where nothing was measured on a machine like this: a GPU, then the lower precision, then OpenVINO. On two
# cores (benchmarks/results/intel-xeon-2c-2026-11-22/report.md) INT8 on OpenVINO beats INT8 on ONNX Runtime by 1.9 to
# 3.6 times at batch 1 in each of the lecture's five networks, and that beats either engine's fp32 by 1.6 to 3.5 times;
# in fp32 OpenVINO is ahead by 1.04 to 1.5 times. An INT8 file is saved only if it answers as its original does.
ENGINES_BY_SPEED = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime")
PRECISIONS_BY_SPEED = ("int8", "fp16", "fp32")


def by_expected_speed(side: tuple[str, str]) -> tuple[bool, int, int]:
    """A key that sorts (engine, precision), the one expected to be fastest first."""
    engine, precision = side
    return engine not in GPU_ENGINES, PRECISIONS_BY_SPEED.index(precision), ENGINES_BY_SPEED.index(engine)


def _tuned(artifact: Artifact) -> list[tuple[str, str, int]]:
    """(engine, precision, threads) from fastest to slowest, if the export measured them on a machine like this.

    The product of the latencies over the batch sizes orders them, so that no batch size is given up for another.
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
    """What to run `artifact` with: of what fits the wish, a GPU's engine, else the fastest that tuning measured on a
    machine like this, else what is expected to be fastest.

    `threads` 0 takes the count that tuning chose, or every core.
    """
    graphs, usable = artifact.graphs(), available()
    if engine != "auto" and engine not in ENGINES:
        raise ArtifactError(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    if engine != "auto" and engine not in usable:
        raise ArtifactError(unusable(engine))
    fitting = [(e, p) for e, p in graphs if e in usable and engine in ("auto", e) and precision in ("auto", p)]
    if engine == "auto":  # a plan that was built for another GPU is taken only if it is asked for, and then says so
        fitting = [side for side in fitting if _loads_here(artifact, *side)] or fitting
    fitting.sort(key=by_expected_speed)
    if fitting and fitting[0][0] not in GPU_ENGINES:  # tuning measures the CPU's engines alone
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
    """Whether the plan of `engine`, if that runs one, was built for this machine's GPU, driver and engine version."""
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
    """`artifact` loaded into an engine, its file's sha256 checked; `threads` 0 takes every core.

    `lean` takes half a second longer, and lets `give_back_memory` free what the engine does not need once it is warm.
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
    """What an engine's own exception comes to: memory that it did not get, or a graph that it cannot run."""
    memory = isinstance(error, MemoryError) or "alloc" in str(error)  # most say so in a text alone
    repair = "there is too little memory: free some, or load less" if memory else "export it again"
    return ArtifactError(f"{artifact.tag}: {what}; {repair} ({error})")


__all__ = [
    "ENGINES",
    "GPU_ENGINES",
    "LABELS",
    "MANIFEST",
    "PLAN_ENGINES",
    "Artifact",
    "ArtifactError",
    "Choice",
    "Runtime",
    "Scores",
    "available",
    "bound_heap",
    "by_expected_speed",
    "choose",
    "cores",
    "cpu_model",
    "find",
    "give_back_memory",
    "gpu",
    "installed",
    "likeliest",
    "load",
    "load_module",
    "logger",
    "open",
    "refused",
    "sha256",
    "unusable",
]
