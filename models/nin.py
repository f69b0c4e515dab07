"""Network in Network (Lin et al. 2013): 1x1 convolutions after each convolution, and no fully connected layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import at_least


def mlpconv(inputs: int, filters: tuple[int, int, int], kernel: int, stride: int, padding: int) -> list[nn.Module]:
    """A convolution and two 1x1 ones: a small network that slides over the map."""
    a, b, c = filters
    return [
        *(nn.Conv2d(inputs, a, kernel, stride, padding), nn.ReLU(inplace=True)),
        *(nn.Conv2d(a, b, 1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(b, c, 1), nn.ReLU(inplace=True)),
    ]


class NiN(nn.Module):
    """Four mlpconv stages; the last makes one map per class, whose mean is the score.

    The paper has no ImageNet network. This is the one that its first author published for Caffe, whose pools round up.
    """

    def __init__(self, num_classes: int = 1000, size: int = 224) -> None:
        super().__init__()
        at_least(48, size)
        self.features = nn.Sequential(
            *mlpconv(3, (96, 96, 96), 11, 4, 0),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *mlpconv(96, (256, 256, 256), 5, 1, 2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *mlpconv(256, (384, 384, 384), 3, 1, 1),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(),
            *mlpconv(384, (1024, 1024, num_classes), 3, 1, 1),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return torch.flatten(x, 1)
