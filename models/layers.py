"""Layers that several lineages share, and the arithmetic of map sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.console import Usage


class LocalResponseNorm(nn.Module):
    """b = a / (k + alpha * sum of a^2 over `size` neighbouring channels) ** beta.

    Krizhevsky et al. 2012, section 3.3, with its constants. torch, Caffe and ONNX put alpha / size in front of the
    sum, so they get alpha * size; `alpha` here is the published one. It is a module of its own, so that an exporter can
    replace it by what suits the engine.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, self.size, self.alpha * self.size, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class ConvNorm(nn.Module):
    """Convolution, batch normalization (without `norm`: a bias) and ReLU, under the names `conv` and `bn`.

    Every Inception checkpoint was trained with eps 0.001.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if hasattr(self, "bn"):
            x = self.bn(x)
        return F.relu(x, inplace=True)


class DropPath(nn.Module):
    """Drops the whole branch for a random part of the batch, in training only, and scales the rest up."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        return x * torch.empty(x.shape[0], 1, 1, 1, device=x.device).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"


def side(layers: Iterable[nn.Module], size: int) -> int:
    """Height of the map that a chain of convolutions and pools makes from an input `size` high."""
    for layer in layers:
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            continue  # other layers keep the size
        kernel, stride, padding = (
            int(v[0]) if isinstance(v, tuple) else int(v) for v in (layer.kernel_size, layer.stride, layer.padding)
        )
        steps = (size + 2 * padding - kernel) / stride
        size = (math.ceil if getattr(layer, "ceil_mode", False) else math.floor)(steps) + 1
    return size


def pool_to(cells: int, layers: Iterable[nn.Module], size: int) -> nn.Module:
    """The pool that brings the maps of `layers` to the `cells` x `cells` that a fully connected layer was trained on.

    Raises `Usage` for an uneven division: the engines have no adaptive pooling over uneven windows.
    """
    height = side(layers, size)
    if height < cells or height % cells:
        raise Usage(
            f"the first fully connected layer reads {cells} x {cells} maps (or a whole multiple, averaged down), "
            f"but an input of {size} gives {height} x {height}"
        )
    return nn.Identity() if height == cells else nn.AvgPool2d(height // cells)


def at_least(smallest: int, size: int) -> None:
    """Refuse an input that the strides would shrink to nothing."""
    if size < smallest:
        raise Usage(f"its strides need an input of at least {smallest}, not {size}")
