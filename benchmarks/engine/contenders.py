"""The same network in every engine side by side: PyTorch, ONNX Runtime and OpenVINO in interleaved rounds.

PyTorch runs eagerly, and with `--compile` through torch.compile too, which needs a C++ compiler and a minute or more.
If it sees an NVIDIA GPU, it runs there as well: float16, channels last, one CUDA graph for each batch size.

Each engine has a process of its own, which sleeps while another is timed. A round times them one after the other, so
that a slow moment of the machine affects all of them. The ratios are those of the medians over the rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

from benchmarks.engine import passes
from benchmarks.engine.passes import Job
from benchmarks.engine.torch_engine import COMPILED, ON_CUDA, TORCH, Torch, cuda
from benchmarks.process import Child, PassError, answer
from models.console import Failure, progress, table
from models.preprocess import Pixels
from serving.artifact import Artifact
from serving.runtime import available, cores

if TYPE_CHECKING:
    import torch


# At most, for each batch size.
WARM_UP_S = 2.0


@dataclass(frozen=True)
class Contender:
    engine: str
    precision: str


def contenders(artifact: Artifact, compiled: bool = False) -> list[Contender]:
    """PyTorch first, then the engines that can run the artifact here."""
    usable = available()
    names = (TORCH, COMPILED)[: 1 + compiled]
    eager = [Contender(name, "fp32") for name in names]
    eager += [Contender(ON_CUDA[name], "fp16") for name in names if cuda()]
    return [*eager, *(Contender(e, p) for e, p in artifact.graphs() if e in usable)]


@dataclass(frozen=True)
class Turns:
    """How the engines take turns: batch sizes, rounds, the shortest look in seconds, threads of each engine."""

    batches: Sequence[int]
    rounds: int
    look_s: float = 0.5
    threads: int = 0


class Row(TypedDict):
    """One engine at one precision and batch: milliseconds per batch, every round's and their median."""

    network: str
    engine: str
    precision: str
    batch: int
    threads: int
    latency_ms: float
    values: list[float]


class Work(Job):
    """What a contender's process is started with."""

    network: str | None  # as `models` calls it
    classes: int
    weights: str


class Look(TypedDict):
    batch: int
    seconds: float


def compare(artifact: Artifact, weights: str | None, turns: Turns, compiled: bool = False) -> list[Row]:
    """A row for every engine, precision and batch.

    `weights` is what PyTorch loads (a file, or None for what the artifact was exported from).
    """
    values: dict[tuple[Contender, int], list[float]] = {}
    with ExitStack() as running:
        asks = {
            contender: running.enter_context(process(work(artifact, contender, weights, turns.threads)))
            for contender in contenders(artifact, compiled)
        }
        for ask in asks.values():
            for batch in turns.batches:
                ask("warm_up", batch, WARM_UP_S)
        for _ in progress(range(turns.rounds), f"timing {artifact.network}"):
            for batch in turns.batches:
                for contender, ask in asks.items():
                    values.setdefault((contender, batch), []).append(ask("time", batch, turns.look_s))
    return [
        {
            "network": artifact.network,
            "engine": contender.engine,
            "precision": contender.precision,
            "batch": batch,
            "threads": turns.threads,
            "latency_ms": statistics.median(rounds),
            "values": rounds,
        }
        for (contender, batch), rounds in values.items()
    ]


def work(artifact: Artifact, contender: Contender, weights: str | None, threads: int) -> Work:
    kind = artifact.weights
    if weights is None and kind == "custom":
        raise Failure(f"{artifact.tag} was exported from a file; pass it with --weights, so that PyTorch has it too")
    return {
        "folder": str(artifact.folder),
        "version": artifact.version,
        "engine": contender.engine,
        "precision": contender.precision,
        "threads": threads,
        "network": artifact.architecture,
        "classes": artifact.classes,
        "weights": weights or kind,
    }


@contextmanager
def process(work: Work) -> Iterator[Callable[[str, int, float], float]]:
    """A process with the engine of `work`; the call asks it for something at a batch, for so many seconds."""
    with Child("benchmarks.engine.contenders", json.dumps(work)) as child:

        def ask(name: str, batch: int, seconds: float) -> float:
            try:
                return float(child.ask(name, {"batch": batch, "seconds": seconds}))
            except PassError as error:
                raise Failure(f"{work['engine']} {work['precision']} of {work['network']}: {error}") from error

        yield ask


def summary(rows: Sequence[Row]) -> str:
    """Images per second, and that rate divided by the float32 rates of PyTorch and of ONNX Runtime."""
    rate = {(r["network"], r["batch"], r["engine"], r["precision"]): 1000 * r["batch"] / r["latency_ms"] for r in rows}
    lines = []
    for r in rows:
        own = rate[r["network"], r["batch"], r["engine"], r["precision"]]
        against = [rate.get((r["network"], r["batch"], engine, "fp32")) for engine in (TORCH, "onnxruntime")]
        spread = f"{min(r['values']):.4g} to {max(r['values']):.4g}"
        ratios = [f"{own / other:.2f}" if other else "-" for other in against]
        first = (r["network"], r["engine"], r["precision"], r["batch"])
        lines.append((*first, f"{r['latency_ms']:.4g}", spread, f"{own:.1f}", *ratios))
    header = ("network", "engine", "precision", "batch", "ms", "lowest to highest", "img/s", "x torch", "x ORT fp32")
    return table(lines, header, right=range(3, 9))


# In the contender's process


class Contending:
    """The engine of one contender, opened when it is first run, and its images by batch size."""

    def __init__(self, work: Work) -> None:
        self.work, self.images = work, dict[int, Pixels]()

    @cached_property
    def run(self) -> Callable[[Pixels], object]:
        ours = self.work["engine"] in (TORCH, COMPILED, *ON_CUDA.values())
        return torch_run(self.work) if ours else passes.opened(self.work).run

    def warm_up(self, look: Look) -> bool:
        images = self.images[look["batch"]] = passes.pixels(self.work, look["batch"])
        return passes.warm_up(lambda: self.run(images), look["seconds"])

    def time(self, look: Look) -> float:
        """The mean milliseconds of a call."""
        images, seconds = self.images[look["batch"]], look["seconds"]
        self.run(images)  # the first call after a sleep is slower than the engine
        values, took = passes.repeated(lambda: self.run(images), lambda passed, calls: passed >= seconds and calls > 0)
        return 1e3 * took / len(values)


def torch_run(work: Work) -> Callable[[Pixels], object]:
    """PyTorch as its users run it: eager or compiled, in inference mode, from the same uint8 pixels to the same
    probabilities.
    """
    import torch

    from models.weights import load

    if work["network"] is None:
        raise Failure("PyTorch builds networks by their name, and this network is your own")
    network = load(work["network"], work["weights"], work.get("classes"))
    if work["engine"] in ON_CUDA.values():
        return Torch(
            network, "cuda", work["precision"], work["threads"], compiled=work["engine"] == ON_CUDA[COMPILED]
        ).run
    torch.set_num_threads(work["threads"] or cores())
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (network.preprocess.mean, network.preprocess.std))

    def probabilities(images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = network.module((images.permute(0, 3, 1, 2).float().div(255) - mean) / std)
        return scores.softmax(-1)

    # One fast graph for every batch size, not one graph for all sizes.
    call = torch.compile(probabilities, dynamic=False) if work["engine"] == COMPILED else probabilities

    def run(batch: Pixels) -> object:
        with torch.inference_mode():
            return call(torch.from_numpy(batch)).numpy()

    return run


if __name__ == "__main__":
    contending = Contending(json.loads(sys.argv[1]))
    sys.exit(answer({"warm_up": contending.warm_up, "time": contending.time}))
