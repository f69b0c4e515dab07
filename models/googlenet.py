"""GoogLeNet (Szegedy et al. 2014): nine Inception modules, 22 layers deep, no large fully connected layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.branches import MAX, Branches, Mixed, Trained, same
from models.layers import ConvNorm, LocalResponseNorm, at_least


class AuxiliaryHead(nn.Module):
    """A classifier on the middle of the network, which brings gradients there; used in training only.

    The paper averages 14 x 14 maps to 4 x 4 by 5x5 windows at stride 3. torchvision divides any map into 4 x 4 cells.
    """

    def __init__(self, inputs: int, num_classes: int, norm: bool) -> None:
        super().__init__()
        self.as_published = not norm
        self.conv = ConvNorm(inputs, 128, 1, norm=norm)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 5, 3) if self.as_published and x.shape[-1] == 14 else F.adaptive_avg_pool2d(x, 4)
        x = torch.flatten(self.conv(x), 1)
        logits: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x), inplace=True)))
        return logits


class GoogLeNet(nn.Module):
    """Table 1 of the paper, module by module.

    `norm` False is the network of 2014: no batch normalization, local response normalization around the stem, `kernel`
    5 and `last_pool` 3. torchvision's checkpoint was trained with a kernel of 3 and a last pool of 2. In training the
    result is `Trained`; the heads `aux1` and `aux2` run only then.
    """

    def __init__(
        self, norm: bool, kernel: int, last_pool: int, dropout: float, num_classes: int = 1000, size: int = 224
    ) -> None:
        super().__init__()
        at_least(32, size)

        def module(inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> Mixed:
            # 1x1 convolutions shrink what the costly filters read.
            branches: Branches = {
                "branch1": [same(one)],
                "branch2": [same(three[0]), same(three[1], 3)],
                "branch3": [same(five[0]), same(five[1], kernel)],
                "branch4": [MAX, same(pool)],
            }
            return Mixed(inputs, branches, norm=norm)

        def local_norm() -> nn.Module:
            # The paper draws this layer without constants, so AlexNet's are used.
            return nn.Identity() if norm else LocalResponseNorm()

        self.conv1 = ConvNorm(3, 64, 7, 2, 3, norm)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = local_norm()
        self.conv2 = ConvNorm(64, 64, 1, norm=norm)
        self.conv3 = ConvNorm(64, 192, 3, padding=1, norm=norm)
        self.norm2 = local_norm()
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        # fmt: off
        #                         in   1x1  bottleneck, 3x3  and 5x5    pool
        self.inception3a = module(192,  64, ( 96, 128), (16,  32),  32)
        self.inception3b = module(256, 128, (128, 192), (32,  96),  64)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = module(480, 192, ( 96, 208), (16,  48),  64)
        self.inception4b = module(512, 160, (112, 224), (24,  64),  64)
        self.inception4c = module(512, 128, (128, 256), (24,  64),  64)
        self.inception4d = module(512, 112, (144, 288), (32,  64),  64)
        self.inception4e = module(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(last_pool, 2, ceil_mode=True)
        self.inception5a = module(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = module(832, 384, (192, 384), (48, 128), 128)
        # fmt: on
        self.aux1 = AuxiliaryHead(512, num_classes, norm)
        self.aux2 = AuxiliaryHead(528, num_classes, norm)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor | Trained:
        x = self.norm1(self.maxpool1(self.conv1(x)))
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        early = x = self.inception4a(x)
        late = x = self.inception4d(self.inception4c(self.inception4b(x)))
        x = self.maxpool4(self.inception4e(x))
        x = self.avgpool(self.inception5b(self.inception5a(x)))
        x = self.fc(self.dropout(torch.flatten(x, 1)))
        return Trained(x, (self.aux1(early), self.aux2(late))) if self.training else x
