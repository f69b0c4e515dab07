"""One class per engine. `serving.runtime` chooses one and opens it; those that run plans are in `serving.trt`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.preprocess import Pixels
from serving.artifact import ArtifactError
from serving.trt import DEVICE

# Without this, ONNX Runtime reports usage from its import on, and keeps a database for that in the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Scores = NDArray[np.float32]


def bucket_of(images: int) -> int:
    """The power of two to which a batch is padded, so that an engine prepares few sizes."""
    return 1 << (images - 1).bit_length()


class Runtime(Protocol):
    """A network ready to run: `run` takes uint8 [n, height, width, channels] and gives probabilities [n, classes].

    One call may run at a time. Callers that share a `Runtime` must lock it.
    """

    engine: str
    precision: str
    threads: int

    def run(self, batch: Pixels) -> Scores: ...

    def close(self) -> None: ...


class OnnxRuntime:
    """ONNX Runtime on the CPU: one session. Its idle threads sleep, so that decoding can use their cores."""

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
    """ONNX Runtime on an NVIDIA GPU. The whole graph runs there: one that needs the CPU is refused, and so is a missing
    GPU.

    A batch is padded to a power of two, its bucket. More images than the largest bucket holds are run in pieces. A
    bucket is prepared when it is first used: its input and output stay at one place in the GPU's memory, and ONNX
    Runtime captures a CUDA graph in its first run and replays that afterwards. ONNX Runtime keeps graphs by calling
    thread, so one thread of our own makes all calls.
    """

    engine = "onnxruntime-cuda"

    def __init__(self, graph: Path, precision: str, threads: int, max_batch: int = 64) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.log_severity_level = 3
        provider = "CUDAExecutionProvider"
        settings = {
            "device_id": str(DEVICE),
            "enable_cuda_graph": "1",
            "prefer_nhwc": "1",
            # EXHAUSTIVE times every algorithm again for every shape. cuDNN's own choice is nearly as fast, and
            # immediate.
            "cudnn_conv_algo_search": "HEURISTIC",
            # TF32 would drop 13 bits of every factor.
            "use_tf32": "0",
        }
        self.precision, self.threads = precision, threads
        self._ort = ort
        self._session = ort.InferenceSession(str(graph), options, providers=[(provider, settings)])
        # Without a driver that fits, ONNX Runtime uses the CPU and says so only in its log.
        if self._session.get_providers()[0] != provider:
            raise ArtifactError(f"ONNX Runtime gave {self._session.get_providers()[0]} in place of {provider}")
        self._input, self._output = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._largest = bucket_of(max_batch)
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
        size = bucket_of(len(images))
        if size not in self._buckets:
            self._buckets[size] = self._prepare(size)
        source, target, binding, options, padded = self._buckets[size]
        count = len(images)
        if size > count:
            # The other rows hold images of an earlier batch. They do not affect these, and their scores are not read.
            padded[:count] = images
            images = padded
        source.update_inplace(images)
        self._session.run_with_iobinding(binding, options)
        scores: Scores = target.numpy()[:count]
        return scores

    def _prepare(self, size: int) -> tuple[Any, Any, Any, Any, Pixels]:
        """Input and output in the GPU's memory, their binding, the run's options, and host memory to pad a batch in.

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
        # The options name a graph for each bucket. Without a name, every shape would replay the first graph.
        options.add_run_config_entry("gpu_graph_id", str(size))
        return source, target, binding, options, np.zeros(shape, np.uint8)

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        self._thread.shutdown()
        self._buckets.clear()
        self._session = None


class OpenVino:
    """OpenVINO on the CPU, in float32 as the file says. OpenVINO's default of bfloat16 would change the answers."""

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
            # OpenVINO keeps the weights twice: as they came, and packed for its kernels. If they came from its cache,
            # the first copy is pages of a file, which `give_back_memory` drops. The file is deleted after these lines.
            with suppress(OSError), TemporaryDirectory(prefix="podium-") as folder:
                for _ in ("written", "mapped"):
                    self._model = core.compile_model(str(graph), "CPU", {**options, "CACHE_DIR": folder})
        self._model = self._model or core.compile_model(str(graph), "CPU", options)
        self._request, self._tensor = self._model.create_infer_request(), openvino.Tensor

    def run(self, batch: Pixels) -> Scores:
        # Not `infer`, which takes a tenth of a millisecond to look at the type of its input. The tensor shares the
        # batch's memory, and `shared` keeps that alive. The output belongs to the request, so it is copied.
        shared = np.require(batch, requirements=("C", "W"))
        self._request.set_input_tensor(self._tensor(shared, shared_memory=True))
        self._request.start_async()
        self._request.wait()
        scores: Scores = self._request.get_output_tensor().data.copy()
        return scores

    def close(self) -> None:
        del self._request, self._model


def likeliest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The `count` likeliest classes by their scores [classes], likeliest first, then by number."""
    # Only the classes that can be among them are sorted: to sort a thousand takes longer than the rest of an answer.
    among = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return among[np.argsort(-scores[among], kind="stable")[:count]]
