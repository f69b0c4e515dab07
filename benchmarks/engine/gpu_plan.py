"""What is measured on a GPU, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.engine import torch_engine
from models import SETS

# The lecture's five, ResNet-50 before the others; its winners; then one network of each other family.
OTHERS = ("squeezenet1_1", "inception_v3", "densenet121", "nin", "fractalnet34", "lenet5")
NETWORKS = tuple(dict.fromkeys(("resnet50", *SETS["five"], *SETS["winners"], *OTHERS)))

# The largest first: it is what a GPU is bought for. 16 is the fifth size, without which the claim about memory cannot
# be told (`claims.FEWEST_BATCHES`).
BATCHES = (256, 1, 64, 8, 16)
CPU_BATCHES = (8, 1)


@dataclass(frozen=True)
class Task:
    """Cells of one network in one engine, batch after batch; or the power of one cell."""

    network: str
    engine: str
    precision: str
    batches: tuple[int, ...]
    power: bool = False

    @property
    def keys(self) -> list[tuple[str, str, str, int]]:
        return [(self.network, self.engine, self.precision, batch) for batch in self.batches]


def plan(
    networks: Sequence[str], sides_: Sequence[tuple[str, str]], batches: Sequence[int], metered: bool
) -> list[Task]:
    """What to do, the most useful first: a run that is cut off has done the first so many of these.

    ResNet-50 whole, the five, other engines on ResNet-50, the other networks, then power at the largest batch and at
    one, then the rest. `sides_` are (engine, precision), the main one first.
    """
    first, five, rest = networks[0], networks[1:5], networks[5:]
    main, others = sides_[0], sides_[1:]
    sizes = tuple(batches)
    # Compiled once for every size, a minute each: the largest alone.
    of = {
        side: sizes[:1] if side[0] in (torch_engine.COMPILED, torch_engine.ON_CUDA[torch_engine.COMPILED]) else sizes
        for side in sides_
    }

    def cells(names: Sequence[str], *wanted: tuple[str, str]) -> list[Task]:
        return [Task(name, *side, of[side]) for side in wanted for name in names]

    def watts(names: Sequence[str], side: tuple[str, str], *at: int) -> list[Task]:
        return [Task(name, *side, (batch,), True) for batch in at for name in names if metered and batch in of[side]]

    tasks = [*cells([first], main), *watts([first], main, sizes[0]), *cells(five, main)]
    for other in others:
        tasks += [*cells([first], other), *watts([first], other, sizes[0])]
    tasks += cells(rest, main)
    tasks += [*watts(five, main, sizes[0]), *watts([first, *five], main, *sizes[1:2])]
    tasks += [*watts(rest, main, sizes[0]), *watts([first], main, *sizes[2:])]
    tasks += [*cells(five, *others), *watts(rest, main, *sizes[1:2]), *watts(five, main, *sizes[2:])]
    return list(dict.fromkeys(tasks))
