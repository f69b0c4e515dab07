"""Stand-ins for CUDA and for the Python modules of both TensorRT engines.

`FakeCuda` stands in for cuda.bindings.runtime: memory is real and watched, a stream does nothing before it is
synchronized, a capture must end, and what is freed may not be used. `fake_tensorrt` stands in for the Python module of
an engine; its plans are JSON and its network gives every image its own mean.
"""

from __future__ import annotations

import enum
import gc
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.preprocess import Pixels
from serving import trt
from serving.trt import Gpu, TensorRt, TensorRtRtx

SHAPE, CLASSES = (4, 4, 3), 5
HERE = Gpu("NVIDIA L4", "8.9", 13)

Status = enum.IntEnum("Status", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorStreamCapture": 901})

# The calls that give something beside their status.
GIVING = {"cudaGetDeviceCount", "cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaGraphInstantiate"}


class FakeCuda:
    """The calls that the adapter makes of cuda.bindings.runtime."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostAllocDefault = 0  # noqa: N815
    cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})  # noqa: N815
    cudaStreamCaptureMode = enum.IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})  # noqa: N815

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.journal: list[str] = []
        self.live: dict[int, tuple[str, Any]] = {}  # memory, streams, graphs
        self.next = 0x1000
        self.fail_at: int | None = None  # the position in `calls` that fails
        self.fail_name = ""  # or the call that always does
        self.devices = 1
        self.capturing: list[Callable[[], None]] | None = None

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        try:
            body = object.__getattribute__(self, f"_{name}")
        except AttributeError:
            raise AttributeError(f"{name} is no call this stand-in knows") from None

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if len(self.calls) - 1 == self.fail_at or name == self.fail_name:
                if name == "cudaStreamEndCapture":
                    self.capturing = None
                elif name in ("cudaFree", "cudaFreeHost", "cudaGraphDestroy", "cudaGraphExecDestroy"):
                    self.live.pop(int(arguments[0]), None)
                return (Status.cudaErrorMemoryAllocation, *([None] if name in GIVING else []))
            value = body(*arguments)
            return (Status.cudaSuccess,) if value is None else (Status.cudaSuccess, value)

        return call

    def cudaGetErrorString(self, status: Any) -> tuple[Any, bytes]:  # noqa: N802
        return Status.cudaSuccess, b"out of memory"

    def add(self, kind: str, thing: Any, handle: int | None = None) -> int:
        self.next += 0x10
        handle = handle or self.next
        self.live[handle] = kind, thing
        return handle

    def remove(self, handle: int, kind: str) -> None:
        assert self.live[int(handle)][0] == kind, f"{kind} freed by the wrong call"
        del self.live[int(handle)]
        self.journal.append(f"free {kind}")

    def buffer(self, address: int, size: int, kind: str) -> np.ndarray[Any, Any]:
        """The bytes at `address`, which must be live memory of that kind and large enough."""
        memory: np.ndarray[Any, Any]
        found, memory = self.live[address]
        assert found == kind
        assert size <= memory.nbytes, f"{size} bytes of {memory.nbytes}"
        return memory[:size]

    def push(self, stream: Any, work: Callable[[], None]) -> None:
        assert int(stream), "the default stream is never used"
        kind, queue = self.live[int(stream)]
        assert kind == "stream"
        (queue if self.capturing is None else self.capturing).append(work)

    # devices

    def _cudaSetDevice(self, device: int) -> None:  # noqa: N802
        assert device == 0

    def _cudaGetDeviceCount(self) -> int:  # noqa: N802
        return self.devices

    def _cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        major, minor = map(int, HERE.compute_capability.split("."))
        return types.SimpleNamespace(name=HERE.name.encode(), major=major, minor=minor)

    def _cudaDriverGetVersion(self) -> int:  # noqa: N802
        return HERE.cuda_driver * 1000 + 20

    # memory

    def _cudaMalloc(self, size: int) -> int:  # noqa: N802
        assert self.capturing is None, "nothing is allocated inside a capture"
        memory = np.full(size, 0xAB, np.uint8)
        return self.add("device", memory, memory.ctypes.data)

    def _cudaHostAlloc(self, size: int, flags: int) -> int:  # noqa: N802
        memory = np.full(size, 0xCD, np.uint8)
        return self.add("pinned", memory, memory.ctypes.data)

    def _cudaFree(self, address: int) -> None:  # noqa: N802
        self.remove(address, "device")

    def _cudaFreeHost(self, address: int) -> None:  # noqa: N802
        self.remove(address, "pinned")

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Any) -> None:  # noqa: N802
        to_device = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        ends = ("device", "pinned") if to_device else ("pinned", "device")

        def work() -> None:
            self.buffer(target, size, ends[0])[:] = self.buffer(source, size, ends[1])

        self.push(stream, work)

    # streams and graphs

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        return self.add("stream", [])

    def _cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        assert not self.live[stream][1], "work was left in the stream"
        self.remove(stream, "stream")

    def _cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        assert self.capturing is None, "a stream that is captured cannot be waited for"
        queue = self.live[stream][1]
        while queue:
            queue.pop(0)()

    def _cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:  # noqa: N802
        assert self.capturing is None
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.capturing = []

    def _cudaStreamEndCapture(self, stream: int) -> int:  # noqa: N802
        assert self.capturing is not None
        graph, self.capturing = self.add("graph", self.capturing), None
        return graph

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> int:  # noqa: N802
        return self.add("executable", list(self.live[graph][1]))

    def _cudaGraphDestroy(self, graph: int) -> None:  # noqa: N802
        self.remove(graph, "graph")

    def _cudaGraphExecDestroy(self, executable: int) -> None:  # noqa: N802
        self.remove(executable, "executable")

    def _cudaGraphLaunch(self, executable: int, stream: int) -> None:  # noqa: N802
        kind, work = self.live[executable]
        assert kind == "executable"
        for step in work:
            self.push(stream, step)


def fake_tensorrt(cuda: FakeCuda, version: str, rtx: bool) -> types.ModuleType:
    """A Python module like tensorrt (or tensorrt_rtx) whose engines run on `cuda`."""
    module = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    state = types.SimpleNamespace(refuse={}, capturable=True, seen={}, cached=b"kernels", accepts_cache=True)

    def allowed(call: str) -> bool:
        """False on the call whose number `state.refuse` names, with a reason in the log, as TensorRT does."""
        state.seen[call] = state.seen.get(call, 0) + 1
        if state.refuse.get(call) != state.seen[call]:
            return True
        state.logger.log(module.ILogger.INFO, "all is well")
        state.logger.log(module.ILogger.ERROR, "a reason of TensorRT's")
        return False

    class Watched:
        def __del__(self) -> None:
            cuda.journal.append(f"free {type(self).__name__}")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    class Runtime(Watched):
        def __init__(self, logger: Any) -> None:
            state.logger = logger

        def deserialize_cuda_engine(self, code: bytes) -> Any:
            return Engine(json.loads(code)) if allowed("deserialize_cuda_engine") else None

    class Engine(Watched):
        def __init__(self, plan: dict[str, Any]) -> None:
            self.plan = plan
            self.num_io_tensors = 2
            self.num_optimization_profiles = len(plan["profiles"])
            self.device_memory_size_v2 = plan["scratch"]

        def get_tensor_name(self, i: int) -> str:
            return ("probabilities", "image")[i]

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode.INPUT if name == "image" else module.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return module.DataType[self.plan["types"][name]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (-1, *SHAPE) if name == "image" else (-1, CLASSES)

        def get_tensor_profile_shape(self, name: str, i: int) -> list[tuple[int, ...]]:
            least, most = self.plan["profiles"][i]
            return [(least, *SHAPE), (most, *SHAPE), (most, *SHAPE)]

        def create_runtime_config(self) -> Any:
            assert rtx
            return RuntimeConfig()

        def create_execution_context(self, how: Any) -> Any:
            strategy = how.strategy if rtx else how
            assert strategy == module.ExecutionContextAllocationStrategy.USER_MANAGED
            if rtx:
                assert how.dynamic_shapes_kernel_specialization_strategy == "EAGER"
                assert how.cache is not None
            return Context(self.plan) if allowed("create_execution_context") else None

    class RuntimeConfig(Watched):
        cache: Any = None

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> Any:
            return RuntimeCache()

        def set_runtime_cache(self, cache: Any) -> bool:
            self.cache = cache
            return allowed("set_runtime_cache")

    class RuntimeCache(Watched):
        def deserialize(self, blob: bytes) -> bool:
            state.loaded = blob
            return bool(state.accepts_cache)

        def serialize(self) -> bytes:
            return bytes(state.cached)

    class Context(Watched):
        def __init__(self, plan: dict[str, Any]) -> None:
            self.plan, self.compiled, self.addresses = plan, False, dict[str, int]()

        def set_device_memory(self, address: int, size: int) -> None:
            assert size >= self.plan["scratch"]
            self.scratch = address, size

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            assert stream
            self.profile = self.plan["profiles"][profile]
            return allowed("set_optimization_profile_async")

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            least, most = self.profile
            assert name == "image"
            assert least <= shape[0] <= most
            self.shape = shape
            return allowed("set_input_shape")

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return allowed("set_tensor_address")

        def is_stream_capturable(self, stream: int) -> bool:
            return bool(state.capturable)

        def execute_async_v3(self, stream: int) -> bool:
            assert self.compiled or cuda.capturing is None, "the first run compiles, which no capture allows"
            self.compiled = True
            rows, source, target = self.shape[0], self.addresses["image"], self.addresses["probabilities"]
            scratch = self.scratch

            def work() -> None:
                cuda.buffer(*scratch, "device")[:] = 0xEE
                images = cuda.buffer(source, int(np.prod(self.shape)), "device").reshape(rows, -1)
                scores = cuda.buffer(target, rows * CLASSES * 4, "device").view(np.float32).reshape(rows, CLASSES)
                scores[:] = images.mean(1)[:, None] + np.arange(CLASSES)

            cuda.push(stream, work)
            return allowed("execute_async_v3")

    contents: dict[str, Any] = {
        "__version__": version,
        "ILogger": ILogger,
        "Runtime": Runtime,
        "TensorIOMode": enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"]),
        "DataType": enum.Enum("DataType", ["UINT8", "FLOAT", "HALF"]),
        "ExecutionContextAllocationStrategy": enum.Enum("Strategy", ["STATIC", "USER_MANAGED"]),
        "DynamicShapesKernelSpecializationStrategy": types.SimpleNamespace(EAGER="EAGER", LAZY="LAZY"),
        "state": state,
        "stands_for": {
            "ICudaEngine": Engine,
            "IExecutionContext": Context,
            "ILogger": ILogger,
            "IRuntimeCache": RuntimeCache,
            "IRuntimeConfig": RuntimeConfig,
            "Runtime": Runtime,
        },
    }
    vars(module).update(contents)
    return module


def expected(batch: Pixels) -> np.ndarray[Any, Any]:
    scores: np.ndarray[Any, Any] = batch.mean((1, 2, 3))[:, None] + np.arange(CLASSES)
    return scores.astype(np.float32)


def images(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


VERSIONS = {"tensorrt": "11.2.0", "tensorrt-rtx": "1.7.1"}


class Bench:
    """A fake machine: CUDA, both engines, and a plan on disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cuda = folder, FakeCuda()
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        self.modules = {e: fake_tensorrt(self.cuda, v, e == "tensorrt-rtx") for e, v in VERSIONS.items()}
        for engine, module in self.modules.items():
            monkeypatch.setitem(sys.modules, trt.MODULES[engine], module)
        self.plan = folder / "a.plan"
        self.write()

    def write(self, **changes: Any) -> None:
        plan = {"profiles": [[1, 1], [2, 2], [4, 4], [1, 4]], "scratch": 1000, "types": {"image": "UINT8"}}
        plan["types"] = {"image": "UINT8", "probabilities": "FLOAT"}
        self.plan.write_text(json.dumps(plan | changes))

    def record(self, engine: str = "tensorrt") -> dict[str, Any]:
        tied = {"gpu": HERE.name, "compute_capability": HERE.compute_capability, "cuda_driver": HERE.cuda_driver}
        record = {"engine": engine, "engine_version": VERSIONS[engine], "precision": "fp16"}
        return record | (tied if engine == "tensorrt" else {"gpu": None})

    def open(self, engine: str = "tensorrt") -> TensorRt:
        adapter = TensorRt if engine == "tensorrt" else TensorRtRtx
        return adapter(self.plan, "fp16", 1, self.record(engine), self.folder / "cache")

    def state(self, engine: str = "tensorrt") -> Any:
        return self.modules[engine].__dict__["state"]

    def assert_nothing_left(self) -> None:
        gc.collect()
        assert self.cuda.live == {}
        assert self.cuda.capturing is None
        made = ("Runtime", "Engine", "Context")
        assert {kind: self.cuda.journal.count(f"free {kind}") for kind in made} == {
            "Runtime": self.state().seen.get("runtime", 1),
            "Engine": 1,
            "Context": 3,
        }
