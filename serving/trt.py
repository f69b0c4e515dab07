"""TensorRT and TensorRT-RTX: a plan runs on the GPU through one CUDA graph per batch bucket.

One adapter serves both engines, because their Python modules are nearly the same. cuda-bindings calls CUDA, so a server
needs no torch. A plan is executable code: it runs only on the kind of machine that its record names.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import logging
import math
import os
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from models.console import Failure
from models.preprocess import Pixels

log = logging.getLogger("bentoml.podium")

# The Python module of each engine. The extra that installs it has the engine's name.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

# CUDA_VISIBLE_DEVICES chooses which GPU this is. Every thread starts with device 0, so that no call has to set it.
DEVICE = 0

# Where a TensorRT-RTX plan runs unless it was built for one GPU. Hopper and Blackwell of data centres are not among
# them.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")


class PlanError(Failure):
    """A plan that may not or cannot run here."""


def load_module(engine: str) -> Any:
    """The Python module of `engine`. Raises `Failure` with how to install it if it is missing or too old."""
    try:
        module = importlib.import_module(MODULES[engine])
    except ImportError as error:
        raise Failure(
            f"{engine} is not installed here ({error}). Install it, then build the plan on this machine:\n"
            f"  pip install 'podium[{engine}]' &&\n"
            f"  python -m export NETWORK --precision fp16 --engine {engine}"
        ) from error
    if engine == "tensorrt" and int(module.__version__.split(".")[0]) < 11:
        # Before 11, the builder chooses the precision of a network without the strongly typed flag.
        raise Failure(f"tensorrt {module.__version__} is too old, 11 is needed; pip install 'podium[tensorrt]'")
    return module


@functools.cache
def logger(module: Any) -> Any:
    """The only logger of `module`: TensorRT keeps the first that it is given until the process ends."""

    class Log(module.ILogger):  # type: ignore[misc]
        """Keeps errors for the exception that will report them, and drops the rest."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=16)
            self._serious = (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR)

        def log(self, severity: Any, message: str) -> None:
            if severity in self._serious:
                self._errors.append(message.strip())

        def take(self) -> str:
            """The errors since the last call, as one text."""
            text = "; ".join(dict.fromkeys(self._errors))
            self._errors.clear()
            return text or "it gives no reason"

    return Log()


# --- CUDA -------------------------------------------------------------------------------------------------------------


class Cuda:
    """`cuda.bindings.runtime`, with the status of every call checked: `cuda("cudaMalloc", size)` gives the pointer."""

    def __init__(self) -> None:
        try:
            self.api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise Failure(f"cuda-bindings is not installed ({error}); pip install 'podium[tensorrt]'") from error

    def __call__(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self.api, name)(*arguments)
        if int(status):
            _, text = self.api.cudaGetErrorString(status)
            raise Failure(f"{name} failed: {text.decode()} ({status.name})")
        return values[0] if values else None


@dataclass(frozen=True)
class Gpu:
    """What a plan is tied to."""

    name: str
    compute_capability: str  # "8.9"
    cuda_driver: int  # the major version of CUDA that the driver brings: 13


def gpu(cuda: Cuda | None = None) -> Gpu | None:
    """The GPU that plans are built for and run on here; None without one, or without a driver that fits."""
    cuda = cuda or Cuda()
    status, count = cuda.api.cudaGetDeviceCount()
    if int(status) or not count:
        return None
    properties = cuda("cudaGetDeviceProperties", DEVICE)
    return Gpu(
        properties.name.decode(),
        f"{properties.major}.{properties.minor}",
        cuda("cudaDriverGetVersion") // 1000,
    )


def check_record(record: Mapping[str, Any], engine: str, version: str, here: Gpu) -> None:
    """Raise `PlanError` unless the plan of this `record` was built for `engine` at `version` and a GPU like `here`.

    The exporter wrote `record` beside the plan (export/to_engine.py, `PlanRecord`).
    """
    again = f"build it again here: python -m export NETWORK --precision {record.get('precision')} --engine {engine}"
    if record.get("engine") != engine:
        raise PlanError(f"the plan was built for {record.get('engine')}, not for {engine}; {again}")
    if record.get("engine_version") != version:
        raise PlanError(f"the plan was built by {engine} {record.get('engine_version')}, here is {version}; {again}")
    if record.get("gpu") is None:
        if engine != "tensorrt-rtx":
            raise PlanError(f"the plan's record names no GPU that it was built for; {again}")
        if here.compute_capability not in RTX_CAPABILITIES:
            raise PlanError(
                f"tensorrt-rtx runs on compute capability {', '.join(RTX_CAPABILITIES)}; {here.name} has "
                f"{here.compute_capability}: use engine tensorrt on it"
            )
        return
    for what, key, actual in (
        ("GPU", "gpu", here.name),
        ("compute capability", "compute_capability", here.compute_capability),
        ("CUDA driver family", "cuda_driver", here.cuda_driver),
    ):
        if record.get(key) != actual:
            raise PlanError(f"the plan was built for {what} {record.get(key)}, here is {actual}; {again}")


# --- the adapter ------------------------------------------------------------------------------------------------------


