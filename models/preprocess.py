"""From a photograph to the tensor a network was trained on, and from a class index to its name.

Pixels stay uint8 up to the engine. An exported graph does the arithmetic `(x/255 - mean) / std` itself, so that every
engine gets exactly the bytes that the reference gets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import resample

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

    `geometry` rounds the sides. `mode` is Pillow's: "RGB" gives three channels, "L" one. `mean` and `std` are
    in units of full scale, one value for each channel, as torchvision writes them.
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
            raise ValueError(f"interpolation {self.interpolation!r} is not one of {', '.join(RESAMPLING)}")
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


def flatten(image: Image.Image, mode: str, full: float | None = None) -> Image.Image:
    """`image` in `mode`, as a person sees it: transparency over white, 16 bits scaled to 8, palettes resolved.

    `full` is the value of white in an image with more than 8 bits; by default `full_scale(image)`.
    """
    if image.mode in DEEP:
        # Pillow's own conversion clips at 255 instead of scaling, which turns a 16-bit scan white.
        values = np.asarray(image, dtype=np.float32)
        values = values * (255.0 / (full or full_scale(image)))
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == mode else image.convert(mode)


# Pillow's modes with more than 8 bits in one channel.
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def full_scale(image: Image.Image) -> float:
    """The value of white in `image`: 65535 if one of its values is above 255, else 255."""
    if image.mode not in DEEP:
        return 255.0
    return 65535.0 if np.asarray(image, dtype=np.float32).max(initial=0) > 255 else 255.0


def pixels(image: Image.Image, recipe: Preprocess) -> Pixels:
    """`image` as uint8 [crop, crop, channels]: bit for bit what torchvision's `Resize` and `CenterCrop` make of it.

    The filter is Pillow's. It averages over the source pixels that become one (antialiased), as torchvision's does on
    PIL images.
    """
    image = flatten(image, recipe.mode)
    made = fast_pixels(image, recipe) if kernel_agrees() else None
    return slow_pixels(image, recipe) if made is None else made


def fast_pixels(source: Image.Image | Pixels, recipe: Preprocess) -> Pixels | None:
    """`pixels` by our own kernel, which reads 4 bytes a pixel (RGB and one that is not used) or 1; None if it cannot.

    `source` is an image in `recipe.mode`, or its pixels as uint8 [height, width, 4 or 1].
    """
    size = source.size if isinstance(source, Image.Image) else (source.shape[1], source.shape[0])
    resized, corner = geometry(size, recipe)
    axes = [Window(0, *axis) for axis in zip(size, resized, corner, strict=True)]
    made = np.empty(recipe.shape, np.uint8)
    done = resample.resize(
        source, size, resized, corner, RESAMPLING[recipe.interpolation], height_first(size, axes), made
    )
    return made if done else None


@cache
def kernel_agrees() -> bool:
    """Whether our kernel is installed and gives the same bits as the installed Pillow.

    Another Pillow may order its passes, round or lay out its rows in another way. The first call compares both on a few
    pictures: wide, tall, very tall, and enlarged.
    """
    random, recipe = np.random.default_rng(0), Preprocess(28, 23)
    for width, height in ((97, 61), (61, 97), (37, 331), (31, 3203), (13, 17)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        made = fast_pixels(image, recipe)
        if made is None or not np.array_equal(made, slow_pixels(image, recipe)):
            return False
    return True


def slow_pixels(image: Image.Image, recipe: Preprocess) -> Pixels:
    """`pixels` of an image in `recipe.mode` by Pillow, where our kernel is not installed or cannot read it."""
    resized, corner = geometry(image.size, recipe)
    x, y = windows(image.size, resized, corner, recipe.crop)
    image = image.resize((x.size, y.size), RESAMPLING[recipe.interpolation], (x.begin, y.begin, x.end, y.end))
    image = image.crop((x.left, y.left, x.left + recipe.crop, y.left + recipe.crop))
    return np.asarray(image, dtype=np.uint8).reshape(recipe.shape)


Sides = tuple[int, int]  # (width, height), or (left, top)


def geometry(size: Sides, recipe: Preprocess) -> tuple[Sides, Sides]:
    """The size that an image of `size` is scaled to, and the upper left corner of the crop in it.

    The short side becomes `resize`; the long side is truncated, and the corner is rounded half to even. Source:
    torchvision's `_compute_resized_output_size` and `center_crop` (transforms/functional.py).
    """
    short = min(size)
    width, height = (int(recipe.resize * side / short) for side in size)
    return (width, height), (round((width - recipe.crop) / 2), round((height - recipe.crop) / 2))


class Window(NamedTuple):
    """One axis of a resize: `begin` to `end` of the source becomes `size` pixels; the crop starts at pixel `left`."""

    begin: float
    end: float
    size: int
    left: int


def windows(source: Sides, target: Sides, corner: Sides, crop: int) -> list[Window]:
    """How to resize an image of `source` to `target` for its `crop` at `corner`; only the crop, if no bit changes.

    Pillow takes the box of a resize in float32. If its sides and its length are exact in float32, the positions that
    weigh the pixels are exact too, and each pixel is the same as from the whole axis. That is so for a short side of
    256, but not for the long side and rarely for other sizes. It saves an eighth of the work.
    """
    whole, needed = [], []
    for length, size, first in zip(source, target, corner, strict=True):
        begin, end = first * length / size, (first + crop) * length / size
        sides = ((begin, first), (end, first + crop), (end - begin, crop))
        exact = all(float(np.float32(side)) == side and side * size == count * length for side, count in sides)
        whole.append(Window(0, length, size, first))
        needed.append(Window(begin, end, crop, 0) if exact else whole[-1])
    return needed if height_first(source, needed) == height_first(source, whole) else whole


def height_first(source: Sequence[int], axes: Sequence[Window]) -> bool:
    """Whether Pillow from 13.0 on shrinks the height before the width; the rounding in between depends on the order."""
    width, height = (length - axis.size for length, axis in zip(source, axes, strict=True))
    return height > max(0, 2 * width)


@dataclass(frozen=True)
class Label:
    """The name of a class; `synset` is its WordNet id if the classes are ImageNet's, else None."""

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
