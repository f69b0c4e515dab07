"""SqueezeNet (Iandola et al. 2016): fire modules, which reduce to few channels before they expand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import at_least


class Fire(nn.Module):
    """A 1x1 convolution to `squeeze` channels, then 1x1 and 3x3 side by side to `expand` channels each."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.expand1x1(x), inplace=True), F.relu(self.expand3x3(x), inplace=True)], 1)


# Of fire2 to fire9 (the paper's table 1): the widths grow by a step every second module.
SQUEEZE = (16, 16, 32, 32, 48, 48, 64, 64)
EXPAND = (64, 64, 128, 128, 192, 192, 256, 256)


class SqueezeNet(nn.Module):
    """`first` is (filters, kernel) of the stride-2 stem; `pools` are the fire modules that a pool stands before.

    1.1 has a smaller stem and pools earlier. It has the same accuracy with 2.4 times fewer multiplications.
    """

    def __init__(
        self, first: tuple[int, int], pools: tuple[int, ...], num_classes: int = 1000, size: int = 224
    ) -> None:
        super().__init__()
        at_least(32, size)
        channels, kernel = first
        layers: list[nn.Module] = [nn.Conv2d(3, channels, kernel, 2), nn.ReLU(inplace=True)]
        for number, (squeeze, expand) in enumerate(zip(SQUEEZE, EXPAND, strict=True), start=2):
            if number in pools:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            layers.append(Fire(channels, squeeze, expand))
            channels = 2 * expand
        self.features = nn.Sequential(*layers)
        # No fully connected layer: one 1x1 convolution makes a map per class, and its mean is the score.
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(channels, num_classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(self.features(x))
        return torch.flatten(x, 1)
