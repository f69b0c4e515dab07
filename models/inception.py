"""Inception after GoogLeNet: v2 (batch normalization), v3 (factorised filters), v4, and Inception-ResNet-v2.

The names are those of the published checkpoints: torchvision's for v3, timm's for v4 and Inception-ResNet-v2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.branches import AVERAGE, HALVE, MAX, PADDED_AVERAGE, Branches, Mixed, Pool, Trained, same, valid
from models.layers import ConvNorm, at_least


class InceptionV2(nn.Module):
    """BN-Inception (Ioffe and Szegedy 2015, figure 5): two 3x3 filters in place of each 5x5, normalization throughout.

    The stem's 7x7 convolution is an ordinary one; the paper made it separable, with a depth multiplier of 8.
    """

    def __init__(self, num_classes: int = 1000, size: int = 224) -> None:
        super().__init__()
        at_least(32, size)
        self.conv1 = ConvNorm(3, 64, 7, 2, 3)
        self.conv2 = ConvNorm(64, 64, 1)
        self.conv3 = ConvNorm(64, 192, 3, padding=1)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = 192
        modules = []
        # fmt: off
        for one, three, double, pool in (
            # 1x1  bottleneck, 3x3  bottleneck, 3x3 twice  after the pool
            ( 64, ( 64,  64), ( 64,  96), (AVERAGE,  32)),   # 3a
            ( 64, ( 64,  96), ( 64,  96), (AVERAGE,  64)),   # 3b
            (  0, (128, 160), ( 64,  96), (None,      0)),   # 3c, stride 2
            (224, ( 64,  96), ( 96, 128), (AVERAGE, 128)),   # 4a
            (192, ( 96, 128), ( 96, 128), (AVERAGE, 128)),   # 4b
            (160, (128, 160), (128, 160), (AVERAGE,  96)),   # 4c
            ( 96, (128, 192), (160, 192), (AVERAGE,  96)),   # 4d
            (  0, (128, 192), (192, 256), (None,      0)),   # 4e, stride 2
            (352, (192, 320), (160, 224), (AVERAGE, 128)),   # 5a
            (352, (192, 320), (192, 224), (MAX,     128)),   # 5b
        ):
            # fmt: on
            stride = 1 if one else 2
            first: Branches = {"branch1x1": [same(one)]} if one else {}
            branches: Branches = {
                **first,
                "branch3x3": [same(three[0]), same(three[1], 3, stride)],
                "branch3x3dbl": [same(double[0]), same(double[1], 3), same(double[1], 3, stride)],
                "branch_pool": [Pool("max", 2, 1)] if pool[0] is None else [pool[0], same(pool[1])],
            }
            modules.append(Mixed(channels, branches, flat=True))
            channels = modules[-1].outputs
        self.mixed = nn.Sequential(*modules)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.maxpool(self.conv3(self.conv2(x)))
        x = self.avgpool(self.mixed(x))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


class AuxiliaryHead(nn.Module):
    """The classifier on the 17 x 17 maps; used in training only, where inputs must be large enough to give them."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = ConvNorm(inputs, 128, 1)
        self.conv1 = ConvNorm(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


class InceptionV3(nn.Module):
    """Szegedy et al. 2015 (arXiv 1512.00567): 7x7 filters as 1x7 and 7x1, 3x3 as 1x3 beside 3x1.

    torchvision's port counts the border in its average pools, unlike the original. In training the result is `Trained`.
    """

    def __init__(self, num_classes: int = 1000, size: int = 299) -> None:
        super().__init__()
        at_least(75, size)
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.maxpool = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = Mixed(192, v3_35(32), flat=True)
        self.Mixed_5c = Mixed(256, v3_35(64), flat=True)
        self.Mixed_5d = Mixed(288, v3_35(64), flat=True)
        self.Mixed_6a = Mixed(288, V3_TO_17, flat=True)
        self.Mixed_6b = Mixed(768, v3_17(128), flat=True)
        self.Mixed_6c = Mixed(768, v3_17(160), flat=True)
        self.Mixed_6d = Mixed(768, v3_17(160), flat=True)
        self.Mixed_6e = Mixed(768, v3_17(192), flat=True)
        self.AuxLogits = AuxiliaryHead(768, num_classes)
        self.Mixed_7a = Mixed(768, V3_TO_8, flat=True)
        self.Mixed_7b = Mixed(1280, V3_8, flat=True)
        self.Mixed_7c = Mixed(2048, V3_8, flat=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor | Trained:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        middle = x
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        x = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return Trained(x, (self.AuxLogits(middle),)) if self.training else x


def v3_35(pool: int) -> Branches:
    """A module on 35 x 35 maps (figure 5)."""
    return {
        "branch1x1": [same(64)],
        "branch5x5": [same(48), same(64, 5)],
        "branch3x3dbl": [same(64), same(96, 3), same(96, 3)],
        "branch_pool": [PADDED_AVERAGE, same(pool)],
    }


V3_TO_17: Branches = {
    "branch3x3": [valid(384, 3, 2)],
    "branch3x3dbl": [same(64), same(96, 3), valid(96, 3, 2)],
    "branch_pool": [HALVE],
}


def v3_17(inner: int) -> Branches:
    """A module on 17 x 17 maps (figure 6, n = 7)."""
    a, b = (1, 7), (7, 1)
    return {
        "branch1x1": [same(192)],
        "branch7x7": [same(inner), same(inner, a), same(192, b)],
        "branch7x7dbl": [same(inner), same(inner, b), same(inner, a), same(inner, b), same(192, a)],
        "branch_pool": [PADDED_AVERAGE, same(192)],
    }


V3_TO_8: Branches = {
    "branch3x3": [same(192), valid(320, 3, 2)],
    "branch7x7x3": [same(192), same(192, (1, 7)), same(192, (7, 1)), valid(192, 3, 2)],
    "branch_pool": [HALVE],
}

# The modules on 8 x 8 maps (figure 7).
V3_8: Branches = {
    "branch1x1": [same(320)],
    "branch3x3": [same(384), [same(384, (1, 3)), same(384, (3, 1))]],
    "branch3x3dbl": [same(448), same(384, 3), [same(384, (1, 3)), same(384, (3, 1))]],
    "branch_pool": [PADDED_AVERAGE, same(192)],
}


class InceptionV4(nn.Module):
    """Szegedy et al. 2016 (arXiv 1602.07261), figure 9: a branched stem, then 4, 7 and 3 uniform modules."""

    def __init__(self, num_classes: int = 1000, size: int = 299) -> None:
        super().__init__()
        at_least(75, size)
        self.features = nn.Sequential(
            *(ConvNorm(3, 32, 3, 2), ConvNorm(32, 32, 3), ConvNorm(32, 64, 3, padding=1)),
            *(Mixed(64, V4_STEM_1), Mixed(160, V4_STEM_2), Mixed(192, V4_STEM_3)),
            *(Mixed(384, V4_35) for _ in range(4)),
            Mixed(384, V4_TO_17),
            *(Mixed(1024, V4_17) for _ in range(7)),
            Mixed(1024, V4_TO_8),
            *(Mixed(1536, V4_8) for _ in range(3)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        # The paper drops 20 % here in training; timm's port has no such layer.
        self.last_linear = nn.Linear(1536, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        logits: Tensor = self.last_linear(torch.flatten(x, 1))
        return logits


V4_STEM_1: Branches = {"maxpool": [HALVE], "conv": [valid(96, 3, 2)]}
V4_STEM_2: Branches = {
    "branch0": [same(64), valid(96, 3)],
    "branch1": [same(64), same(64, (1, 7)), same(64, (7, 1)), valid(96, 3)],
}
V4_STEM_3: Branches = {"conv": [valid(192, 3, 2)], "maxpool": [HALVE]}
V4_35: Branches = {
    "branch0": [same(96)],
    "branch1": [same(64), same(96, 3)],
    "branch2": [same(64), same(96, 3), same(96, 3)],
    "branch3": [AVERAGE, same(96)],
}
V4_TO_17: Branches = {
    "branch0": [valid(384, 3, 2)],
    "branch1": [same(192), same(224, 3), valid(256, 3, 2)],
    "branch2": [HALVE],
}
V4_17: Branches = {
    "branch0": [same(384)],
    "branch1": [same(192), same(224, (1, 7)), same(256, (7, 1))],
    "branch2": [same(192), same(192, (7, 1)), same(224, (1, 7)), same(224, (7, 1)), same(256, (1, 7))],
    "branch3": [AVERAGE, same(128)],
}
V4_TO_8: Branches = {
    "branch0": [same(192), valid(192, 3, 2)],
    "branch1": [same(256), same(256, (1, 7)), same(320, (7, 1)), valid(320, 3, 2)],
    "branch2": [HALVE],
}
V4_8: Branches = {
    "branch0": [same(256)],
    "branch1": [same(384), [same(256, (1, 3)), same(256, (3, 1))]],
    "branch2": [same(384), same(448, (3, 1)), same(512, (1, 3)), [same(256, (1, 3)), same(256, (3, 1))]],
    "branch3": [AVERAGE, same(256)],
}


class Residual(Mixed):
    """Branches, a 1x1 convolution back to the width of the input, and the shortcut: x + scale * branches(x).

    Without the scale, networks with more than a thousand filters die early in training (section 3.3).
    """

    def __init__(self, inputs: int, branches: Branches, scale: float, relu: bool = True) -> None:
        super().__init__(inputs, branches)
        self.conv2d = nn.Conv2d(self.outputs, inputs, 1)
        self.scale, self.relu = scale, relu

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.conv2d(super().forward(x))
        return F.relu(x, inplace=True) if self.relu else x


class InceptionResNetV2(nn.Module):
    """Szegedy et al. 2016 (arXiv 1602.07261), figure 15, with the counts of the published TensorFlow checkpoint.

    That is: v3's stem, and 10, 20 and 10 residual modules.
    """

    def __init__(self, num_classes: int = 1000, size: int = 299) -> None:
        super().__init__()
        at_least(75, size)
        self.conv2d_1a = ConvNorm(3, 32, 3, 2)
        self.conv2d_2a = ConvNorm(32, 32, 3)
        self.conv2d_2b = ConvNorm(32, 64, 3, padding=1)
        self.maxpool = nn.MaxPool2d(3, 2)
        self.conv2d_3b = ConvNorm(64, 80, 1)
        self.conv2d_4a = ConvNorm(80, 192, 3)
        self.mixed_5b = Mixed(192, IR_5B)
        self.repeat = nn.Sequential(*(Residual(320, IR_35, 0.17) for _ in range(10)))
        self.mixed_6a = Mixed(320, IR_TO_17)
        self.repeat_1 = nn.Sequential(*(Residual(1088, IR_17, 0.10) for _ in range(20)))
        self.mixed_7a = Mixed(1088, IR_TO_8)
        self.repeat_2 = nn.Sequential(*(Residual(2080, IR_8, 0.20) for _ in range(9)))
        self.block8 = Residual(2080, IR_8, 1.0, relu=False)
        self.conv2d_7b = ConvNorm(2080, 1536, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classif = nn.Linear(1536, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4a(self.conv2d_3b(self.maxpool(x)))
        x = self.repeat(self.mixed_5b(self.maxpool(x)))
        x = self.repeat_1(self.mixed_6a(x))
        x = self.block8(self.repeat_2(self.mixed_7a(x)))
        x = self.avgpool(self.conv2d_7b(x))
        logits: Tensor = self.classif(torch.flatten(x, 1))
        return logits


IR_5B: Branches = {
    "branch0": [same(96)],
    "branch1": [same(48), same(64, 5)],
    "branch2": [same(64), same(96, 3), same(96, 3)],
    "branch3": [AVERAGE, same(64)],
}
IR_35: Branches = {
    "branch0": [same(32)],
    "branch1": [same(32), same(32, 3)],
    "branch2": [same(32), same(48, 3), same(64, 3)],
}
IR_TO_17: Branches = {
    "branch0": [valid(384, 3, 2)],
    "branch1": [same(256), same(256, 3), valid(384, 3, 2)],
    "branch2": [HALVE],
}
IR_17: Branches = {"branch0": [same(192)], "branch1": [same(128), same(160, (1, 7)), same(192, (7, 1))]}
IR_TO_8: Branches = {
    "branch0": [same(256), valid(384, 3, 2)],
    "branch1": [same(256), valid(288, 3, 2)],
    "branch2": [same(256), same(288, 3), valid(320, 3, 2)],
    "branch3": [HALVE],
}
IR_8: Branches = {"branch0": [same(192)], "branch1": [same(192), same(224, (1, 3)), same(256, (3, 1))]}
