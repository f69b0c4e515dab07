"""From a photograph to the tensor a network was trained on, and from a class index to its name.

Pixels stay uint8 all the way to the engine: an exported graph does its own arithmetic (`(x/255 - mean) / std`), so that
every engine receives exactly the bytes that the reference receives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """The recipe of one checkpoint: short side to `resize`, centre crop of `crop`, then `(x/255 - mean) / std`.

    `mode` is Pillow's: "RGB" gives three channels, "L" one. `mean` and `std` are in units of full scale, one value per
    channel, as torchvision writes them.
    """

    resize: int = 256
    crop: int = 224
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    mode: Literal["RGB", "L"] = "RGB"

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop {self.crop} must be between 1 and resize {self.resize}")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation {self.interpolation!r} is none of {', '.join(RESAMPLING)}")
        if self.mode not in ("RGB", "L"):
            raise ValueError(f"mode {self.mode!r} is neither 'RGB' nor 'L'")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean {self.mean} and std {self.std} must have {self.channels} values for {self.mode}")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")

    @property
    def channels(self) -> int:
        return 3 if self.mode == "RGB" else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one input."""
        return (self.crop, self.crop, self.channels)


def flatten(image: Image.Image, mode: str) -> Image.Image:
    """`image` in `mode`, as a person sees it: transparency over white, 16 bits scaled to 8, palettes resolved."""
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N", "F"):
        # Pillow's own conversion clips at 255 instead of scaling, which turns a 16-bit scan white.
        values = np.asarray(image, dtype=np.float32)
        full = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values * (255.0 / full)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == mode else image.convert(mode)


def pixels(image: Image.Image, recipe: Preprocess) -> Pixels:
    """`image` as uint8 [crop, crop, channels].

    The short side becomes `resize` and the longer one follows, rounded; the crop's corner is rounded down. The filter
    is Pillow's, which averages over the source pixels it shrinks (antialiased), as torchvision's does on PIL images.
    """
    image = flatten(image, recipe.mode)
    width, height = image.size
    short = min(width, height)
    size = (round(recipe.resize * width / short), round(recipe.resize * height / short))
    left, top = (size[0] - recipe.crop) // 2, (size[1] - recipe.crop) // 2
    image = image.resize(size, RESAMPLING[recipe.interpolation])
    image = image.crop((left, top, left + recipe.crop, top + recipe.crop))
    return np.asarray(image, dtype=np.uint8).reshape(recipe.shape)


@dataclass(frozen=True)
class Label:
    """The name of a class; `synset` is its WordNet id where the classes are ImageNet's, else None."""

    label: str
    synset: str | None = None


@cache
def imagenet_labels() -> tuple[Label, ...]:
    """The 1,000 classes of ILSVRC 2012 in the order every checkpoint here was trained with."""
    rows = json.loads((Path(__file__).parent / "imagenet_labels.json").read_text("utf-8"))
    return tuple(Label(label, synset) for synset, label in rows)


def default_labels(classes: int) -> tuple[Label, ...]:
    """ImageNet's names for 1,000 classes, else the numbers themselves."""
    return imagenet_labels() if classes == 1000 else tuple(Label(str(i)) for i in range(classes))
