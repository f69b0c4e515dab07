"""ResNet (He et al. 2015). ResNeXt, Wide ResNet, pre-activation and stochastic depth are arguments to it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.layers import DropPath, at_least


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them; for 18 and 34 layers."""

    def __init__(self, inputs: int, planes: int, stride: int, drop: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop)
        self.downsample = projection(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.drop_path(self.bn2(self.conv2(x)))
        y: Tensor = self.relu(x + shortcut)
        return y


class Bottleneck(nn.Module):
    """1x1 down, 3x3 in `groups`, 1x1 up to 4 x planes, and the shortcut around them.

    `early` puts the stride on the first 1x1, as in 2015. On the 3x3, as is usual since then, less of the map is lost.
    """

    def __init__(
        self, inputs: int, planes: int, inner: int, stride: int, groups: int, early: bool, drop: float
    ) -> None:
        super().__init__()
        outputs = planes * 4
        first, second = (stride, 1) if early else (1, stride)
        self.conv1 = nn.Conv2d(inputs, inner, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop)
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.drop_path(self.bn3(self.conv3(x)))
        y: Tensor = self.relu(x + shortcut)
        return y


class PreActivation(nn.Module):
    """A bottleneck with normalization and ReLU before each convolution, so that the shortcut is a clean identity.

    He et al. 2016, figure 4(e). The names are timm's.
    """

    def __init__(
        self, inputs: int, planes: int, inner: int, stride: int, groups: int, early: bool, drop: float
    ) -> None:
        super().__init__()
        outputs = planes * 4
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, outputs, 1, stride, bias=False)))
        first, second = (stride, 1) if early else (1, stride)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, first, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, groups=groups, bias=False)
        self.norm3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.norm1(x))
        # If the shape changes, the shortcut starts from the activated map too.
        shortcut = self.downsample(active) if hasattr(self, "downsample") else x
        x = self.conv1(active)
        x = self.conv2(self.relu(self.norm2(x)))
        x = self.conv3(self.relu(self.norm3(x)))
        y: Tensor = self.drop_path(x) + shortcut
        return y


def projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The shortcut's 1x1 convolution if a block changes the shape (the paper's option B), else None: the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


BLOCKS: dict[str, type[Bottleneck | PreActivation]] = {"bottleneck": Bottleneck, "preactivation": PreActivation}


class ResNet(nn.Module):
    """Four stages of blocks after a 7x7 stem; from stage to stage the channels double and the maps halve.

    `groups` and `width` (channels of each group at 64 planes) make it a ResNeXt (32, 4) or a Wide ResNet (1, 128).
    `drop` is the probability of dropping the last block in training, falling linearly to 0 at the input (Huang et al.
    2016). Evaluation is that of the plain network.
    """

    def __init__(
        self,
        block: str,
        layers: tuple[int, int, int, int],
        groups: int = 1,
        width: int = 64,
        early_stride: bool = False,
        drop: float = 0.0,
        num_classes: int = 1000,
        size: int = 224,
    ) -> None:
        super().__init__()
        at_least(32, size)
        channels, count, stages = 64, 0, []
        for number, depth in enumerate(layers):
            planes = 64 * 2**number
            stage: list[nn.Module] = []
            for position in range(depth):
                count += 1
                stride = 2 if number > 0 and position == 0 else 1
                dropped = drop * count / sum(layers)
                if block == "basic":
                    stage.append(BasicBlock(channels, planes, stride, dropped))
                    channels = planes
                else:
                    inner = planes * width // 64 * groups
                    stage.append(BLOCKS[block](channels, planes, inner, stride, groups, early_stride, dropped))
                    channels = planes * 4
            stages.append(nn.Sequential(*stage))

        stem, pool = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.preactivation = block == "preactivation"
        if self.preactivation:  # timm's names
            self.stem = nn.Sequential(OrderedDict(conv=stem, pool=pool))
            self.stages = nn.Sequential(*(nn.Sequential(OrderedDict(blocks=stage)) for stage in stages))
            self.norm = nn.BatchNorm2d(channels)
            self.head = nn.Sequential(OrderedDict(fc=nn.Conv2d(channels, num_classes, 1)))
        else:  # torchvision's
            self.conv1, self.bn1, self.maxpool = stem, nn.BatchNorm2d(64), pool
            self.layer1, self.layer2, self.layer3, self.layer4 = stages
            self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.preactivation:
            x = self.relu(self.norm(self.stages(self.stem(x))))
            x = self.head(self.avgpool(x))
            return torch.flatten(x, 1)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits
