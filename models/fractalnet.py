"""FractalNet (Larsson et al. 2016): depth from self-similarity, without shortcuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import at_least


class Fractal(nn.Module):
    """f_C of the paper's equation 1: one convolution beside two f_(C-1) in a row, joined by their mean.

    Joins that follow one another are merged into one (figure 1): all columns that end in the same place are averaged
    together. So `columns_of` returns them separately.
    """

    def __init__(self, inputs: int, filters: int, columns: int) -> None:
        super().__init__()
        self.short = nn.Sequential(
            nn.Conv2d(inputs, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)
        )
        self.columns = columns
        if columns > 1:
            self.first = Fractal(inputs, filters, columns - 1)
            self.second = Fractal(filters, filters, columns - 1)

    def columns_of(self, x: Tensor, only: int | None) -> list[Tensor]:
        """The outputs of every column, shallow to deep, before they are joined."""
        if self.columns == 1:
            return [self.short(x)]
        return [self.short(x), *self.second.columns_of(self.first(x, only), only)]

    def forward(self, x: Tensor, only: int | None = None) -> Tensor:
        ends = self.columns_of(x, only)
        if self.training:
            ends = drop_path(ends, only)
        return sum(ends[1:], ends[0]) / len(ends)


# "Local drop-path uses 15 % drop rate across the entire network", and half of the batches drop globally (section 3).
LOCAL_DROP = 0.15
GLOBAL_SHARE = 0.5


def drop_path(ends: list[Tensor], only: int | None) -> list[Tensor]:
    """What training keeps of a join's inputs: the column `only`, counted from the deepest, or a random part of them."""
    if only is not None:
        # A column that does not end here takes no part in this join, and its output is not used.
        return [ends[-1 - only]] if only < len(ends) else ends
    kept = [end for end in ends if torch.rand(()) >= LOCAL_DROP]
    return kept or [ends[int(torch.randint(len(ends), ()))]]


class FractalNet(nn.Module):
    """A block of `columns` columns for each of `filters`, 2 x 2 pools between them, ResNet-34's first and last layers.

    The deepest path has 2 + 8 * 4 = 34 layers for four blocks of four columns.
    """

    def __init__(
        self,
        filters: tuple[int, ...] = (128, 256, 512, 1024),
        columns: int = 4,
        num_classes: int = 1000,
        size: int = 224,
    ) -> None:
        super().__init__()
        at_least(32, size)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.columns = columns
        widths = (64, *filters)
        self.blocks = nn.ModuleList(Fractal(a, b, columns) for a, b in zip(widths, filters, strict=False))
        self.pool = nn.MaxPool2d(2, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(filters[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        only = None
        if self.training and torch.rand(()) < GLOBAL_SHARE:
            only = int(torch.randint(self.columns, ()))
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x if number == 0 else self.pool(x), only)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits
