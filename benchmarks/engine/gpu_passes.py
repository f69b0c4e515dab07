"""The process that `engine/gpu.py` asks: it holds torch, the networks and the device.

One process serves many cells, because a GPU's context and its libraries take ten seconds to load, and a run has nine
minutes. Every cell opens its engine anew and closes it, so that its memory and algorithms are its own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from benchmarks.engine import passes, power, roofline, torch_engine
from benchmarks.process import answer
from benchmarks.records import Memory, Parity, Power
from export import parity
from models import spec
from models.preprocess import Pixels
from models.weights import Network, load
from serving import runtime
from serving.engines import Runtime, Scores

# A check runs the images in pieces of these sizes, so that a bucket is filled, padded and used again.
PIECES = (1, 3)

# Device times are taken for about so many seconds, in at least and at most so many calls.
DEVICE_S, FEWEST, MOST = 0.25, 10, 200


@dataclass(frozen=True)
class Known:
    """A network on the CPU, and PyTorch's scores there for the parity images, in float32."""

    network: Network
    images: parity.Inputs
    reference: Scores


class Job(TypedDict):
    """What a cell is; `settings` are the fields of `passes.Settings`, `batches` all that an engine is built for."""

    network: str
    engine: str
    precision: str
    weights: str
    settings: Mapping[str, Any]
    batches: list[int]


class BatchJob(Job):
    batch: int


class PowerJob(BatchJob):
    idle_w: float


class RatesJob(TypedDict):
    precisions: list[str]
    side: NotRequired[int]
    megabytes: NotRequired[int]


class CellAnswer(passes.Latency):
    device_values: list[float]  # milliseconds on the GPU alone
    memory: Memory


class Worker:
    def __init__(self, device: str, threads: int, files: Path) -> None:
        import torch

        self.device, self.threads, self.files = device, threads, files
        self.known: dict[str, Known] = {}
        self.sensor: power.Sensor | None = None
        if device != "cpu":
            # Load CUDA's libraries, so that their memory is not counted for a network.
            image, filters = (torch.ones(8, 8, side, side, device=device, dtype=torch.float16) for side in (32, 3))
            rows = torch.nn.functional.conv2d(image, filters).flatten(1)
            torch.mm(rows, rows.t())
            torch.cuda.synchronize()

    # What may be asked

    def hello(self, _: object) -> dict[str, str | int | None]:
        """The device as PyTorch describes it."""
        import torch

        version: dict[str, str | int | None] = {"torch": torch.__version__}
        if self.device == "cpu":
            return version
        properties = torch.cuda.get_device_properties(0)
        cudnn: Any = torch.backends.cudnn
        return version | {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_mb": round(properties.total_memory / 1e6),
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),
        }

    def rates(self, job: RatesJob) -> dict[str, float | None]:
        rates = roofline.rates(self.device, tuple(job["precisions"]), job.get("side", 0), job.get("megabytes", 0))
        self._forget()
        return rates

    def check(self, job: Job) -> Parity:
        """The engine's answers to the parity images against float32 on the CPU, by the exporter's thresholds."""
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
        record = verdict.record()
        return cast(Parity, {name: record[name] for name in Parity.__annotations__})

    def cell(self, job: BatchJob) -> CellAnswer:
        """Memory, the calls' times from memory to memory, and those on the device alone if the engine tells them."""
        batch, settings = self._noise(job), passes.Settings(**job["settings"])
        self._known(job)
        self._forget()
        self._forget_peak()
        before = self._used()
        with closing(self._open(job)) as network:
            loaded, load_peak = self._used(), self._peak()
            fresh = self._forget_peak()
            for _ in range(passes.MEMORY_CALLS):
                network.run(batch)
            peak = self._peak()
            # As in `passes.memory`: unless the peak of loading could be forgotten, it hides the calls' own.
            hidden = not fresh and peak == load_peak
            warm = passes.warm_up(lambda: network.run(batch), settings.warmup_s)
            calls = passes.timed(lambda: network.run(batch), settings)
            on_device = getattr(network, "device_ms", None)
            device = [] if on_device is None else on_device(len(batch), calls_for(float(np.median(calls["values"]))))
        self._forget()
        used = None if peak is None or before is None else max(0.0, max(peak, load_peak or 0.0) - before)
        return {
            **calls,
            "warm": warm,
            "device_values": device,
            "memory": {
                "weights": roofline.work(job["network"], job["precision"]).weight_bytes / 1e6,
                "peak_rss": used if self.device == "cpu" else None,
                "peak_gpu": None if self.device == "cpu" else used,
                "activations": None if peak is None or loaded is None or hidden else max(0.0, peak - loaded),
            },
        }

    def power(self, job: PowerJob) -> Power:
        if self.sensor is None:
            self.sensor = power.of_gpu() if self.device != "cpu" else power.Rapl()
        batch, settings = self._noise(job), passes.Settings(**job["settings"])
        with closing(self._open(job)) as network:

            def warm() -> passes.Call:
                passes.warm_up(lambda: network.run(batch), settings.warmup_s)
                return lambda: network.run(batch)

            power_ = power.measure(
                self.sensor, warm, len(batch), idle_s=0, idle_w=job["idle_w"], window_s=settings.window_s,
                trials=settings.trials,
            )  # fmt: skip
        self._forget()
        return power_

    # How it is done

    def _known(self, job: Job) -> Known:
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

    def _open(self, job: Job) -> Runtime:
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
        built_as: dict[str, Any] = json.loads(record.read_text("utf-8"))
        return plan, built_as

    def _noise(self, job: BatchJob) -> Pixels:
        return passes.noise((job["batch"], *spec(job["network"]).preprocess.shape))

    def _used(self) -> float | None:
        """MB in use on the device, by any process; on a CPU, by this process."""
        if self.device == "cpu":
            return passes.resident("VmRSS")
        import torch

        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e6

    def _peak(self) -> float | None:
        # An engine keeps what it took from a GPU until it is closed, so that after the calls "now" is the peak.
        return passes.resident("VmHWM") if self.device == "cpu" else self._used()

    def _forget_peak(self) -> bool:
        return self.device != "cpu" or passes.forget_peak()

    def _forget(self) -> None:
        """Give back what is free, so that the growth of the next cell's memory shows."""
        gc.collect()
        if self.device != "cpu":
            import torch

            torch.cuda.empty_cache()
            return
        with suppress(AttributeError, OSError):  # only GNU's C library has it
            ctypes.CDLL(None).malloc_trim(0)


def calls_for(milliseconds: float) -> int:
    return int(min(MOST, max(FEWEST, 1e3 * DEVICE_S / milliseconds)))


def main(device: str, threads: str, files: str) -> int:
    worker = Worker(device, int(threads), Path(files))
    return answer(
        {
            "hello": worker.hello, "rates": worker.rates, "check": worker.check, "cell": worker.cell,
            "power": worker.power,
        }
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
