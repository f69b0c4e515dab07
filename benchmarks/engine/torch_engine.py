"""PyTorch as one more engine: the baseline that runs everywhere."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.preprocess import Pixels
from serving.engines import Scores, bucket_of
from serving.runtime import cores

if TYPE_CHECKING:
    import torch

    from models.weights import Network


TORCH, COMPILED = "torch", "torch.compile"
ON_CUDA = {TORCH: "torch-cuda", COMPILED: "torch.compile-cuda"}


def cuda() -> bool:
    """Whether PyTorch is here and sees a GPU."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def no_compiler() -> str | None:
    """Why torch.compile cannot run here; None if it can."""
    # On a CPU, torch.compile uses the compiler that CXX names, else g++.
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler):
        return None
    return f"torch.compile needs a C++ compiler, and {compiler} is not installed; apt-get install g++, or set CXX"


class Torch:
    """PyTorch set up for inference as its own guides say, from uint8 pixels in memory to probabilities in memory.

    Memory is channels last. The network runs in `precision` ("fp32", "fp16" or "bf16"), normalisation and softmax in
    float32. On a GPU the copies go through pinned memory, and there is one CUDA graph for every batch size, padded to a
    power of two. A CPU runs the same code without them.
    """

    def __init__(
        self, network: Network, device: str, precision: str, threads: int = 0, *, compiled: bool = False
    ) -> None:
        import torch

        from models.layers import LocalResponseNorm

        self.engine = (COMPILED if compiled else TORCH) if device == "cpu" else ON_CUDA[COMPILED if compiled else TORCH]
        self.precision, self.threads = precision, threads or cores()
        self._torch, self._gpu = torch, device != "cpu"
        self._device = torch.device(device)
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        torch.set_num_threads(self.threads)
        # cuDNN times its algorithms once for every batch size, before the graph is captured.
        torch.backends.cudnn.benchmark = True
        # float32 means float32: TF32 would drop 13 bits of every factor.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        module = copy.deepcopy(network.module).eval()
        for layer in module.modules():
            if isinstance(layer, LocalResponseNorm) and precision != "fp32":
                # Squares of activations above 256 overflow float16.
                layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
                layer.register_forward_hook(lambda _, __, output: output.to(self._dtype))
        # Any, because PyTorch's own declaration of `to` leaves the memory format out.
        moved: Any = module
        self._module: torch.nn.Module = moved.to(self._device, self._dtype, memory_format=torch.channels_last)
        recipe = network.preprocess
        self._shape = recipe.shape
        mean, std = (torch.tensor(v, device=self._device).view(1, -1, 1, 1) for v in (recipe.mean, recipe.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        # One fast graph for every batch size, not one graph for all sizes. Freezing folds normalisation in.
        self._forward: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(self._probabilities, dynamic=False, options={"freezing": True})
            if compiled
            else self._probabilities
        )
        self._buckets: dict[int, Bucket] = {}

    def run(self, batch: Pixels) -> Scores:
        torch = self._torch
        with torch.no_grad():
            if not self._gpu:
                scores: Scores = self._forward(torch.from_numpy(batch)).numpy()
                return scores
            bucket = self.bucket(len(batch))
            # PyTorch's copy, because it uses every thread for large arrays.
            bucket.host_in[: len(batch)].copy_(torch.from_numpy(batch))
            bucket.device_in.copy_(bucket.host_in, non_blocking=True)
            bucket.graph.replay()
            bucket.host_out.copy_(bucket.device_out, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            return bucket.host_out[: len(batch)].numpy().copy()

    def device_ms(self, batch: int, calls: int) -> list[float]:
        """Milliseconds on the GPU of each of `calls` runs whose pixels are there already; [] on a CPU."""
        if not self._gpu:
            return []
        torch, graph = self._torch, self.bucket(batch).graph
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
        for begin, end in events:
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [float(begin.elapsed_time(end)) for begin, end in events]

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        self._buckets.clear()
        self._module = self._torch.nn.Identity()
        if self._gpu:
            self._torch.cuda.empty_cache()

    def bucket(self, images: int) -> Bucket:
        size = bucket_of(images)
        if size not in self._buckets:
            self._buckets[size] = self._prepare(size)
        return self._buckets[size]

    def _prepare(self, size: int) -> Bucket:
        """Memory on the host and on the device, and the graph: it replays the addresses that it was captured with."""
        torch = self._torch
        host_in = torch.zeros(size, *self._shape, dtype=torch.uint8, pin_memory=True)
        device_in = host_in.to(self._device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._forward(device_in)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            device_out = self._forward(device_in)
        host_out = torch.empty(device_out.shape, dtype=torch.float32, pin_memory=True)
        return Bucket(host_in, device_in, graph, device_out, host_out)

    def _probabilities(self, images: torch.Tensor) -> torch.Tensor:
        # NHWC bytes seen as NCHW are channels last already, so that nothing is copied.
        x = images.permute(0, 3, 1, 2).float() * self._scale + self._shift
        scores: torch.Tensor = self._module(x.to(self._dtype))
        return scores.float().softmax(-1)


# Runs before a capture, so that everything is chosen, compiled and allocated; PyTorch's own guide takes three.
WARM_UPS = 3


@dataclass(frozen=True)
class Bucket:
    host_in: torch.Tensor
    device_in: torch.Tensor
    graph: Any
    device_out: torch.Tensor
    host_out: torch.Tensor
