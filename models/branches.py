"""Modules of parallel branches, each written as a table of its branches, as the papers' figures draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers import ConvNorm


class Trained(NamedTuple):
    """What a network with auxiliary heads returns in training. The paper adds each head's loss with weight 0.3."""

    logits: Tensor
    auxiliary: tuple[Tensor, ...]


Kernel = int | tuple[int, int]


@dataclass(frozen=True)
class Conv:
    """One convolution of a branch, with its normalization and ReLU."""

    filters: int
    kernel: Kernel
    stride: int
    padding: int | tuple[int, int]

    def build(self, inputs: int, norm: bool) -> nn.Module:
        return ConvNorm(inputs, self.filters, self.kernel, self.stride, self.padding, norm)


@dataclass(frozen=True)
class Pool:
    """A 3x3 pool. Like TensorFlow, "average" divides by the values inside the map; "padded" counts the border too."""

    kind: str
    stride: int = 1
    padding: int = 1

    def build(self) -> nn.Module:
        if self.kind == "max":
            return nn.MaxPool2d(3, self.stride, self.padding)
        return nn.AvgPool2d(3, self.stride, self.padding, count_include_pad=self.kind == "padded")


def same(filters: int, kernel: Kernel = 1, stride: int = 1) -> Conv:
    """A convolution padded so that stride 1 keeps the size of the map."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return Conv(filters, kernel, stride, (height // 2, width // 2))


def valid(filters: int, kernel: Kernel, stride: int = 1) -> Conv:
    """A convolution without padding; the papers mark these "V"."""
    return Conv(filters, kernel, stride, 0)


AVERAGE, PADDED_AVERAGE, MAX, HALVE = Pool("average"), Pool("padded"), Pool("max"), Pool("max", 2, 0)

# A list at the end of a branch is a fork: its convolutions read the same map, and their outputs are joined.
Branch = Sequence[Conv | Pool | list[Conv]]
Branches = Mapping[str, Branch]


class Mixed(nn.Module):
    """Branches that read the same map and are joined along the channels.

    `flat` chooses the names (see `names_of`). Without `norm`, convolutions have a bias instead of normalization.
    """

    def __init__(self, inputs: int, branches: Branches, flat: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.paths = [names_of(name, branch, flat) for name, branch in branches.items()]
        self.outputs = 0
        for path, branch in zip(self.paths, branches.values(), strict=True):
            channels = inputs
            for names, step in zip(path, branch, strict=True):
                if isinstance(step, Pool):
                    self._register(names[0], step.build())
                    continue
                convs = step if isinstance(step, list) else [step]
                for name, conv in zip(names, convs, strict=True):
                    self._register(name, conv.build(channels, norm))
                channels = sum(conv.filters for conv in convs)
            self.outputs += channels

    def _register(self, name: str, module: nn.Module) -> None:
        container, _, position = name.rpartition(".")
        if container and not hasattr(self, container):
            self.add_module(container, nn.Sequential())
        self.get_submodule(container).add_module(position, module)

    def forward(self, x: Tensor) -> Tensor:
        ends = []
        for path in self.paths:
            y = x
            for names in path:
                y = join([self.get_submodule(name)(y) for name in names])
            ends.append(y)
        return join(ends)


def join(maps: list[Tensor]) -> Tensor:
    """`maps` one after another along the channels."""
    return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


def names_of(branch: str, steps: Branch, flat: bool) -> list[list[str]]:
    """The names of a branch's steps as its checkpoint has them; two for a fork.

    A single step has the branch's name. torchvision's Inception v3 (`flat`) counts from 1: branch_1, branch_2, and
    branch_3a beside branch_3b for a fork. The others count from 0 and put the steps into a container: branch.0,
    branch.1. Only timm's branches with a fork have no container: branch_0, branch_1a, branch_1b.
    """
    alone = len([step for step in steps if not isinstance(step, Pool)]) == 1
    names = []
    for position, step in enumerate(steps):
        if len(steps) == 1:
            name = branch
        elif flat and alone:
            name = "pool" if isinstance(step, Pool) else branch
        elif flat:
            name = f"{branch}_{position + 1}"
        else:
            name = f"{branch}_{position}" if isinstance(steps[-1], list) else f"{branch}.{position}"
        names.append([f"{name}a", f"{name}b"] if isinstance(step, list) else [name])
    return names
