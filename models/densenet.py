"""DenseNet (Huang et al. 2016): every layer reads the maps of all layers before it in its block."""

from __future__ import annotations

import re
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import at_least


class DenseLayer(nn.Module):
    """Normalization and ReLU before a 1x1 convolution to 4 x growth, and again before a 3x3 one to growth channels."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x), inplace=True))
        y: Tensor = self.conv2(F.relu(self.norm2(x), inplace=True))
        return y


class DenseBlock(nn.Module):
    """`depth` layers, the output of each joined to its input."""

    def __init__(self, inputs: int, depth: int, growth: int) -> None:
        super().__init__()
        for number in range(depth):
            self.add_module(f"denselayer{number + 1}", DenseLayer(inputs + number * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class DenseNet(nn.Module):
    """Dense blocks of `layers` layers; between two blocks the channels and the size are halved."""

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        growth: int = 32,
        stem: int = 64,
        num_classes: int = 1000,
        size: int = 224,
    ) -> None:
        super().__init__()
        at_least(32, size)
        self.features = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(3, stem, 7, 2, 3, bias=False),
                norm0=nn.BatchNorm2d(stem),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(3, 2, 1),
            )
        )
        channels = stem
        for number, depth in enumerate(layers, start=1):
            self.features.add_module(f"denseblock{number}", DenseBlock(channels, depth, growth))
            channels += depth * growth
            if number < len(layers):
                self.features.add_module(f"transition{number}", transition(channels, channels // 2))
                channels //= 2
        self.features.add_module(f"norm{len(layers) + 1}", nn.BatchNorm2d(channels))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(x), 1))
        return logits

    @staticmethod
    def respell(key: str) -> str:
        """The name of a parameter whose checkpoint calls it `key`.

        torchvision's DenseNet files are older than the rule that a module's name has no dots. They say
        `denselayer1.norm.1.weight` where the module has `denselayer1.norm1.weight`.
        """
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)


def transition(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(inputs),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(inputs, outputs, 1, bias=False),
            pool=nn.AvgPool2d(2, 2),
        )
    )
