"""What is measured on a GPU, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.engine import torch_engine
from models import SETS

# The lecture's five, ResNet-50 before the others; its winners; then one network of each other family.
OTHERS = ("squeezenet1_1", "inception_v3", "densenet121", "nin", "fractalnet34", "lenet5")
NETWORKS = tuple(dict.fromkeys(("resnet50", *SETS["five"], *SETS["winners"], *OTHERS)))

# The largest first, because a GPU is bought for it. The claim about memory needs five sizes (`claims.FEWEST_BATCHES`),
# and 16 is the fifth.
BATCHES = (256, 1, 64, 8, 16)
CPU_BATCHES = (8, 1)

Graph = tuple[str, str, str]  # network, engine, precision
Key = tuple[str, str, str, int]  # and batch


@dataclass(frozen=True)
class Task:
    """Cells of one network in one engine, batch after batch; or the power of one cell."""

    network: str
    engine: str
    precision: str
    batches: tuple[int, ...]
    power: bool = False

    @property
    def graph(self) -> Graph:
        return self.network, self.engine, self.precision

    @property
    def keys(self) -> list[Key]:
        return [(*self.graph, batch) for batch in self.batches]


def plan(
    networks: Sequence[str], contenders: Sequence[tuple[str, str]], batches: Sequence[int], metered: bool
) -> list[Task]:
    """The tasks, the most useful first, because a run may be cut off after any of them.

    They are ResNet-50 whole, the five, the other engines on ResNet-50, the other networks, power at the largest batch
    and at one, then the rest. `contenders` are (engine, precision), the main one first.
    """
    first, five, rest = networks[0], networks[1:5], networks[5:]
    main, others = contenders[0], contenders[1:]
    sizes = tuple(batches)
    # torch.compile takes a minute for every size, so that it gets the largest alone.
    compiled = (torch_engine.COMPILED, torch_engine.ON_CUDA[torch_engine.COMPILED])
    sizes_of = {contender: sizes[:1] if contender[0] in compiled else sizes for contender in contenders}

    def cells(names: Sequence[str], *wanted: tuple[str, str]) -> list[Task]:
        return [Task(name, *contender, sizes_of[contender]) for contender in wanted for name in names]

    def watts(names: Sequence[str], contender: tuple[str, str], *at: int) -> list[Task]:
        known = [batch for batch in at if metered and batch in sizes_of[contender]]
        return [Task(name, *contender, (batch,), True) for batch in known for name in names]

    tasks = [*cells([first], main), *watts([first], main, sizes[0]), *cells(five, main)]
    for other in others:
        tasks += [*cells([first], other), *watts([first], other, sizes[0])]
    tasks += cells(rest, main)
    tasks += [*watts(five, main, sizes[0]), *watts([first, *five], main, *sizes[1:2])]
    tasks += [*watts(rest, main, sizes[0]), *watts([first], main, *sizes[2:])]
    tasks += [*cells(five, *others), *watts(rest, main, *sizes[1:2]), *watts(five, main, *sizes[2:])]
    return list(dict.fromkeys(tasks))
