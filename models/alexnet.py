"""AlexNet (Krizhevsky et al. 2012), its one-tower form that torchvision ships, and ZFNet (Zeiler and Fergus 2013)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import LocalResponseNorm, pool_to


class AlexNet(nn.Module):
    """Five convolutions, three overlapping 3x3 stride-2 pools, three fully connected layers.

    `first` and `second` are (kernel, stride, padding) of the first two convolutions. `groups` 2 gives the two towers of
    2012: convolutions 2, 4 and 5 read only the half on their own GPU. `ceil` rounds the output size of the pools up,
    which gives the 55 x 55 and 13 x 13 maps of ZFNet's figure 3.
    """

    def __init__(
        self,
        filters: tuple[int, int, int, int, int],
        first: tuple[int, int, int],
        second: tuple[int, int, int] = (5, 1, 2),
        groups: int = 1,
        lrn: bool = False,
        ceil: bool = False,
        num_classes: int = 1000,
        size: int = 224,
    ) -> None:
        super().__init__()
        a, b, c, d, e = filters

        def pool() -> list[nn.Module]:
            # Normalization comes between ReLU and pool, as in section 3.5 of the paper. Caffe's reference model and
            # many later descriptions exchange normalization and pool.
            return [*([LocalResponseNorm()] if lrn else []), nn.MaxPool2d(3, 2, ceil_mode=ceil)]

        def relu() -> nn.Module:
            return nn.ReLU(inplace=True)

        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, *first), relu(), *pool()),
            *(nn.Conv2d(a, b, *second, groups=groups), relu(), *pool()),
            *(nn.Conv2d(b, c, 3, padding=1), relu()),
            *(nn.Conv2d(c, d, 3, padding=1, groups=groups), relu()),
            *(nn.Conv2d(d, e, 3, padding=1, groups=groups), relu(), nn.MaxPool2d(3, 2, ceil_mode=ceil)),
        )
        self.avgpool = pool_to(6, self.features, size)
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(e * 6 * 6, 4096), relu()),
            *(nn.Dropout(), nn.Linear(4096, 4096), relu()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits
