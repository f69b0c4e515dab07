"""Pillow's resize in our own kernel: the same bits, of a crop alone, by the processor's vector unit.

The kernel (`_resample.c`) is built if a C compiler is there when Podium is installed. If it was not built,
`models.preprocess` resizes with Pillow, which takes about five times as long and gives the same pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    from models._resample import crop
except ImportError:  # there was no compiler, or it was built for another Python
    crop = None  # type: ignore[assignment]

Pixels = NDArray[np.uint8]
Table = NDArray[np.int32]

SUPPORT = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2, Image.Resampling.LANCZOS: 3}

# Pillow weighs by integers with so many fractional bits.
ONE = 1 << 22
# Numbers in the picture that Pillow is asked for its weights with: 4 MB. The longest axis of a photograph is within it,
# and the axes that are kept take 30 MB at most, whatever clients send.
LARGEST, KEPT = 1 << 20, 256


class Axis(NamedTuple):
    """How `count` pixels of a resized axis come from its source: pixel i is the sum of `source[starts[i] + t] *
    weights[i, t]` over all t, rounded and divided by `ONE`.
    """

    starts: Table
    weights: Table


def resize(
    source: Image.Image | Pixels,
    source_size: tuple[int, int],
    size: tuple[int, int],
    corner: tuple[int, int],
    filter_: Image.Resampling,
    height_first: bool,
    out: Pixels,
) -> bool:
    """Fill `out`, uint8 [height, width, 3 or 1], with what lies at `corner` (x, y) of `source` resized to `size`.

    `source` is an image in mode RGB or L, or uint8 [height, width, 4 or 1] and contiguous; the fourth byte of a pixel
    is not used. False, and nothing is done, if the kernel is not installed, an axis is too long for it, or Pillow keeps
    the image in several blocks.
    """
    (width, height), (rows, columns) = source_size, out.shape[:2]
    if crop is None or max(cost(width, size[0], filter_), cost(height, size[1], filter_)) > LARGEST:
        return False
    try:
        pixels = handed_out(source) if isinstance(source, Image.Image) else source
    except ValueError:
        return False
    x, y = axis(width, size[0], corner[0], columns, filter_), axis(height, size[1], corner[1], rows, filter_)
    crop(pixels, width, height, x.starts, x.weights, y.starts, y.weights, height_first, out)
    return True


# Pillow keeps an image in blocks of at most 16 MB unless told otherwise, and hands out only what lies in one.
Image.core.set_block_size(1 << 30)  # type: ignore[attr-defined]


def handed_out(image: Image.Image) -> object:
    """The pixels of `image` without a copy, if they are of 4 bytes; Pillow may pad the rows of others.

    Raises `ValueError` if they lie in several blocks.
    """
    return image.__arrow_c_array__()[1] if image.mode == "RGB" else np.asarray(image)


def cost(length: int, size: int, filter_: Image.Resampling) -> int:
    """How many numbers `axis` has Pillow look at."""
    return taps(length, size, filter_) * (length + size)


def taps(length: int, size: int, filter_: Image.Resampling) -> int:
    """More pixels of the source than any pixel of the result is made of."""
    return 2 * (int(SUPPORT[filter_] * max(1.0, length / size)) + 2) + 1


@lru_cache(maxsize=KEPT)
def axis(length: int, size: int, first: int, count: int, filter_: Image.Resampling) -> Axis:
    """The weights of the pixels from `first` on when an axis of `length` is resized to `size`, as Pillow has them.

    They are read off Pillow's own resize of a picture of lone bright pixels, in a mode that is not rounded to 8 bits:
    our own arithmetic might round otherwise on another processor. Row r of that picture is `ONE` at r, r + taps,
    r + 2 taps and so on, and 0 between. No pixel of the result is made of `taps` neighbours, so each holds one weight.
    """
    most = taps(length, size, filter_)
    rows = min(most, length)
    impulses = np.zeros((rows, length), np.int32)
    for row in range(rows):
        impulses[row, row::most] = ONE
    resized = np.asarray(Image.fromarray(impulses).resize((size, rows), filter_))
    wanted = np.arange(first, first + count)[:, None]
    middle = (wanted + 0.5) * (length / size)
    inputs = (middle - most / 2).astype(np.int64).clip(0, length - rows) + np.arange(rows)
    used = resized[inputs % most, wanted] != 0
    begin = inputs[:, 0] + np.where(used.any(1), used.argmax(1), 0)
    end = inputs[:, -1] + 1 - np.where(used.any(1), used[:, ::-1].argmax(1), rows)
    # Not more inputs than carry a weight somewhere, and starts that only rise, as the kernel wants them.
    starts = np.minimum.accumulate(begin[::-1])[::-1]
    width = max(1, int((end - starts).max()))
    starts = np.minimum(starts, length - width)
    inputs = starts[:, None] + np.arange(width)
    inside = (begin[:, None] <= inputs) & (inputs < end[:, None])
    weights = np.where(inside, resized[inputs % most, wanted], 0)
    return Axis(starts.astype(np.int32), np.ascontiguousarray(weights, np.int32))
