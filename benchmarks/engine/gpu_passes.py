"""The process that `engine/gpu.py` asks, one line of JSON after another: it holds torch, the networks, the device.

One process serves many cells, because a GPU's context and its libraries take ten seconds to load and nine minutes are
all there is. Every cell opens its engine anew and closes it, so that memory and algorithms are its own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import passes as child
from benchmarks.engine import power, roofline, torch_engine
from export import parity
from models import spec
from models.preprocess import Pixels
from models.weights import Network, load
from serving import runtime
from serving.engines import Runtime, Scores

# A check runs the images in pieces of these sizes, so that a bucket is filled, padded and met again.
PIECES = (1, 3)

# Device times are taken for about this long, in no fewer and no more calls than these.
DEVICE_S, FEWEST, MOST = 0.25, 10, 200


@dataclass(frozen=True)
class Known:
    """A network on the CPU, and what PyTorch makes of the parity images there, in float32 as it was written."""

    network: Network
    images: parity.Inputs
    reference: Scores


class Worker:
    def __init__(self, device: str, threads: int, files: Path) -> None:
        import torch

        self.device, self.threads, self.files = device, threads, files
        self.known: dict[str, Known] = {}
        self.sensor: power.Sensor | None = None
        if device != "cpu":
            # CUDA's libraries, so that no network is charged for their memory.
            image, filters = (torch.ones(8, 8, side, side, device=device, dtype=torch.float16) for side in (32, 3))
            rows = torch.nn.functional.conv2d(image, filters).flatten(1)
            torch.mm(rows, rows.t())
            torch.cuda.synchronize()

    # --- what may be asked ---

    def hello(self, _: dict[str, Any]) -> dict[str, Any]:
        """The device in PyTorch's words."""
        import torch

        found: dict[str, Any] = {"torch": torch.__version__}
        if self.device == "cpu":
            return found
        properties = torch.cuda.get_device_properties(0)
        cudnn: Any = torch.backends.cudnn
        return found | {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_mb": round(properties.total_memory / 1e6),
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),
        }

    def rates(self, job: dict[str, Any]) -> dict[str, Any]:
        found = roofline.rates(self.device, tuple(job["precisions"]), job.get("side", 0), job.get("megabytes", 0))
        self._forget()
        return found

    def check(self, job: dict[str, Any]) -> dict[str, Any]:
        """The engine's answers on the parity images, held against the CPU's in float32 by the exporter's thresholds."""
        known = self._known(job)
        batch, start = known.images.batch, 0
        pieces: list[Scores] = []
        with closing(self._open(job)) as network:
            while start < len(batch):
                size = PIECES[len(pieces)] if len(pieces) < len(PIECES) else 8
                pieces.append(network.run(np.ascontiguousarray(batch[start : start + size])))
                start += size
        scores = np.concatenate(pieces).astype(np.float32)
        limits = parity.limits(job["precision"], known.network.weights.kind)
        verdict = parity.compare(known.reference, scores, known.images, limits)
        self._forget()
        kept = ("max_abs_error", "max_relative_error", "cosine", "top1_agreement", "images", "failures", "verdict")
        record = verdict.record()
        return {name: record[name] for name in kept}

    def cell(self, job: dict[str, Any]) -> dict[str, Any]:
        """Memory, the calls' times from memory to memory, and those on the device alone where the engine tells them."""
        batch, settings = self._noise(job), job["settings"]
        self._known(job)
        self._forget()
        self._forget_peak()
        before = self._used()
        with closing(self._open(job)) as network:
            loaded, load_peak = self._used(), self._peak()
            fresh = self._forget_peak()
            for _ in range(child.MEMORY_CALLS):
                network.run(batch)
            peak = self._peak()
            # As in `child.memory`: unless the peak of loading could be forgotten, it hides the calls' own.
            hidden = not fresh and peak == load_peak
            warm = child.warm_up(lambda: network.run(batch), settings["warmup_s"])
            timing = timed(lambda: network.run(batch), settings)
            on_device = getattr(network, "device_ms", None)
            device = [] if on_device is None else on_device(len(batch), calls_for(float(np.median(timing["values"]))))
        self._forget()
        used = None if peak is None or before is None else max(0.0, max(peak, load_peak or 0.0) - before)
        return timing | {
            "warm": warm,
            "device_values": device,
            "memory": {
                "weights": roofline.work(job["network"], job["precision"]).weight_bytes / 1e6,
                "peak_rss": used if self.device == "cpu" else None,
                "peak_gpu": None if self.device == "cpu" else used,
                "activations": None if peak is None or loaded is None or hidden else max(0.0, peak - loaded),
            },
        }

    def power(self, job: dict[str, Any]) -> Any:
        if self.sensor is None:
            self.sensor = power.of_gpu() if self.device != "cpu" else power.Rapl()
        batch = self._noise(job)
        with closing(self._open(job)) as network:

            def warm() -> Callable[[], object]:
                child.warm_up(lambda: network.run(batch), job["settings"]["warmup_s"])
                return lambda: network.run(batch)

            found = power.measure(
                self.sensor, warm, len(batch), idle_s=0, idle_w=job["idle_w"], window_s=job["settings"]["window_s"],
                trials=job["settings"]["trials"],
            )  # fmt: skip
        self._forget()
        return found

    # --- how ---

    def _known(self, job: dict[str, Any]) -> Known:
        name = job["network"]
        if name not in self.known:
            import torch

            from export.to_onnx import Served

            torch.set_num_threads(self.threads)
            network = load(name, job["weights"])
            images = parity.inputs(network.preprocess)
            served = Served(network.module, network.preprocess).eval()
            with torch.inference_mode():
                reference = served(torch.from_numpy(images.batch)).numpy()
            self.known[name] = Known(network, images, reference)
        return self.known[name]

    def _open(self, job: dict[str, Any]) -> Runtime:
        engine, precision, network = job["engine"], job["precision"], self._known(job).network
        if engine in (torch_engine.TORCH, torch_engine.COMPILED, *torch_engine.ON_CUDA.values()):
            compiled = engine in (torch_engine.COMPILED, torch_engine.ON_CUDA[torch_engine.COMPILED])
            return torch_engine.Torch(network, self.device, precision, self.threads, compiled=compiled)
        graph = self._graph(network, precision, max(job["batches"]))
        make = runtime.ENGINES[engine]
        if engine in runtime.PLAN_ENGINES:
            plan, record = self._plan(graph, engine, precision, network, job["batches"])
            return make(plan, precision, self.threads, record)
        if engine == "onnxruntime-cuda":
            return make(graph, precision, self.threads, max_batch=max(job["batches"]))
        return make(graph, precision, self.threads)

    def _graph(self, network: Network, precision: str, largest: int) -> Path:
        from export.to_onnx import to_onnx

        path = self.files / f"{network.name}-{precision}-{largest}.onnx"
        if not path.exists():
            to_onnx(network, path, largest, half=precision == "fp16")
        return path

    def _plan(
        self, graph: Path, engine: str, precision: str, network: Network, batches: list[int]
    ) -> tuple[Path, dict[str, Any]]:
        from export.to_engine import build_plan

        plan = graph.with_name(f"{graph.stem}-{engine}.plan")
        record = plan.with_suffix(".json")
        if not record.exists():
            built = build_plan(graph, plan, engine, precision, network.preprocess.shape, batches)  # type: ignore[arg-type]
            record.write_text(json.dumps(built.record()), "utf-8")
        found: dict[str, Any] = json.loads(record.read_text("utf-8"))
        return plan, found

    def _noise(self, job: dict[str, Any]) -> Pixels:
        """The time of a dense network does not depend on what it looks at."""
        shape = (job["batch"], *spec(job["network"]).preprocess.shape)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def _used(self) -> float | None:
        """MB in use: of the device, whoever uses it, or of this process on a CPU."""
        if self.device == "cpu":
            return child.resident("VmRSS")
        import torch

        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e6

    def _peak(self) -> float | None:
        # What an engine took from a GPU it keeps until it is closed, so that after the calls "now" is the most.
        return child.resident("VmHWM") if self.device == "cpu" else self._used()

    def _forget_peak(self) -> bool:
        return self.device != "cpu" or child.forget_peak()

    def _forget(self) -> None:
        """Give back what is free, so that the next cell's memory is seen to grow."""
        gc.collect()
        if self.device != "cpu":
            import torch

            torch.cuda.empty_cache()
            return
        with suppress(AttributeError, OSError):  # GNU's library alone can
            ctypes.CDLL(None).malloc_trim(0)


def calls_for(milliseconds: float) -> int:
    return int(min(MOST, max(FEWEST, 1e3 * DEVICE_S / milliseconds)))


def timed(call: Callable[[], object], settings: dict[str, Any]) -> dict[str, Any]:
    """Every call's milliseconds, and the wall and processor seconds of all; as long as `settings` say."""
    clock, values = time.perf_counter, []
    cpu_began, began = time.process_time(), clock()
    after = began
    while True:
        before = after
        call()
        after = clock()
        values.append(1e3 * (after - before))
        passed, count = after - began, len(values)
        if count >= settings["fewest"] and (passed >= settings["measure_s"] or count >= settings["most"]):
            return {"values": values, "wall_s": passed, "cpu_s": time.process_time() - cpu_began}


def main() -> int:
    # What engines print goes to stderr, so that stdout carries the answers alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        job = json.loads(line)
        if worker is None:
            worker = Worker(job["device"], job["threads"], Path(job["files"]))
        passes: dict[str, child.Pass] = {
            "hello": worker.hello, "rates": worker.rates, "check": worker.check, "cell": worker.cell,
            "power": worker.power,
        }  # fmt: skip
        print(json.dumps(child.attempt(job, passes)), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
