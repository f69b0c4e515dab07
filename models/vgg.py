"""VGG (Simonyan and Zisserman 2014): only 3x3 convolutions, five 2x2 pools, three fully connected layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import pool_to

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """`depths` counts the convolutions between the pools: configurations A, B, D and E of the paper's table 1."""

    def __init__(
        self, depths: tuple[int, int, int, int, int], norm: bool = False, num_classes: int = 1000, size: int = 224
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in zip(WIDTHS, depths, strict=True):
            for _ in range(depth):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = pool_to(7, self.features, size)
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits
