"""What a network is: one row of SPECS per variant, one file per lineage.

This module imports no torch, so that listing and serving need none; `build` does, when it is called.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.console import Usage
from models.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Published:
    """What the authors reported, in percent, on the 50,000 ILSVRC 2012 validation images unless `protocol` says else."""

    top1_error: float | None
    top5_error: float | None
    protocol: str  # "1 crop", "10 crops", "7 networks, 144 crops", ...
    source: str  # paper and table


@dataclass(frozen=True)
class Checkpoint:
    """Published weights: where they are, what proves them, and what they score with the row's preprocessing.

    A `url` without a scheme names a file that lies in this package. `sha256` holds the leading hex digits that the
    publisher states; None where none are stated, so that only the hash seen at download can be recorded.
    """

    url: str
    sha256: str | None
    license: str
    top1: float | None = None  # percent, one crop
    top5: float | None = None


@dataclass(frozen=True)
class Spec:
    """One network. `params` and `macs` (multiply-accumulates of one image) are what `build` is checked by."""

    name: str
    network: str  # "module.Class" inside this package
    arguments: dict[str, Any]
    params: int  # all in the state dict's parameters, training-only parts included
    macs: int
    year: int
    paper: str
    published: Published | None = None  # one network
    checkpoint: Checkpoint | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    classes: int = 1000
    training_only: int = 0  # of `params`: auxiliary heads, which neither evaluation nor export runs
    entry: Published | None = None  # what was entered in ILSVRC: as a rule several networks, averaged
    note: str = ""  # what differs from the paper, and what the count is matched against

    def __post_init__(self) -> None:
        if self.params <= 0 or self.macs <= 0 or self.classes <= 0:
            raise ValueError(f"{self.name}: params, macs and classes must be positive")
        if self.network.count(".") != 1:
            raise ValueError(f"{self.name}: network {self.network!r} is not 'module.Class'")

    @property
    def family(self) -> str:
        return self.network.split(".")[0]


def _torchvision(file: str, top1: float | None = None, top5: float | None = None) -> Checkpoint:
    """torchvision's checkpoint; the hex digits that end the file's name begin its sha256."""
    return Checkpoint(
        f"https://download.pytorch.org/models/{file}.pth", file.rsplit("-", 1)[1], "BSD-3-Clause", top1, top5
    )


_ALEXNET_OWT = "Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv 1404.5997"
_GOOGLENET = "Szegedy et al., Going deeper with convolutions, arXiv 1409.4842"
_LENET = "LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 1998"
_RESNET = "He et al., Deep residual learning for image recognition, arXiv 1512.03385"
_RESNEXT = "Xie et al., Aggregated residual transformations for deep neural networks, arXiv 1611.05431"
_SQUEEZENET = "Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, arXiv 1602.07360"
_VGG = "Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, arXiv 1409.1556"

_HALF = (0.5, 0.5, 0.5)

SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("lenet5", "lenet.LeNet5", {}, 61_706, 416_520, 1998, _LENET,
             checkpoint=Checkpoint("lenet5.safetensors", None, "Apache-2.0"),
             preprocess=Preprocess(32, 32, mean=(0.1307,), std=(0.3081,), mode="L"), classes=10),
        Spec("alexnet", "alexnet.AlexNet", {"filters": (64, 192, 384, 256, 256), "first": (11, 4, 2)},
             61_100_840, 714_188_480, 2014, _ALEXNET_OWT,
             checkpoint=_torchvision("alexnet-owt-7be5be79", 56.52, 79.07)),
        Spec("vgg16", "vgg.VGG", {"depths": (2, 2, 3, 3, 3)}, 138_357_544, 15_470_264_320, 2014, _VGG,
             checkpoint=_torchvision("vgg16-397923af", 71.59, 90.38)),
        Spec("googlenet", "googlenet.GoogLeNet", {"norm": True, "kernel": 3, "last_pool": 2, "dropout": 0.2},
             13_004_888, 1_498_376_192, 2014, _GOOGLENET,
             checkpoint=_torchvision("googlenet-1378be20", 69.78, 89.53),
             preprocess=Preprocess(mean=_HALF, std=_HALF), training_only=6_379_984),
        Spec("resnet50", "resnet.ResNet", {"block": "bottleneck", "layers": (3, 4, 6, 3)},
             25_557_032, 4_089_184_256, 2015, _RESNET,
             checkpoint=_torchvision("resnet50-0676ba61", 76.13, 92.86)),
        Spec("resnext50_32x4d", "resnet.ResNet", {"block": "bottleneck", "layers": (3, 4, 6, 3), "groups": 32, "width": 4},
             25_028_904, 4_230_479_872, 2016, _RESNEXT,
             checkpoint=_torchvision("resnext50_32x4d-7cdf4587", 77.62, 93.70)),
        Spec("squeezenet1_1", "squeezenet.SqueezeNet", {"first": (64, 3), "pools": (2, 4, 6)},
             1_235_496, 349_151_936, 2016, _SQUEEZENET,
             checkpoint=_torchvision("squeezenet1_1-b8a52dc0", 58.18, 80.62)),
    )
}

SETS: dict[str, tuple[str, ...]] = {
    "five": ("alexnet", "vgg16", "googlenet", "resnet50", "resnext50_32x4d"),  # the lecture's case studies
    "winners": ("alexnet_2012", "zfnet", "vgg19", "googlenet_2014", "resnet152"),  # the lecture's results table
    "all": tuple(SPECS),
}


def spec(name: str) -> Spec:
    """The row called `name`; an unknown name raises `Usage` with the closest ones."""
    if name not in SPECS:
        raise Usage(f"no network is called {name!r}; {_closest(name, SPECS)}")
    return SPECS[name]


def expand(names: Iterable[str], set_name: str | None = None) -> list[str]:
    """The networks that `names` and the set `set_name` name, each once, in the order asked for.

    Raises `Usage` for an unknown network or set, and where neither is given.
    """
    asked = list(names)
    if set_name is not None:
        if set_name not in SETS:
            raise Usage(f"no set is called {set_name!r}; the sets are {', '.join(SETS)}")
        asked += SETS[set_name]
    if not asked:
        raise Usage(f"name a network or a set: --set {' | '.join(SETS)}")
    return [spec(name).name for name in dict.fromkeys(asked)]


def build(name: str, classes: int | None = None, size: int | None = None) -> nn.Module:
    """A fresh network in eval mode, float32, with torch's default initialisation, for [n, channels, size, size].

    `classes` and `size` default to the row's. Raises `Usage` where the design has no room for the size.
    """
    row = spec(name)
    if classes is not None and classes < 1:
        raise Usage(f"{name}: {classes} classes? A classifier needs at least one")
    module, class_name = row.network.split(".")
    network = getattr(importlib.import_module(f"models.{module}"), class_name)
    try:
        made: nn.Module = network(
            **row.arguments, num_classes=classes or row.classes, size=size or row.preprocess.crop
        )
    except ValueError as error:
        if type(error).__name__ != "SizeError":  # models.layers imports torch, so this module cannot name the class
            raise
        raise Usage(f"{name}: {error}; its own input size is {row.preprocess.crop}") from error
    return made.eval()


def _closest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else "`python -m models list` shows all"