class TensorRt:
    """A loaded plan: uint8 [n, height, width, channels] in, float32 probabilities [n, classes] out.

    A batch is copied into pinned memory and padded to the next bucket. One CUDA graph per bucket copies it in, runs it
    and copies the scores out. All buckets share the buffers and the scratch memory, because one call runs at a time.
    """

    engine = "tensorrt"

    def __init__(
        self, plan: Path, precision: str, threads: int, record: Mapping[str, Any], cache: Path | None = None
    ) -> None:
        """Load `plan` if its `record` fits this machine, warm every bucket and capture its graph.

        `cache` is the folder for what TensorRT-RTX compiles for this GPU (default: the user's cache folder). Raises
        `Failure` with the name of the call that failed, and then leaves nothing allocated.
        """
        self.precision, self.threads = precision, threads
        self._module = load_module(self.engine)
        self._cuda = Cuda()
        here = gpu(self._cuda)
        if here is None:
            raise PlanError(f"{self.engine} needs an NVIDIA GPU with its driver, and this machine shows none")
        self._cuda("cudaSetDevice", DEVICE)
        check_record(record, self.engine, self._module.__version__, here)
        self._objects: dict[str, Any] = {}
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[int, Any] = {}  # None: the engine cannot be captured, so its calls are made one by one
        self._acquired = ExitStack()
        try:
            self._load(plan, cache)
        except BaseException:
            # After one CUDA error other calls often fail too. The first error is the one to report.
            with suppress(Failure):
                self._acquired.close()
            raise

    def run(self, batch: Pixels) -> NDArray[np.float32]:
        """The probabilities of `batch`. More images than the largest bucket holds are run in pieces."""
        if not self._graphs:
            raise Failure(f"this {self.engine} runtime is closed")
        if batch.dtype != np.uint8 or batch.shape[1:] != self._shape:
            raise Failure(
                f"the plan takes uint8 [n, {_dims(self._shape)}], this is {batch.dtype} [{_dims(batch.shape)}]"
            )
        scores = np.empty((len(batch), self._host_out.shape[1]), np.float32)
        largest = len(self._host_in)
        for start in range(0, len(batch), largest):
            self._run(batch[start : start + largest], scores[start : start + largest])
        return scores

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        self._graphs.clear()
        self._acquired.close()

    def _run(self, images: Pixels, scores: NDArray[np.float32]) -> None:
        bucket = next(bucket for bucket in self._graphs if bucket >= len(images))
        # The other rows hold images of an earlier batch. They do not affect these, and their scores are not read.
        self._host_in[: len(images)] = images
        if self._graphs[bucket] is None:
            self._enqueue(bucket)
        else:
            self._cuda("cudaGraphLaunch", self._graphs[bucket], self._stream)
        self._synchronize()
        scores[:] = self._host_out[: len(images)]

    # Acquired in this order, released in the reverse: stream, engine, memory, contexts, graphs.

    def _load(self, plan: Path, cache: Path | None) -> None:
        cuda, module = self._cuda, self._module
        # On the default stream, TensorRT would synchronize the whole device around every call.
        self._stream = cuda("cudaStreamCreateWithFlags", cuda.api.cudaStreamNonBlocking)
        self._acquired.callback(cuda, "cudaStreamDestroy", self._stream)
        code = plan.read_bytes()
        logger(module).take()  # drop errors that are not about this plan
        runtime = self._keep("runtime", module.Runtime(logger(module)))
        engine = self._keep("engine", runtime.deserialize_cuda_engine(code))
        if engine is None:
            raise PlanError(f"{self.engine} cannot load {plan.name}: {logger(module).take()}")
        profiles = self._read_tensors(engine)
        self._allocate(engine, max(profiles))
        config = self._context_config(code, cache)
        for bucket, profile in sorted(profiles.items()):
            self._prepare(bucket, profile, config)
        self._save_cache()

    def _keep(self, name: str, value: Any) -> Any:
        """Hold a TensorRT object until it may be freed: contexts before their engine, the engine before its runtime."""
        self._objects[name] = value
        self._acquired.callback(self._objects.pop, name)
        return value

    def _read_tensors(self, engine: Any) -> dict[int, int]:
        """Read the names and shapes of input and output. Returns the profile of every bucket."""
        modes, types = self._module.TensorIOMode, self._module.DataType
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        ins = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        outs = [name for name in names if name not in ins]
        dtypes = [engine.get_tensor_dtype(name) for name in (*ins, *outs)]
        if len(ins) != 1 or len(outs) != 1 or dtypes != [types.UINT8, types.FLOAT]:
            described = ", ".join(f"{n} {t}" for n, t in zip((*ins, *outs), dtypes, strict=True))
            raise PlanError(
                f"a classifier takes one uint8 tensor and gives one float32 tensor; the plan has {described}"
            )
        self._input, self._output = ins[0], outs[0]
        ranges = [engine.get_tensor_profile_shape(self._input, i) for i in range(engine.num_optimization_profiles)]
        # Profiles for a range of sizes are for other servers.
        profiles = {int(least[0]): i for i, (least, _, most) in enumerate(ranges) if least[0] == most[0]}
        if not profiles:
            raise PlanError("the plan has no profile of a fixed batch size; build it again with python -m export")
        self._shape = tuple(int(n) for n in tuple(ranges[0][2])[1:])
        self._classes = int(tuple(engine.get_tensor_shape(self._output))[1])
        return profiles

    def _allocate(self, engine: Any, largest: int) -> None:
        """Pinned and device memory for the largest bucket, and the scratch memory that all contexts share."""
        self._host_in, self._host_in_at = self._pinned((largest, *self._shape), np.uint8)
        self._host_out, self._host_out_at = self._pinned((largest, self._classes), np.float32)
        self._device_in = self._device(self._host_in.nbytes)
        self._device_out = self._device(self._host_out.nbytes)
        self._scratch_size = int(engine.device_memory_size_v2)
        self._scratch = self._device(max(self._scratch_size, 1))

    def _pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[NDArray[Any], int]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(self._cuda("cudaHostAlloc", size, self._cuda.api.cudaHostAllocDefault))
        self._acquired.callback(self._cuda, "cudaFreeHost", address)
        view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return view.view(dtype).reshape(shape), address

    def _device(self, size: int) -> int:
        address = int(self._cuda("cudaMalloc", size))
        self._acquired.callback(self._cuda, "cudaFree", address)
        return address

    def _context_config(self, code: bytes, cache: Path | None) -> Any:
        """How contexts are made: in our memory, and for TensorRT-RTX compiled at once, from a cache."""
        user_managed = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.engine != "tensorrt-rtx":
            return user_managed
        config = self._keep("config", self._objects["engine"].create_runtime_config())
        config.set_execution_context_allocation_strategy(user_managed)
        # LAZY would run generic kernels first and replace them later. A graph that was captured before keeps the slow
        # ones.
        strategies = self._module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if cache is None:
            from models.weights import cache as user_cache

            cache = user_cache()
        self._cache_path = cache / f"{self.engine}-{hashlib.sha256(code).hexdigest()[:16]}.cache"
        kept = self._keep("cache", config.create_runtime_cache())
        with suppress(OSError):
            # This call refuses a cache of another GPU, driver or version. Then a new one is made.
            kept.deserialize(self._cache_path.read_bytes())
        if not config.set_runtime_cache(kept):
            raise PlanError(f"set_runtime_cache failed: {logger(self._module).take()}")
        return config

    def _save_cache(self) -> None:
        """Keep what TensorRT-RTX compiled for the next start. If it cannot be written, only time is lost."""
        if "cache" not in self._objects:
            return
        partial = self._cache_path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self._cache_path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(bytes(memoryview(self._objects["cache"].serialize())))
            partial.replace(self._cache_path)
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # it is left over if the disk was full

    def _prepare(self, bucket: int, profile: int, config: Any) -> None:
        """A context for `bucket`, warmed, and the graph of its run."""
        cuda, stream = self._cuda, int(self._stream)
        context = self._objects["engine"].create_execution_context(config)
        if context is None:
            raise PlanError(f"create_execution_context failed for batch {bucket}: {logger(self._module).take()}")
        self._contexts[bucket] = context
        self._acquired.callback(self._contexts.pop, bucket)
        # Nothing may run while the context and its memory are freed.
        self._acquired.callback(self._synchronize)
        context.set_device_memory(self._scratch, self._scratch_size)
        self._must(context.set_optimization_profile_async(profile, stream), "set_optimization_profile_async", bucket)
        self._synchronize()
        self._must(context.set_input_shape(self._input, (bucket, *self._shape)), "set_input_shape", bucket)
        self._must(context.set_tensor_address(self._input, self._device_in), "set_tensor_address", bucket)
        self._must(context.set_tensor_address(self._output, self._device_out), "set_tensor_address", bucket)
        # The first run compiles and allocates, which is not possible during a capture.
        self._enqueue(bucket)
        self._synchronize()
        capturable = getattr(context, "is_stream_capturable", None)
        if capturable is not None and not capturable(stream):
            log.warning("%s cannot capture batch %d in a CUDA graph; it runs without", self.engine, bucket)
            self._graphs[bucket] = None
            return
        # Thread-local: calls that other threads make on the GPU meanwhile neither enter the graph nor break it.
        cuda("cudaStreamBeginCapture", self._stream, cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            self._enqueue(bucket)
        except BaseException:
            with suppress(Failure):
                cuda("cudaGraphDestroy", cuda("cudaStreamEndCapture", self._stream))
            raise
        graph = cuda("cudaStreamEndCapture", self._stream)
        try:
            executable = cuda("cudaGraphInstantiate", graph, 0)
            self._acquired.callback(cuda, "cudaGraphExecDestroy", executable)
        finally:
            cuda("cudaGraphDestroy", graph)
        self._graphs[bucket] = executable

    def _enqueue(self, bucket: int) -> None:
        """Copy in, run, copy out; or add these steps to the graph that is being captured."""
        cuda, kinds = self._cuda, self._cuda.api.cudaMemcpyKind
        size_in, size_out = self._host_in[:bucket].nbytes, self._host_out[:bucket].nbytes
        to_device, to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        cuda("cudaMemcpyAsync", self._device_in, self._host_in_at, size_in, to_device, self._stream)
        self._must(self._contexts[bucket].execute_async_v3(int(self._stream)), "execute_async_v3", bucket)
        cuda("cudaMemcpyAsync", self._host_out_at, self._device_out, size_out, to_host, self._stream)

    def _synchronize(self) -> None:
        self._cuda("cudaStreamSynchronize", self._stream)

    def _must(self, succeeded: bool, call: str, bucket: int) -> None:
        if not succeeded:
            raise PlanError(f"{call} failed for batch {bucket}: {logger(self._module).take()}")


class TensorRtRtx(TensorRt):
    """The same for TensorRT-RTX, which compiles for the GPU when it loads, and keeps what it compiled."""

    engine = "tensorrt-rtx"


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
