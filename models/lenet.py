"""LeNet-5 (LeCun et al. 1998), in the form that is taught today."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.console import Usage


class LeNet5(nn.Module):
    """CONV-POOL-CONV-POOL, then three fully connected layers: 5x5 stride-1 filters, 2x2 stride-2 pools.

    Input is [n, 1, 32, 32]. The network of 1998 had tanh units, averaging subsampling layers with a trained gain and
    bias, a sparse table of connections from 6 to 16 maps, and radial basis functions as output. This one has ReLU, max
    pooling, full connections and a linear output. The last convolution, C5, covers its whole 5x5 input, so it is the
    fully connected layer of 120 here.
    """

    def __init__(self, num_classes: int = 10, size: int = 32) -> None:
        super().__init__()
        if size != 32:
            raise Usage(f"the first fully connected layer reads 5 x 5 maps: the input must be 32, not {size}")
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 6, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(16 * 5 * 5, 120), nn.ReLU(inplace=True)),
            *(nn.Linear(120, 84), nn.ReLU(inplace=True)),
            nn.Linear(84, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits
