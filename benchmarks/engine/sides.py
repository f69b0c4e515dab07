"""The same network in every engine side by side: PyTorch, ONNX Runtime and OpenVINO in interleaved rounds.

PyTorch runs eagerly, and with `--compile` through torch.compile too, which needs a C++ compiler and a minute or more.
Where it sees an NVIDIA GPU it runs there as well: float16, channels last, one CUDA graph a batch size.

Each engine lives in a process of its own and sleeps while another is timed; a round times them one after the other, so
that a slow spell of the machine strikes all alike, and the ratios are those of the medians over the rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.engine import passes as child
from benchmarks.engine.torch_engine import COMPILED, ON_CUDA, TORCH, Torch, cuda
from benchmarks.process import ROOT
from models.console import Failure, progress, table
from models.preprocess import Pixels
from serving.artifact import Artifact
from serving.runtime import available, cores

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Contender:
    engine: str
    precision: str


def contenders(artifact: Artifact, compiled: bool = False) -> list[Contender]:
    """PyTorch first, then what the artifact runs with here."""
    usable = available()
    names = (TORCH, COMPILED)[: 1 + compiled]
    eager = [Contender(name, "fp32") for name in names]
    eager += [Contender(ON_CUDA[name], "fp16") for name in names if cuda()]
    return [*eager, *(Contender(e, p) for e, p in artifact.graphs() if e in usable)]


def compare(
    artifact: Artifact,
    weights: str | None,
    batches: Sequence[int],
    rounds: int,
    round_s: float,
    threads: int,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """A row for every engine, precision and batch: milliseconds per batch, the median of `rounds` and every value.

    `weights` is what PyTorch loads (a file, or None for what the artifact was exported from).
    """
    rows: dict[tuple[Contender, int], list[float]] = {}
    with ExitStack() as running:
        asks = {
            c: running.enter_context(process(job(artifact, c, weights, batches, round_s, threads)))
            for c in contenders(artifact, compiled)
        }
        for _ in progress(range(rounds), f"timing {artifact.network}"):
            for batch in batches:
                for contender, ask in asks.items():
                    rows.setdefault((contender, batch), []).append(ask(batch))
    return [
        {
            "network": artifact.network,
            "engine": contender.engine,
            "precision": contender.precision,
            "batch": batch,
            "threads": threads,
            "latency_ms": statistics.median(values),
            "values": values,
        }
        for (contender, batch), values in rows.items()
    ]


def job(
    artifact: Artifact, contender: Contender, weights: str | None, batches: Sequence[int], round_s: float, threads: int
) -> dict[str, Any]:
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
        "batches": list(batches),
        "round_s": round_s,
    }


@contextmanager
def process(work: dict[str, Any]) -> Iterator[Callable[[int], float]]:
    """A process with the engine of `work`, warm; the call asks it for the mean milliseconds of one batch."""
    running = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.engine.sides"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None
    assert running.stdout is not None

    def say(word: object) -> Any:
        assert running.stdin is not None
        assert running.stdout is not None
        print(json.dumps(word), file=running.stdin, flush=True)
        line = running.stdout.readline()
        if not line:
            raise Failure(f"{work['engine']} {work['precision']} of {work['network']} ended early; see above")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise Failure(f"{work['engine']} {work['precision']} of {work['network']}: {answer['failed']}")
        return answer

    try:
        say(work)
        yield lambda batch: float(say(batch))
    finally:
        running.stdin.close()
        running.wait()
        running.stdout.close()


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Images per second, and how many times PyTorch's and ONNX Runtime's float32 rate that is."""
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


# --- in the child -----------------------------------------------------------------------------------------------------


def main() -> int:
    """Open what the first line names, then answer every batch size with its mean milliseconds."""
    work = json.loads(sys.stdin.readline())
    try:
        ours = work["engine"] in (TORCH, COMPILED, *ON_CUDA.values())
        run = torch_run(work) if ours else child.opened(work).run
        images = {batch: child.pixels({**work, "batch": batch}) for batch in work["batches"]}
        for batch in images.values():
            child.warm_up(lambda batch=batch: run(batch), 2.0)  # type: ignore[misc]
    except Exception as error:  # whatever an engine raises is the answer
        print(json.dumps({"failed": " ".join(str(error).split())}), flush=True)
        return 1
    print(json.dumps(True), flush=True)
    for line in sys.stdin:
        batch = images[json.loads(line)]
        run(batch)  # the first call after a sleep is not the machine's own
        print(json.dumps(mean_ms(lambda batch=batch: run(batch), work["round_s"])), flush=True)  # type: ignore[misc]
    return 0


def mean_ms(call: Callable[[], object], least_s: float) -> float:
    import time

    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < least_s or not count:
        call()
        count += 1
    return 1000 * passed / count


def torch_run(work: dict[str, Any]) -> Callable[[Pixels], object]:
    """PyTorch as its users run it: eager or compiled, in inference mode, from the same uint8 pixels to the same
    probabilities.
    """
    import torch

    from models.weights import load

    if work["network"] is None:
        raise Failure("PyTorch is given networks by their name, and this one is your own")
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

    # A graph for every batch size, as fast as it can be made, not one for all.
    call = torch.compile(probabilities, dynamic=False) if work["engine"] == COMPILED else probabilities

    def run(batch: Pixels) -> object:
        with torch.inference_mode():
            return call(torch.from_numpy(batch)).numpy()

    return run


if __name__ == "__main__":
    sys.exit(main())
