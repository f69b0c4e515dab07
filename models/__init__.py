"""What a network is: one row of SPECS for each variant, one file for each lineage.

This module does not import torch, because listing and serving do not need it. `build` imports it when it is called.
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
    """The authors' error in percent, on the 50,000 ILSVRC 2012 validation images unless `protocol` says otherwise."""

    top1_error: float | None
    top5_error: float | None
    protocol: str  # "1 crop", "10 crops", "7 networks, 144 crops", ...
    source: str  # paper and table


@dataclass(frozen=True)
class Checkpoint:
    """Published weights: their address, their sha256, and their accuracy with the row's preprocessing.

    A `url` without a scheme names a file in this package. `sha256` holds the leading hex digits that the publisher
    states. It is None if none are stated; then only the hash seen at download can be recorded.
    """

    url: str
    sha256: str | None
    license: str
    top1: float | None = None  # percent, one crop
    top5: float | None = None


@dataclass(frozen=True)
class Spec:
    """One network. The tests check `build` by `params` and `macs` (multiply-accumulates of one image)."""

    name: str
    network: str  # "module.Class" inside this package
    params: int  # all in the state dict, those used only in training included
    macs: int
    year: int
    paper: str
    arguments: dict[str, Any] = field(default_factory=dict)  # of the class
    published: Published | None = None  # by one network
    checkpoint: Checkpoint | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    classes: int = 1000
    training_only: int = 0  # the part of `params` in auxiliary heads, which evaluation and export never run
    entry: Published | None = None  # what was entered in ILSVRC: usually several networks, averaged
    note: str = ""  # what differs from the paper, and where the count comes from

    def __post_init__(self) -> None:
        if self.params <= 0 or self.macs <= 0 or self.classes <= 0:
            raise ValueError(f"{self.name}: params, macs and classes must be positive")
        if self.network.count(".") != 1:
            raise ValueError(f"{self.name}: network {self.network!r} is not 'module.Class'")

    @property
    def family(self) -> str:
        return self.network.split(".")[0]


def _torchvision(file: str, top1: float, top5: float) -> Checkpoint:
    """torchvision's checkpoint; the hex digits that end the file's name begin its sha256."""
    url = f"https://download.pytorch.org/models/{file}.pth"
    return Checkpoint(url, file.rsplit("-", 1)[1], "BSD-3-Clause", top1, top5)


def _hub(name: str, top1: float, top5: float, sha256: str) -> Checkpoint:
    """timm's checkpoint on the model hub; `sha256` is the one its file page states."""
    url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
    return Checkpoint(url, sha256, "Apache-2.0", top1, top5)


def _timm(release: str, file: str) -> Checkpoint:
    """timm's checkpoint of a release, named like torchvision's. Its published accuracy is for 288 x 288 pixels."""
    url = f"https://github.com/huggingface/pytorch-image-models/releases/download/{release}/{file}.pth"
    return Checkpoint(url, file.rsplit("-", 1)[1], "Apache-2.0")


_LENET = "LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 1998"
_ALEXNET = "Krizhevsky et al., ImageNet classification with deep convolutional neural networks, NIPS 2012"
_ALEXNET_OWT = "Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv 1404.5997"
_ZFNET = "Zeiler and Fergus, Visualizing and understanding convolutional networks, arXiv 1311.2901"
_NIN = "Lin et al., Network in network, arXiv 1312.4400"
_VGG = "Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, arXiv 1409.1556"
_GOOGLENET = "Szegedy et al., Going deeper with convolutions, arXiv 1409.4842"
_BN = "Ioffe and Szegedy, Batch normalization: accelerating deep network training, arXiv 1502.03167"
_INCEPTION_V3 = "Szegedy et al., Rethinking the Inception architecture for computer vision, arXiv 1512.00567"
_INCEPTION_V4 = "Szegedy et al., Inception-v4, Inception-ResNet and impact of residual connections, arXiv 1602.07261"
_RESNET = "He et al., Deep residual learning for image recognition, arXiv 1512.03385"
_RESNET_V2 = "He et al., Identity mappings in deep residual networks, arXiv 1603.05027"
_STOCHASTIC_DEPTH = "Huang et al., Deep networks with stochastic depth, arXiv 1603.09382"
_WIDE_RESNET = "Zagoruyko and Komodakis, Wide residual networks, arXiv 1605.07146"
_RESNEXT = "Xie et al., Aggregated residual transformations for deep neural networks, arXiv 1611.05431"
_DENSENET = "Huang et al., Densely connected convolutional networks, arXiv 1608.06993"
_FRACTALNET = "Larsson et al., FractalNet: ultra-deep neural networks without residuals, arXiv 1605.07648"
_SQUEEZENET = "Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, arXiv 1602.07360"

# How the authors measured. The source is a table of the row's own paper, unless another one is named.
_ONE, _TEN, _DENSE = "1 crop", "10 crops", "whole image, 1 scale"
_AUTHORS = "github.com/KaimingHe/deep-residual-networks, 1-crop table"
_CLEAN = "1 crop, validation images without the blacklisted"

# mean = std = 0.5 gives Inception's range of [-1, 1]. torchvision's googlenet and inception_v3 reach it in two steps:
# ImageNet's mean and std, then a `transform_input` inside the network that turns them into these.
_HALF = (0.5, 0.5, 0.5)
_INCEPTION_224 = Preprocess(mean=_HALF, std=_HALF)
_INCEPTION_299 = Preprocess(342, 299, mean=_HALF, std=_HALF)
# timm states the crop as a fraction of the picture: the short side is the crop divided by it, rounded down.
_TIMM_875 = Preprocess(341, 299, "bicubic", _HALF, _HALF)  # 299 / 0.875
_TIMM_8975 = Preprocess(333, 299, "bicubic", _HALF, _HALF)  # 299 / 0.8975
_TIMM_95 = Preprocess(235, 224, "bicubic", _HALF, _HALF)  # 224 / 0.95

# One row for each variant. If torchvision has two checkpoints, the row names the first, V1, because it follows the
# published training, which the lecture compares. V2 is the same network trained longer, with a later recipe.
# fmt: off
_ROWS = (
    #    name, network                                           parameters            MACs  year  paper
    Spec("lenet5", "lenet.LeNet5",                                   61_706,        416_520, 1998, _LENET,
         published=Published(0.95, None, "10,000 test digits of MNIST", "figure 9"),
         checkpoint=Checkpoint("lenet5.safetensors", None, "Apache-2.0"),
         preprocess=Preprocess(32, 32, mean=(0.1307,), std=(0.3081,), mode="L"), classes=10,
         note="ReLU, max pooling, full connections and a linear output, where 1998 had tanh, trained subsampling, a "
              "sparse table and radial basis functions; 60 thousand parameters either way. Trained here, on MNIST."),

    Spec("alexnet", "alexnet.AlexNet",                           61_100_840,    714_188_480, 2014, _ALEXNET_OWT,
         {"filters": (64, 192, 384, 256, 256), "first": (11, 4, 2)},
         published=Published(42.33, None, _ONE, "table 1, one GPU, batch 128"),
         checkpoint=_torchvision("alexnet-owt-7be5be79", 56.52, 79.07),
         note="The one-tower network of 2014, which torchvision ships: fewer filters, no response normalization."),
    Spec("alexnet_2012", "alexnet.AlexNet",                      60_965_224,    724_406_816, 2012, _ALEXNET,
         {"filters": (96, 256, 384, 384, 256), "first": (11, 4, 0), "groups": 2, "lrn": True},
         published=Published(40.7, 18.2, _TEN, "table 2"), preprocess=Preprocess(256, 227),
         entry=Published(None, 15.3, "7 networks, 10 crops, test images", "table 2"),
         note="The paper says 224 pixels; its 55 x 55 maps need 227. The lecture's 16.4 is five of these networks, "
              "on test images."),
    Spec("zfnet", "alexnet.AlexNet",                            107_627_624,  2_476_704_896, 2013, _ZFNET,
         {"filters": (96, 256, 512, 1024, 512), "first": (7, 2, 1), "second": (5, 2, 0), "lrn": True, "ceil": True},
         published=Published(37.5, 16.0, _TEN, "table 2, row (b); 16.1 on test images"),
         entry=Published(None, 14.8, "6 networks, 10 crops, test images", "table 2"),
         note="The lecture's 11.7 is Clarifai's, which won ILSVRC 2013 with networks chosen by this paper's method; "
              "the published ZFNet scored 14.8 (six networks) and 16.1 (one). The paper states no parameter count: "
              "75.5 million of this one's lie between its 6 x 6 x 512 maps and the first 4096 units."),

    Spec("nin", "nin.NiN",                                        7_595_176,  1_100_188_800, 2013, _NIN,
         published=Published(40.64, None, _ONE, "Caffe model zoo, nin_imagenet; the paper has no ImageNet result")),

    Spec("vgg11", "vgg.VGG",                                    132_863_336,  7_609_090_048, 2014, _VGG,
         {"depths": (1, 1, 2, 2, 2)}, published=Published(29.6, 10.4, _DENSE, "table 3, A"),
         checkpoint=_torchvision("vgg11-8a719046", 69.02, 88.63)),
    Spec("vgg13", "vgg.VGG",                                    133_047_848, 11_308_466_176, 2014, _VGG,
         {"depths": (2, 2, 2, 2, 2)}, published=Published(28.7, 9.9, _DENSE, "table 3, B"),
         checkpoint=_torchvision("vgg13-19584684", 69.93, 89.25)),
    Spec("vgg16", "vgg.VGG",                                    138_357_544, 15_470_264_320, 2014, _VGG,
         {"depths": (2, 2, 3, 3, 3)}, published=Published(25.6, 8.1, _DENSE, "table 3, D"),
         checkpoint=_torchvision("vgg16-397923af", 71.59, 90.38),
         entry=Published(None, 7.3, "7 networks, test images", "table 6")),
    Spec("vgg19", "vgg.VGG",                                    143_667_240, 19_632_062_464, 2014, _VGG,
         {"depths": (2, 2, 4, 4, 4)}, published=Published(25.5, 8.0, _DENSE, "table 3, E"),
         checkpoint=_torchvision("vgg19-dcbb9e9d", 72.38, 90.88),
         entry=Published(None, 7.3, "7 networks, test images", "table 6")),
    Spec("vgg11_bn", "vgg.VGG",                                 132_868_840,  7_609_090_048, 2014, _VGG,
         {"depths": (1, 1, 2, 2, 2), "norm": True}, checkpoint=_torchvision("vgg11_bn-6002323d", 70.37, 89.81)),
    Spec("vgg13_bn", "vgg.VGG",                                 133_053_736, 11_308_466_176, 2014, _VGG,
         {"depths": (2, 2, 2, 2, 2), "norm": True}, checkpoint=_torchvision("vgg13_bn-abd245e5", 71.59, 90.37)),
    Spec("vgg16_bn", "vgg.VGG",                                 138_365_992, 15_470_264_320, 2014, _VGG,
         {"depths": (2, 2, 3, 3, 3), "norm": True}, checkpoint=_torchvision("vgg16_bn-6c64b313", 73.36, 91.52)),
    Spec("vgg19_bn", "vgg.VGG",                                 143_678_248, 19_632_062_464, 2014, _VGG,
         {"depths": (2, 2, 4, 4, 4), "norm": True}, checkpoint=_torchvision("vgg19_bn-c79401a0", 74.22, 91.84)),

    Spec("googlenet", "googlenet.GoogLeNet",                     13_004_888,  1_498_376_192, 2014, _GOOGLENET,
         {"norm": True, "kernel": 3, "last_pool": 2, "dropout": 0.2},
         published=Published(None, 10.07, _ONE, "table 3"),
         checkpoint=_torchvision("googlenet-1378be20", 69.78, 89.53), preprocess=_INCEPTION_224,
         training_only=6_379_984,
         note="torchvision's: batch normalization, and 3x3 filters where the paper has 5x5."),
    Spec("googlenet_2014", "googlenet.GoogLeNet",                13_378_280,  1_582_671_872, 2014, _GOOGLENET,
         {"norm": False, "kernel": 5, "last_pool": 3, "dropout": 0.4},
         published=Published(None, 10.07, _ONE, "table 3"), training_only=6_379_728,
         entry=Published(None, 6.67, "7 networks, 144 crops, test images", "tables 2 and 3"),
         note="7.0 million parameters run, and the two auxiliary heads hold the rest. The columns of the paper's "
              "table 1 sum to 6.8 million; the lecture says 5."),

    Spec("inception_v2", "inception.InceptionV2",                11_194_984,  2_018_851_840, 2015, _BN,
         published=Published(25.2, 7.8, _ONE, "arXiv 1512.00567, table 3"),
         note="Figure 5 of the paper gives 11.2 million; the 11.3 that is often quoted is a port with 128 filters "
              "instead of 96 after the pools of 4c and 4d."),
    Spec("inception_v3", "inception.InceptionV3",                27_161_264,  5_713_216_096, 2015, _INCEPTION_V3,
         published=Published(21.2, 5.6, _ONE, "table 3"),
         checkpoint=_torchvision("inception_v3_google-0cc3c7bd", 77.29, 93.45), preprocess=_INCEPTION_299,
         training_only=3_326_696),
    Spec("inception_v4", "inception.InceptionV4",                42_679_816, 12_253_974_624, 2016, _INCEPTION_V4,
         published=Published(20.0, 5.0, _CLEAN, "table 2"),
         checkpoint=_hub("inception_v4.tf_in1k", 80.16, 94.97,
                         "a756a086851c8d5a8de135ec15c76b90ea56cb5aef450e3299107e659e725bb1"),
         preprocess=_TIMM_875),
    Spec("inception_resnet_v2", "inception.InceptionResNetV2",   55_843_464, 13_155_794_016, 2016, _INCEPTION_V4,
         published=Published(19.9, 4.9, _CLEAN, "table 2"),
         checkpoint=_hub("inception_resnet_v2.tf_in1k", 80.46, 95.31,
                         "dbea26b13a5fc8351919fed6a94222c0577ce324b2765fd081a798f837ca9d72"),
         preprocess=_TIMM_8975),

    Spec("resnet18", "resnet.ResNet",                            11_689_512,  1_814_073_344, 2015, _RESNET,
         {"block": "basic", "layers": (2, 2, 2, 2)},
         published=Published(27.88, None, _TEN, "table 2, shortcuts without parameters"),
         checkpoint=_torchvision("resnet18-f37072fd", 69.76, 89.08)),
    Spec("resnet34", "resnet.ResNet",                            21_797_672,  3_663_761_408, 2015, _RESNET,
         {"block": "basic", "layers": (3, 4, 6, 3)}, published=Published(24.52, 7.46, _TEN, "table 3, B"),
         checkpoint=_torchvision("resnet34-b627a593", 73.31, 91.42)),
    Spec("resnet50", "resnet.ResNet",                            25_557_032,  4_089_184_256, 2015, _RESNET,
         {"block": "bottleneck", "layers": (3, 4, 6, 3)}, published=Published(24.7, 7.8, _ONE, _AUTHORS),
         checkpoint=_torchvision("resnet50-0676ba61", 76.13, 92.86)),
    Spec("resnet101", "resnet.ResNet",                           44_549_160,  7_801_405_440, 2015, _RESNET,
         {"block": "bottleneck", "layers": (3, 4, 23, 3)}, published=Published(23.6, 7.1, _ONE, _AUTHORS),
         checkpoint=_torchvision("resnet101-63fe2227", 77.37, 93.55)),
    Spec("resnet152", "resnet.ResNet",                           60_192_808, 11_513_626_624, 2015, _RESNET,
         {"block": "bottleneck", "layers": (3, 8, 36, 3)}, published=Published(23.0, 6.7, _ONE, _AUTHORS),
         checkpoint=_torchvision("resnet152-394f9c45", 78.31, 94.05),
         entry=Published(None, 3.57, "6 networks, several scales, test images", "table 5")),
    Spec("resnet50_2015", "resnet.ResNet",                       25_557_032,  3_857_973_248, 2015, _RESNET,
         {"block": "bottleneck", "layers": (3, 4, 6, 3), "early_stride": True},
         published=Published(24.7, 7.8, _ONE, _AUTHORS),
         note="The stride on the first 1x1 convolution of a block, as published; resnet50 has it on the 3x3."),
    Spec("resnet152_stochastic_depth", "resnet.ResNet",          60_192_808, 11_513_626_624, 2016, _STOCHASTIC_DEPTH,
         {"block": "bottleneck", "layers": (3, 8, 36, 3), "drop": 0.5},
         published=Published(21.98, None, _ONE, "table 1"),
         note="resnet152, but training drops whole blocks; the weights and their names are the same."),
    Spec("resnetv2_50", "resnet.ResNet",                         25_549_352,  4_089_184_256, 2016, _RESNET_V2,
         {"block": "preactivation", "layers": (3, 4, 6, 3)},
         checkpoint=_timm("v0.1-rsb-weights", "resnetv2_50_a1h-000cdf49"), preprocess=_TIMM_95),
    Spec("resnetv2_101", "resnet.ResNet",                        44_541_480,  7_801_405_440, 2016, _RESNET_V2,
         {"block": "preactivation", "layers": (3, 4, 23, 3)},
         checkpoint=_timm("v0.1-rsb-weights", "resnetv2_101_a1h-5d01f016"), preprocess=_TIMM_95),
    Spec("wide_resnet50_2", "resnet.ResNet",                     68_883_240, 11_398_021_120, 2016, _WIDE_RESNET,
         {"block": "bottleneck", "layers": (3, 4, 6, 3), "width": 128},
         published=Published(21.9, 6.03, _ONE, "table 8"),
         checkpoint=_torchvision("wide_resnet50_2-95faca4d", 78.47, 94.09)),
    Spec("wide_resnet101_2", "resnet.ResNet",                   126_886_696, 22_753_050_624, 2016, _WIDE_RESNET,
         {"block": "bottleneck", "layers": (3, 4, 23, 3), "width": 128},
         checkpoint=_torchvision("wide_resnet101_2-32ee1156", 78.85, 94.28)),
    Spec("resnext50_32x4d", "resnet.ResNet",                     25_028_904,  4_230_479_872, 2016, _RESNEXT,
         {"block": "bottleneck", "layers": (3, 4, 6, 3), "groups": 32, "width": 4},
         published=Published(22.2, None, _ONE, "table 3"),
         checkpoint=_torchvision("resnext50_32x4d-7cdf4587", 77.62, 93.70)),
    Spec("resnext101_32x8d", "resnet.ResNet",                    88_791_336, 16_414_015_488, 2016, _RESNEXT,
         {"block": "bottleneck", "layers": (3, 4, 23, 3), "groups": 32, "width": 8},
         checkpoint=_torchvision("resnext101_32x8d-8ba56ff5", 79.31, 94.53)),

    Spec("densenet121", "densenet.DenseNet",                      7_978_856,  2_834_161_664, 2016, _DENSENET,
         {"layers": (6, 12, 24, 16)}, published=Published(25.02, 7.71, _ONE, "table 3"),
         checkpoint=_torchvision("densenet121-a639ec97", 74.43, 91.97)),
    Spec("densenet161", "densenet.DenseNet",                     28_681_000,  7_727_907_072, 2016, _DENSENET,
         {"layers": (6, 12, 36, 24), "growth": 48, "stem": 96},
         published=Published(22.2, None, _ONE, "github.com/liuzhuang13/DenseNet"),
         checkpoint=_torchvision("densenet161-8d451a50", 77.14, 93.56)),
    Spec("densenet169", "densenet.DenseNet",                     14_149_480,  3_359_843_328, 2016, _DENSENET,
         {"layers": (6, 12, 32, 32)}, published=Published(23.80, 6.85, _ONE, "table 3"),
         checkpoint=_torchvision("densenet169-b2777c0a", 75.60, 92.81)),
    Spec("densenet201", "densenet.DenseNet",                     20_013_928,  4_291_365_888, 2016, _DENSENET,
         {"layers": (6, 12, 48, 32)}, published=Published(22.58, 6.34, _ONE, "table 3"),
         checkpoint=_torchvision("densenet201-c1103571", 76.90, 93.37)),

    Spec("fractalnet34", "fractalnet.FractalNet",               164_031_016, 24_164_982_784, 2016, _FRACTALNET,
         published=Published(24.12, 7.39, _TEN, "table 2"),
         note="Four blocks of four columns with 128, 256, 512 and 1024 filters between ResNet-34's first and last "
              "layers, at its sizes 56, 28, 14 and 7. The paper states no parameter count for it."),

    Spec("squeezenet1_0", "squeezenet.SqueezeNet",                1_248_424,    818_924_576, 2016, _SQUEEZENET,
         {"first": (96, 7), "pools": (2, 5, 9)}, published=Published(42.5, 19.7, _ONE, "table 2"),
         checkpoint=_torchvision("squeezenet1_0-b66bff10", 58.09, 80.42)),
    Spec("squeezenet1_1", "squeezenet.SqueezeNet",                1_235_496,    349_151_936, 2016, _SQUEEZENET,
         {"first": (64, 3), "pools": (2, 4, 6)}, checkpoint=_torchvision("squeezenet1_1-b8a52dc0", 58.18, 80.62)),
)
# fmt: on

SPECS: dict[str, Spec] = {row.name: row for row in _ROWS}

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

    Raises `Usage` for an unknown network or set, or if neither is given.
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

    `classes` and `size` default to the row's. Raises `Usage` if the design cannot take the size.
    """
    row = spec(name)
    if classes is not None and classes < 1:
        raise Usage(f"{name}: {classes} classes? A classifier needs at least one")
    file, class_name = row.network.split(".")
    cls = getattr(importlib.import_module(f"models.{file}"), class_name)
    try:
        built: nn.Module = cls(**row.arguments, num_classes=classes or row.classes, size=size or row.preprocess.crop)
    except Usage as error:
        raise Usage(f"{name}: {error}; its own input size is {row.preprocess.crop}") from error
    return built.eval()


def _closest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else "`python -m models list` shows all"
